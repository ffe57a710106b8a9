"""QA-LoRA (2309.14717, section 3.3): a LoRA whose A is constant within a quantization group.

What it adds is constant there too, so that it merges into the biases of w = s q + b. Computed,
and loaded by others, as the LoRA that it is, A repeated over each group.
"""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from mlx_itune.model.adapters.grid import OnGrid
from mlx_itune.model.adapters.lowrank import LoRAEmbedding, LoRALinear, LoRASwitchLinear, uniform
from mlx_itune.model.engine.compute import packed


class _Constant(OnGrid):
    """What the layers share: the base's grid, of which they move the biases."""

    factors: ClassVar[tuple[str, ...]] = ("bias_a", "bias_b")

    def pair(self) -> tuple[mx.array, mx.array]:
        """A and B of the LoRA that this is, as mlx-lm's layer of this kind has them."""
        raise NotImplementedError

    def _keep(self, base: nn.Module) -> None:
        stored = packed(base)
        assert stored is not None and stored.biases is not None
        self._scales, self._biases = stored.scales, stored.biases
        self._group_size = stored.group_size

    def shipped(self) -> dict[str, mx.array]:
        """The LoRA pair that mlx-lm gets."""
        return dict(zip(("lora_a", "lora_b"), self.pair(), strict=True))

    def moved(self) -> tuple[mx.array, mx.array]:
        """The tuned (scales, biases), float32; the scales are the base's."""
        sums: mx.array = self.delta()[..., :: self._group_size]  # type: ignore[attr-defined]
        return self._scales.astype(mx.float32), self._biases.astype(mx.float32) + sums


class QALinear(_Constant, LoRALinear):
    """bias_a (groups, rank), bias_b (rank, out); LoRA's A is bias_a, each row repeated."""

    def pair(self) -> tuple[mx.array, mx.array]:
        """LoRA's A (in, rank) and B (rank, out)."""
        return mx.repeat(self.bias_a, self._group_size, axis=0), self.bias_b

    def _start(self, rank: int, inputs: int, outputs: int, key: mx.array) -> None:
        self._keep(self.linear)
        self.bias_a = uniform((inputs // self._group_size, rank), inputs, key)
        self.bias_b = mx.zeros((rank, outputs))


class QASwitchLinear(_Constant, LoRASwitchLinear):
    """bias_a (experts, rank, groups), bias_b (experts, out, rank)."""

    def pair(self) -> tuple[mx.array, mx.array]:
        """LoRA's A (experts, rank, in) and B (experts, out, rank)."""
        return mx.repeat(self.bias_a, self._group_size, axis=-1), self.bias_b

    def _start(self, rank: int, inputs: int, outputs: int, key: mx.array) -> None:
        self._keep(self.linear)
        groups = inputs // self._group_size
        self.bias_a = uniform((self.num_experts, rank, groups), inputs, key)
        self.bias_b = mx.zeros((self.num_experts, outputs, rank))


class QAEmbedding(_Constant, LoRAEmbedding):
    """bias_a (vocabulary, rank), bias_b (rank, groups)."""

    def pair(self) -> tuple[mx.array, mx.array]:
        """LoRA's A (vocabulary, rank) and B (rank, dims)."""
        return self.bias_a, mx.repeat(self.bias_b, self._group_size, axis=-1)

    def _start(self, rank: int, vocabulary: int, dims: int, key: mx.array) -> None:
        self._keep(self.embedding)
        self.bias_a = uniform((vocabulary, rank), vocabulary, key)
        self.bias_b = mx.zeros((rank, dims // self._group_size))
