"""LoRA layers (Hu et al., 2106.09685, section 4.1): y = base(x) + scale * (dropout(x) A) B.

DoRA (Liu et al., 2402.09353), the direction of W + scale * A B with a learned magnitude m:
y = m / |W + scale * A B| * (W x + scale * A B dropout(x)) + bias, where the norm is a constant to
the gradient (section 4.3).

Layer and parameter names, shapes, functions and the meaning of `scale` are mlx-lm's; `AdapterLayer`
is what the layers of every kind of adapter share. Unlike mlx-lm's, DoRA's base may be of any width,
its type is kept, and the norm does not need the weight, unpacked, each time:
|W + D|^2 = |W|^2 + 2 W.D + |D|^2, row by row, where W.D is the base applied to A.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from mlx_itune.model.engine.compute import dequantized_weight, product
from mlx_itune.model.engine.cpu import lane, on_one_stream
from mlx_itune.model.loading import backend

LINEAR = (nn.Linear, nn.QuantizedLinear)
SWITCH = (SwitchLinear, QuantizedSwitchLinear)
EMBEDDING = (nn.Embedding, nn.QuantizedEmbedding)
# Rows of a large matrix that are worked on at once hold about so many numbers (4 MB): MLX makes
# the arrays of several operations ahead.
_CHUNK_NUMBERS = 1 << 20
# Each piece is some launches.
_CHUNK_NUMBERS_ON_GPU = 1 << 25
# A row of zeros has no direction; dividing by this keeps it zero.
_SMALLEST = 1e-30
# Factors A, which the scale is multiplied with.
SCALED = ("lora_a", "scale_a", "bias_a")
# What gives layers their factors, by name, those of all layers as one array.
Give = Callable[[Mapping[str, mx.array]], None]


class AdapterLayer(nn.Module):  # type: ignore[misc]
    """A frozen layer with something to learn; `factors` names its trainable arrays."""

    factors: ClassVar[tuple[str, ...]] = ("lora_a", "lora_b")
    # Whether a step may have its factors in the type of the activations.
    halved: ClassVar[bool] = False

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def delta(self) -> mx.array:
        """What is added to the base's weight, in its shape; float32."""
        raise NotImplementedError

    def shipped(self) -> dict[str, mx.array]:
        """What mlx-lm gets of this layer, by name, where that is not the factors."""
        return {}

    @classmethod
    def together(cls, layers: Sequence[AdapterLayer], dtype: Any) -> Give:
        """A function that gives such layers, whose factors have one shape, these for a step: each
        of all layers as one array. dtype: of activations."""
        scale, kept = layers[0].scale, dtype if cls.halved else mx.float32

        def give(stacks: Mapping[str, mx.array]) -> None:
            for name, stack in stacks.items():
                scaled = stack if name not in SCALED or scale == 1 else scale * stack
                for layer, array in zip(layers, apart(scaled.astype(kept)), strict=True):
                    layer[name] = array
            for layer in layers:
                layer.scale = 1.0

        return give

    def let_go(self) -> None:
        """The step is over: forget what was made for it."""

    def settle(self) -> None:
        """Make once, for inference, what the factors as they are now entail in every call."""
        value = self._entailed()
        mx.eval(value)
        self._kept = (tuple(self[name] for name in self.factors), value)

    def _settled(self) -> Any:
        """What `settle` made, while it holds: not in training, nor with other factors."""
        kept: tuple[tuple[mx.array, ...], Any] | None = getattr(self, "_kept", None)
        if kept is None or self.training:
            return None
        factors, value = kept
        same = all(self[name] is array for name, array in zip(self.factors, factors, strict=True))
        return value if same else None

    def _entailed(self) -> Any:
        return None


class LowRank(AdapterLayer):
    """A low-rank update beside a layer that it holds under mlx-lm's name, with keyed dropout."""

    held: ClassVar[str] = "linear"
    halved: ClassVar[bool] = True

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

    def _scaled(self, dtype: Any) -> tuple[mx.array, mx.array]:
        """A, times the scale, and B, both in the type of the activations."""
        a, b = self.pair()
        return (a if self.scale == 1 else self.scale * a).astype(dtype), b.astype(dtype)

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
        # Rows that are computed side by side draw each their own.
        own = mx.random.split(self._key, lane() + 1)[-1]
        kept = mx.random.bernoulli(1 - self.dropout, x.shape, key=own)
        return kept.astype(x.dtype) * x * (1 / (1 - self.dropout))


class LoRALinear(LowRank):
    """A frozen linear layer plus a low-rank update: lora_a (in, rank), lora_b (rank, out)."""

    @staticmethod
    def shapes(base: nn.Module, rank: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """(in, rank), (rank, out)."""
        outputs, inputs = matrix_shape(base)
        return (inputs, rank), (rank, outputs), inputs

    def __call__(self, x: mx.array) -> mx.array:
        a, b = self._scaled(x.dtype)
        rows = x.reshape(-1, x.shape[-1])
        if self._key is not None and self.training:
            y = mx.addmm(self.linear(rows), self._drop(rows) @ a, b)
        elif self.training:
            y = _adapted(self.linear)(rows, a, b)[0]
        else:
            y = mx.addmm(self.linear(rows), rows @ a, b)
        whole: mx.array = y.reshape(*x.shape[:-1], -1)
        return whole

    def delta(self) -> mx.array:
        """What is added to the base's weight: (out, in) float32."""
        a, b = self.pair()
        return (self.scale * b.T) @ a.T


def _adapted(linear: nn.Module) -> Callable[..., Any]:
    """linear(x) + (x A) B and x A, of x (N, in): two more products, and four backwards."""

    def forward(x: mx.array, a: mx.array, b: mx.array) -> list[mx.array]:
        low = x @ a
        return [mx.addmm(linear(x), low, b), low]

    def backward(primals: Any, cotangents: Any, outputs: Any) -> list[mx.array]:
        (x, a, b), ahead, low = primals, cotangents[0], outputs[1]
        d_low = ahead @ b.T
        return [
            mx.addmm(product(linear, ahead, back=True), d_low, a.T),
            x.T @ d_low,
            low.T @ ahead,
        ]

    return on_one_stream(forward, backward)


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
        # |W + scale * A B| of all layers alike in a step, where m is over it already.
        self._norms: mx.array | None = None

    def _whole_ratio(self) -> mx.array:
        kept: mx.array | None = self._settled() if self._norms is None else self.m
        return self._ratio() if kept is None else kept

    def let_go(self) -> None:
        """The step is over: m is the length again."""
        self._norms = None

    def _entailed(self) -> Any:
        return self._ratio()

    def _ratio(self) -> mx.array:
        raise NotImplementedError


class DoRALinear(_DoRA, LoRALinear):
    """lora_a (in, rank), lora_b (rank, out), m (out,); all float32."""

    def __call__(self, x: mx.array) -> mx.array:
        a, b = self._scaled(x.dtype)
        ratio = self._whole_ratio().astype(x.dtype)
        rows = x.reshape(-1, x.shape[-1])
        has_bias = "bias" in self.linear
        if self.training and self._key is None and not has_bias:
            y = _rescaled(self.linear)(rows, a, b, ratio)[0]
        else:
            y = self.linear(rows)
            low = (self._drop(rows) @ a) @ b
            # The base's own sum stays as it is when the ratio is 1.
            direction = y - self.linear.bias if has_bias else y
            y = y + (ratio - 1) * direction + ratio * low if has_bias else ratio * (y + low)
        whole: mx.array = y.reshape(*x.shape[:-1], -1)
        return whole

    def _ratio(self) -> mx.array:
        a, b = self.scale * self.lora_a, self.lora_b
        return self.m / _norms([self], a[None], b[None], self._squares, mx.float32)[0]

    @classmethod
    def together(cls, layers: Sequence[AdapterLayer], dtype: Any) -> Give:
        """Factors as LoRA's, and the ratio in the place of m: MLX makes it of all layers in a few
        operations, where each layer's own would be as many."""
        give, scale = super().together(layers, dtype), layers[0].scale
        squares = mx.stack([layer._squares for layer in layers])
        mx.eval(squares)

        def give_ratio(stacks: Mapping[str, mx.array]) -> None:
            a, b, m = (stacks[name] for name in cls.factors)
            norms: mx.array | None = layers[0]._norms
            if norms is None:
                norms = _norms(layers, scale * a, b, squares, dtype)
            give({"lora_a": a, "lora_b": b, "m": m / norms})
            for layer in layers:
                layer._norms = norms

        return give_ratio


def _norms(
    layers: Sequence[AdapterLayer], a: mx.array, b: mx.array, squares: mx.array, dtype: Any
) -> mx.array:
    """|W + A B| by row, (layers, out), a constant to the gradient. a, b: of all layers, scaled;
    dtype: what W A is made in."""
    a, b = mx.stop_gradient(a), mx.stop_gradient(b)
    rows = mx.contiguous(a.swapaxes(1, 2).astype(dtype))
    pairs = zip(layers, apart(rows), strict=True)
    across = mx.stack([product(layer.linear, array) for layer, array in pairs])
    # Twice W.D and |D|^2.
    added = (b * (2 * across.astype(mx.float32) + (a.swapaxes(1, 2) @ a) @ b)).sum(1)
    return _norm(squares, added)


def _rescaled(linear: nn.Module) -> Callable[..., Any]:
    """ratio * (linear(x) + (x A) B), x A, and what the ratio is multiplied with; x (N, in)."""

    def forward(x: mx.array, a: mx.array, b: mx.array, ratio: mx.array) -> list[mx.array]:
        low = x @ a
        direction = mx.addmm(linear(x), low, b)
        return [ratio * direction, low, direction]

    def backward(primals: Any, cotangents: Any, outputs: Any) -> list[mx.array]:
        (x, a, b, ratio), (_, low, direction) = primals, outputs
        ahead = ratio * cotangents[0]
        d_low = ahead @ b.T
        d_x = mx.addmm(product(linear, ahead, back=True), d_low, a.T)
        d_ratio = (cotangents[0] * direction).sum(0)
        return [d_x, x.T @ d_low, low.T @ ahead, d_ratio]

    return on_one_stream(forward, backward)


class DoRAEmbedding(_DoRA, LoRAEmbedding):
    """The same for a token table: lora_a (vocabulary, rank), lora_b (rank, dims), m (vocabulary,).

    mlx-lm has it for tables in floats only.
    """

    # Its norms are made of the factors of single tokens.
    halved: ClassVar[bool] = False

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self.embedding(x)
        low = self.lora_a[x] @ (self.scale * self.lora_b)
        fixed_y, fixed = mx.stop_gradient(y.astype(mx.float32)), mx.stop_gradient(low)
        across = (fixed_y * fixed).sum(-1)
        ratio = self.m[x] / _norm(self._squares[x], 2 * across + mx.square(fixed).sum(-1))
        return ratio[..., None].astype(y.dtype) * (y + self._drop(low).astype(y.dtype))

    def as_linear(self, x: mx.array) -> mx.array:
        """The table as an output head, x (..., dims) to (..., vocabulary)."""
        low = (self._drop(x) @ (self.scale * self.lora_b).T) @ self.lora_a.T
        y: mx.array = self.embedding.as_linear(x)
        return self._whole_ratio().astype(x.dtype) * (y + low.astype(x.dtype))

    def _ratio(self) -> mx.array:
        a, b = mx.stop_gradient(self.lora_a), mx.stop_gradient(self.scale * self.lora_b)
        across = self.embedding.as_linear(b).astype(mx.float32).T
        added = (a * (2 * across + a @ (b @ b.T))).sum(1)
        return self.m / _norm(self._squares, added)


def apart(stack: mx.array) -> list[mx.array]:
    """The arrays along a stack's first axis, as views; their gradient is one concatenation."""
    return [array.squeeze(0) for array in mx.split(stack, len(stack))]


def squared_norms(base: nn.Module) -> mx.array:
    """|row|^2 of a layer's weight in float32; a large weight is unpacked in pieces."""
    rows, columns = matrix_shape(base)
    parts = []
    for chunk in row_chunks(rows, columns):
        parts.append(mx.square(_float_weight(base, chunk)).sum(1))
        mx.eval(parts[-1])
    return mx.concatenate(parts)


def _norm(squares: mx.array, added: mx.array) -> mx.array:
    return mx.maximum(mx.sqrt(mx.maximum(squares + added, 0)), _SMALLEST)


def _float_weight(base: nn.Module, rows: slice = slice(None)) -> mx.array:
    if hasattr(base, "bits"):
        return dequantized_weight(base, rows).astype(mx.float32)
    weight: mx.array = base["weight"]
    return weight[rows].astype(mx.float32)


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
    numbers = _CHUNK_NUMBERS if backend.on_cpu() else _CHUNK_NUMBERS_ON_GPU
    size = max(1, numbers // columns)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
