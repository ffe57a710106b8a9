"""LoRA layers (Hu et al., 2106.09685, section 4.1): y = base(x) + scale * (dropout(x) A) B.

Layer and parameter names, shapes and the meaning of `scale` are mlx-lm's. `AdapterLayer` is what
the layers of every kind of adapter share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from mlx_itune.model.engine.compute import DequantizingLinear, at_once

LINEAR = (nn.Linear, nn.QuantizedLinear, DequantizingLinear)
SWITCH = (SwitchLinear, QuantizedSwitchLinear)
EMBEDDING = (nn.Embedding, nn.QuantizedEmbedding)
# Rows of a large matrix that are worked on at once hold about so many numbers (4 MB): MLX makes
# the arrays of several operations ahead.
_CHUNK_NUMBERS = 1 << 20


@dataclass(frozen=True)
class _Kept:
    factors: tuple[mx.array, ...]
    value: Any


class AdapterLayer(nn.Module):  # type: ignore[misc]
    """A frozen layer with something to learn; `factors` names its trainable arrays."""

    factors: ClassVar[tuple[str, ...]] = ("lora_a", "lora_b")

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def delta(self) -> mx.array:
        """What is added to the base's weight, in its shape; float32."""
        raise NotImplementedError

    def shipped(self) -> dict[str, mx.array]:
        """What mlx-lm gets of this layer, by name, where that is not the factors."""
        return {}

    def settle(self) -> None:
        """Make once, for inference, what the factors as they are now entail in every call."""
        value = self._entailed()
        mx.eval(value)
        self._kept = _Kept(tuple(self[name] for name in self.factors), value)

    def _settled(self) -> Any:
        """What `settle` made, while it holds: not in training, nor with other factors."""
        kept: _Kept | None = getattr(self, "_kept", None)
        if kept is None or self.training:
            return None
        same = all(self[n] is array for n, array in zip(self.factors, kept.factors, strict=True))
        return kept.value if same else None

    def _entailed(self) -> Any:
        return None


class LowRank(AdapterLayer):
    """A low-rank update beside a layer that it holds under mlx-lm's name, with keyed dropout."""

    held: ClassVar[str] = "linear"

    def __init__(
        self, base: nn.Module, rank: int, scale: float, dropout: float, key: mx.array
    ) -> None:
        super().__init__(scale)
        self.dropout = dropout
        self._key: mx.array | None = None
        self[self.held] = base
        self.rank = rank
        self._start(base, key)

    def pair(self) -> tuple[mx.array, mx.array]:
        """A and B as mlx-lm's layer of this kind has them."""
        return self.lora_a, self.lora_b

    @staticmethod
    def shapes(base: nn.Module, rank: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """The shapes of A and B, and how many inputs A sums over."""
        raise NotImplementedError

    def _start(self, base: nn.Module, key: mx.array) -> None:
        a, b, fan = self.shapes(base, self.rank)
        self.lora_a = uniform(a, fan, key)
        self.lora_b = mx.zeros(b)

    def _drop(self, x: mx.array) -> mx.array:
        if self._key is None or not self.training:
            return x
        kept = mx.random.bernoulli(1 - self.dropout, x.shape, key=self._key)
        return kept.astype(x.dtype) * x * (1 / (1 - self.dropout))


class LoRALinear(LowRank):
    """A frozen linear layer plus a low-rank update: lora_a (in, rank), lora_b (rank, out)."""

    @staticmethod
    def shapes(base: nn.Module, rank: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """(in, rank), (rank, out)."""
        outputs, inputs = matrix_shape(base)
        return (inputs, rank), (rank, outputs), inputs

    def __call__(self, x: mx.array) -> mx.array:
        a, b = self.pair()
        if not self.dropout and (whole := at_once(self.linear, x, [a, b], self.scale)) is not None:
            return whole
        # The factor goes to the small matrix, not to the activations.
        low = (self._drop(x) @ a) @ (self.scale * b)
        y: mx.array = self.linear(x)
        return y + low.astype(x.dtype)

    def delta(self) -> mx.array:
        """What is added to the base's weight: (out, in) float32."""
        a, b = self.pair()
        return (self.scale * b.T) @ a.T


class LoRASwitchLinear(LowRank):
    """The same for the experts of a mixture: (experts, rank, in), (experts, out, rank)."""

    @staticmethod
    def shapes(base: nn.Module, rank: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """(experts, rank, in), (experts, out, rank)."""
        experts, inputs = base.num_experts, base.input_dims
        return (experts, rank, inputs), (experts, base.output_dims, rank), inputs

    @property
    def num_experts(self) -> int:
        """How many experts there are."""
        return int(self.linear.num_experts)

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        a, b = self.pair()
        low = self._drop(x)
        for factor in (a, self.scale * b):
            low = mx.gather_mm(
                low,
                factor.swapaxes(-1, -2),
                rhs_indices=indices,
                sorted_indices=sorted_indices,
            )
        y: mx.array = self.linear(x, indices, sorted_indices=sorted_indices)
        return y + low.astype(x.dtype)

    def delta(self) -> mx.array:
        """What is added to the base's weight: (experts, out, in) float32."""
        a, b = self.pair()
        return (self.scale * b) @ a


class LoRAEmbedding(LowRank):
    """The same for a token table: lora_a (vocabulary, rank), lora_b (rank, dims)."""

    held: ClassVar[str] = "embedding"

    @staticmethod
    def shapes(base: nn.Module, rank: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """(vocabulary, rank), (rank, dims)."""
        vocabulary, dims = matrix_shape(base)
        return (vocabulary, rank), (rank, dims), vocabulary

    def __call__(self, x: mx.array) -> mx.array:
        a, b = self.pair()
        y: mx.array = self.embedding(x)
        return y + self._drop(a[x] @ (self.scale * b)).astype(y.dtype)

    def as_linear(self, x: mx.array) -> mx.array:
        """The table as an output head, x (..., dims) to (..., vocabulary)."""
        a, b = self.pair()
        low = (self._drop(x) @ (self.scale * b).T) @ a.T
        y: mx.array = self.embedding.as_linear(x)
        return y + low.astype(x.dtype)

    def delta(self) -> mx.array:
        """What is added to the table: (vocabulary, dims) float32."""
        a, b = self.pair()
        return (self.scale * a) @ b


def adaptable(module: nn.Module) -> bool:
    """Whether a layer is of a kind that adapters know.

    A layer with an adapter class of its own (several projections in one) computes something else.
    """
    return isinstance(module, (*LINEAR, *SWITCH, *EMBEDDING)) and not hasattr(module, "to_lora")


def matrix_shape(base: nn.Module) -> tuple[int, int]:
    """(rows, columns) of a layer's weight, unpacked."""
    rows, columns = base.weight.shape[-2:]
    return rows, base.scales.shape[-1] * base.group_size if "scales" in base else columns


def uniform(shape: tuple[int, ...], fan: int, key: mx.array) -> mx.array:
    """Float32 numbers in +-1 / sqrt(fan)."""
    bound = 1 / math.sqrt(fan)
    return mx.random.uniform(-bound, bound, shape, key=key)


def row_chunks(rows: int, columns: int) -> list[slice]:
    """Slices of a (rows, columns) matrix, each of a bounded size."""
    size = max(1, _CHUNK_NUMBERS // columns)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
