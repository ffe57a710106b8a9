"""QA-LoRA (2309.14717, section 3.3): a LoRA whose A is constant within a quantization group.

What it adds is constant there too, so that it merges into the biases of w = s q + b. Computed,
and loaded by others, as the LoRA that it is, A repeated over each group.
"""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from mlx_itune.model.adapters.grid import OnGrid
from mlx_itune.model.adapters.lowrank import (
    LoRAEmbedding,
    LoRALinear,
    LoRASwitchLinear,
    LowRank,
    uniform,
)
from mlx_itune.model.engine.compute import packed


class _OnBiases(OnGrid, LowRank):
    """What the layers share: the base's grid, of which they move the biases."""

    factors: ClassVar[tuple[str, ...]] = ("bias_a", "bias_b")
    # The factor of the pair, and its axis, along which all of a group are one number.
    grouped: ClassVar[tuple[int, int]] = (0, 0)

    def pair(self) -> tuple[mx.array, mx.array]:
        """A and B of the LoRA that this is, as mlx-lm's layer of this kind has them."""
        pair, (factor, axis) = [self.bias_a, self.bias_b], self.grouped
        pair[factor] = mx.repeat(pair[factor], self._group_size, axis=axis)
        return pair[0], pair[1]

    def shipped(self) -> dict[str, mx.array]:
        """The LoRA pair that mlx-lm gets."""
        return dict(zip(("lora_a", "lora_b"), self.pair(), strict=True))

    def moved(self) -> tuple[mx.array, mx.array]:
        """The tuned (scales, biases), float32; the scales are the base's."""
        sums: mx.array = self.delta()[..., :: self._group_size]
        return self._scales.astype(mx.float32), self._biases.astype(mx.float32) + sums

    def _start(self, base: nn.Module, key: mx.array) -> None:
        stored = packed(base)
        assert stored is not None and stored.biases is not None
        self._scales, self._biases = stored.scales, stored.biases
        self._group_size = stored.group_size
        *whole, fan = self.shapes(base, self.rank)
        shapes = [list(shape) for shape in whole]
        factor, axis = self.grouped
        shapes[factor][axis] //= self._group_size
        self.bias_a = uniform(tuple(shapes[0]), fan, key)
        self.bias_b = mx.zeros(shapes[1])


class QALinear(_OnBiases, LoRALinear):
    """bias_a (groups, rank), bias_b (rank, out); LoRA's A is bias_a, each row repeated."""


class QASwitchLinear(_OnBiases, LoRASwitchLinear):
    """bias_a (experts, rank, groups), bias_b (experts, out, rank)."""

    grouped: ClassVar[tuple[int, int]] = (0, -1)


class QAEmbedding(_OnBiases, LoRAEmbedding):
    """bias_a (vocabulary, rank), bias_b (rank, groups)."""

    grouped: ClassVar[tuple[int, int]] = (1, -1)
