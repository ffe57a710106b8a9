"""DoRA (Liu et al., 2402.09353): the direction of W + scale * A B, with a learned magnitude m.

y = m / |W + scale * A B| * (W x + scale * A B dropout(x)) + bias. The norm is a constant to the
gradient (section 4.3). Parameter names and the function are mlx-lm's. Unlike there, the base's
width may be any, its type is kept, and the norm does not need the weight, unpacked, each time:
|W + D|^2 = |W|^2 + 2 W.D + |D|^2, row by row, where W.D is the base applied to A.
"""

from __future__ import annotations

from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from mlx_itune.model.adapters.lowrank import (
    LoRAEmbedding,
    LoRALinear,
    LowRank,
    matrix_shape,
    row_chunks,
)
from mlx_itune.model.engine.compute import dequantized_weight, product

# A row of zeros has no direction; dividing by this keeps it zero.
_SMALLEST = 1e-30


class _DoRA(LowRank):
    """m over the length of each row, which is the same for all inputs."""

    factors: ClassVar[tuple[str, ...]] = ("lora_a", "lora_b", "m")

    def delta(self) -> mx.array:
        """What is added to the base's weight, in its shape; float32."""
        weight = _float_weight(self[self.held])
        return self._ratio()[:, None] * (weight + super().delta()) - weight

    def _start(self, base: nn.Module, key: mx.array) -> None:
        super()._start(base, key)
        self._squares = squared_norms(base)
        self.m = mx.sqrt(self._squares)

    def _whole_ratio(self) -> mx.array:
        kept: mx.array | None = self._settled()
        return self._ratio() if kept is None else kept

    def _entailed(self) -> Any:
        return self._ratio()

    def _ratio(self) -> mx.array:
        raise NotImplementedError


class DoRALinear(_DoRA, LoRALinear):
    """lora_a (in, rank), lora_b (rank, out), m (out,); all float32."""

    def __call__(self, x: mx.array) -> mx.array:
        low = ((self._drop(x) @ self.lora_a) @ (self.scale * self.lora_b)).astype(x.dtype)
        ratio = self._whole_ratio().astype(x.dtype)
        y: mx.array = self.linear(x)
        if "bias" not in self.linear:
            return ratio * (y + low)
        bias: mx.array = self.linear.bias
        # Not ratio * (y - bias + low) + bias, so that the base's own sum stays when ratio is 1.
        return y + (ratio - 1) * (y - bias) + ratio * low

    def _ratio(self) -> mx.array:
        a, b = mx.stop_gradient(self.lora_a), mx.stop_gradient(self.scale * self.lora_b)
        across = product(self.linear, a.T).astype(mx.float32)
        return self.m / _norm(self._squares, (b * across).sum(0), (b * ((a.T @ a) @ b)).sum(0))


class DoRAEmbedding(_DoRA, LoRAEmbedding):
    """The same for a token table: lora_a (vocabulary, rank), lora_b (rank, dims), m (vocabulary,).

    mlx-lm has it for tables in floats only.
    """

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self.embedding(x)
        low = self.lora_a[x] @ (self.scale * self.lora_b)
        fixed_y, fixed = mx.stop_gradient(y.astype(mx.float32)), mx.stop_gradient(low)
        across = (fixed_y * fixed).sum(-1)
        ratio = self.m[x] / _norm(self._squares[x], across, mx.square(fixed).sum(-1))
        return ratio[..., None].astype(y.dtype) * (y + self._drop(low).astype(y.dtype))

    def as_linear(self, x: mx.array) -> mx.array:
        """The table as an output head, x (..., dims) to (..., vocabulary)."""
        low = (self._drop(x) @ (self.scale * self.lora_b).T) @ self.lora_a.T
        y: mx.array = self.embedding.as_linear(x)
        return self._whole_ratio().astype(x.dtype) * (y + low.astype(x.dtype))

    def _ratio(self) -> mx.array:
        a, b = mx.stop_gradient(self.lora_a), mx.stop_gradient(self.scale * self.lora_b)
        across = self.embedding.as_linear(b).astype(mx.float32).T
        return self.m / _norm(self._squares, (a * across).sum(1), (a * (a @ (b @ b.T))).sum(1))


def squared_norms(base: nn.Module) -> mx.array:
    """|row|^2 of a layer's weight in float32; a large weight is unpacked in pieces."""
    rows, columns = matrix_shape(base)
    parts = []
    for chunk in row_chunks(rows, columns):
        parts.append(mx.square(_float_weight(base, chunk)).sum(1))
        mx.eval(parts[-1])
    return mx.concatenate(parts)


def _norm(squares: mx.array, across: mx.array, added: mx.array) -> mx.array:
    return mx.maximum(mx.sqrt(mx.maximum(squares + 2 * across + added, 0)), _SMALLEST)


def _float_weight(base: nn.Module, rows: slice = slice(None)) -> mx.array:
    if hasattr(base, "bits"):
        return dequantized_weight(base, rows).astype(mx.float32)
    weight: mx.array = base["weight"]
    return weight[rows].astype(mx.float32)
