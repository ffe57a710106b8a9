"""An adapter that lives on the quantization grid w = s q + b, and so merges into the same codes q.

Low-rank updates of both, s' = s (1 + u), b' = b (1 + u) + v, one u and one v per output row and
group: u moves the weights of a group in proportion, v all alike. Kin: PEQA (2305.14152), which
learns the scales alone, at full rank. s' and b' are rounded to the type the base stores them in,
in training too (the gradient passes through), so what is trained is what a merge ships.

u = scale sqrt(in) (A_s B_s)^T and v = scale (A_b B_b)^T. With A drawn as LoRA's and weights of
about 1 / sqrt(in), a step of B moves the weights about as far as one of LoRA's B does, so that
learning rates are of the same size.

A group moves as one for every input in it; the weight of the norm in front moves single inputs,
the same for all outputs (`GridNorm`). It is a vector of floats, so it merges without loss, too.

QA-LoRA (2309.14717, section 3.3) is a LoRA whose A is constant within a group: what it adds is
constant there too, and merges into the biases. Others load it as the LoRA that it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from mlx_itune.kit.errors import ModelError
from mlx_itune.model.adapters.lowrank import (
    AdapterLayer,
    Give,
    LoRAEmbedding,
    LoRALinear,
    LoRASwitchLinear,
    LowRank,
    apart,
    row_chunks,
    uniform,
)
from mlx_itune.model.engine.compute import affine, packed
from mlx_itune.model.engine.cpu import on_one_stream

Arrays = list[mx.array]


class OnGrid:
    """An adapter layer that moves the base's grid."""

    def moved(self) -> tuple[mx.array, mx.array]:
        """The tuned (scales, biases), float32 (..., out, groups)."""
        raise NotImplementedError


class _Grid(OnGrid, AdapterLayer):
    """scale_a, bias_a (..., groups, rank) and scale_b, bias_b (..., rank, out); float32."""

    factors: ClassVar[tuple[str, ...]] = ("scale_a", "scale_b", "bias_a", "bias_b")

    def __init__(self, base: nn.Module, rank: int, scale: float, key: mx.array) -> None:
        super().__init__(scale)
        stored = packed(base)
        assert stored is not None and stored.biases is not None
        self.group_size, self.bits, self.mode = stored.group_size, stored.bits, stored.mode
        # Where the base's weight stood in floats, codes of a byte take its place.
        self._is_unpacked = not hasattr(base, "bits")
        self._type = base["weight" if self._is_unpacked else "scales"].dtype
        self.weight = stored.codes() if self._is_unpacked else stored.weight
        self.scales, self.biases = stored.scales, stored.biases
        if base.get("bias") is not None:
            self.bias = base["bias"]
        self.freeze()
        *experts, outputs, groups = self.scales.shape
        inputs = groups * self.group_size
        self._inputs = inputs
        self._made: Arrays | None = None
        keys = mx.random.split(key)
        for name, draw in zip(("scale", "bias"), keys, strict=True):
            self[f"{name}_a"] = uniform((*experts, groups, rank), inputs, draw)
            self[f"{name}_b"] = mx.zeros((*experts, rank, outputs))

    def moves(self) -> Arrays:
        """u and v, (..., out, groups) float32."""
        if "u" in self:
            return [self.u, self.v]
        return _moves(self.scale, self._inputs, {name: self[name] for name in self.factors})

    def moved(self) -> tuple[mx.array, mx.array]:
        """The tuned (scales, biases), float32, rounded to what the base's type can say."""
        return _tuned(self.moves(), [self.scales, self.biases])

    def let_go(self) -> None:
        """The step is over: forget u and v and what was made of them."""
        self._made = None
        self.pop("u", None)
        self.pop("v", None)

    def _entailed(self) -> Any:
        """The tuned grid in the types of the base's: nothing is lost."""
        return list(self.shipped().values())

    def _settled(self) -> Any:
        """As ever, but for a step, whose factors are not the layer's own."""
        return super()._settled() if self._made is None else None

    def shipped(self) -> dict[str, mx.array]:
        """The tuned grid in the type of the base's, under the base's names."""
        scales, biases = self.moved()
        kinds = self.scales.dtype, self.biases.dtype
        return {"scales": scales.astype(kinds[0]), "biases": biases.astype(kinds[1])}

    def delta(self) -> mx.array:
        """What is added to the base's weight: (..., out, in) float32."""
        return self._float(*self.moved()) - self._float(self.scales, self.biases)

    def _float(self, scales: mx.array, biases: mx.array, dtype: Any = mx.float32) -> mx.array:
        if self._is_unpacked:
            return affine(self.weight, scales, biases).astype(dtype)
        parts = self.weight, scales.astype(mx.float32), biases.astype(mx.float32)
        return mx.dequantize(*parts, **self._kernel_options()).astype(dtype)

    def _kernel_options(self) -> dict[str, Any]:
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}


class GridLinear(_Grid):
    """A quantized linear layer with its grid moved.

    The gradient with respect to u is the weight's gradient times the weight, summed over each
    group, and that with respect to v its sum.
    """

    def __init__(self, base: nn.Module, rank: int, scale: float, key: mx.array) -> None:
        super().__init__(base, rank, scale, key)
        # As the base computes it: by the quantized kernel, or by a product of floats.
        self.unpacks = self._is_unpacked or getattr(base, "unpacks", False)
        self.unpacks_back = self.unpacks
        self._adds_bias = isinstance(base, nn.Linear) and "bias" in self

    @classmethod
    def together(cls, layers: Sequence[AdapterLayer], dtype: Any) -> Give:
        """u and v, which are products of factors, of all layers at once; and what is tuned."""
        scale, inputs = layers[0].scale, layers[0]._inputs
        grids = []
        for name in ("scales", "biases"):
            grids.append(mx.stack([layer[name] for layer in layers]))
            # A copy that the layers share.
            for layer, array in zip(layers, apart(grids[-1]), strict=True):
                layer[name] = array
            mx.eval([grids[-1], *(layer[name] for layer in layers)])

        def give(stacks: Mapping[str, mx.array]) -> None:
            moves = _moves(scale, inputs, stacks)
            for layer, *own in zip(layers, *map(apart, moves), strict=True):
                layer.u, layer.v = own
            if layers[0]._made is not None:
                return
            # Once in a step, whatever its micro-batches; u and v have the gradient.
            tuned = zip(_tuned([*map(mx.stop_gradient, moves)], grids), grids, strict=True)
            arrays = [array.astype(grid.dtype) for array, grid in tuned]
            for layer, *made in zip(layers, *map(apart, arrays), strict=True):
                layer._made = [layer._float(*made, layer._type)] if layer._is_unpacked else made

        return give

    def __call__(self, x: mx.array) -> mx.array:
        kept: Arrays | None = self._settled()
        if kept is None:
            # What is tuned has no gradient: u and v have it.
            made: Arrays = self._made or [mx.stop_gradient(array) for array in self._entailed()]

            def forward(x: mx.array, *_: mx.array) -> mx.array:
                return self._product(x, *made)

            def backward(primals: Arrays, cotangent: mx.array, _: Any) -> Arrays:
                d_x = self._product(cotangent, *made, transpose=False)
                return [d_x, *self._gradients(primals[0], cotangent)]

            y: mx.array = on_one_stream(forward, backward)(x, *self.moves())
        else:
            y = self._product(x, *kept)
        return y + self.bias if "bias" in self and not self._adds_bias else y

    def _product(self, x: mx.array, *made: mx.array, transpose: bool = True) -> mx.array:
        """x times the tuned weight, transposed as a layer does it or as its gradient does."""
        if self.unpacks if transpose else self.unpacks_back:
            if not self._is_unpacked:
                # On the way back not before there is something to multiply.
                parts = list(made) if transpose else mx.depends(list(made), [x])
                made = (self._float(parts[0], parts[1], x.dtype),)
            if not transpose:
                return x @ made[0]
            # As nn.Linear does it, to the last bit.
            return mx.addmm(self.bias, x, made[0].T) if self._adds_bias else x @ made[0].T
        scales, biases = (array.astype(x.dtype) for array in made)
        options = {"transpose": transpose, **self._kernel_options()}
        return mx.quantized_matmul(x, self.weight, scales, biases, **options)

    def _entailed(self) -> Any:
        return (
            [self._float(*self.moved(), self._type)] if self._is_unpacked else super()._entailed()
        )

    def _gradients(self, x: mx.array, cotangent: mx.array) -> Arrays:
        """d loss / d (u, v), (out, groups) each; the weight's is made a piece of rows at a time."""
        outputs, groups = self.scales.shape
        flat_x, flat = x.reshape(-1, x.shape[-1]), cotangent.reshape(-1, outputs)
        d_v = flat.T @ flat_x.reshape(-1, groups, self.group_size).sum(-1)
        pieces: Arrays = []
        for rows in row_chunks(outputs, flat_x.shape[-1]):
            # One after the other, as MLX would make all the pieces side by side.
            left = mx.depends(flat[:, rows].T, pieces[-1:]) if pieces else flat[:, rows].T
            gradient = left @ flat_x
            if self._is_unpacked:
                other = self.weight[rows].astype(gradient.dtype)
            else:
                grid = [a[rows].astype(x.dtype) for a in (self.scales, self.biases)]
                other = mx.dequantize(self.weight[rows], grid[0], grid[1], **self._kernel_options())
            pieces.append((gradient * other).reshape(-1, groups, self.group_size).sum(-1))
        d_u = mx.concatenate(pieces) if len(pieces) > 1 else pieces[0]
        # Times the codes so far, where these are stored.
        return [self.scales * d_u + self.biases * d_v if self._is_unpacked else d_u, d_v]


class GridEmbedding(GridLinear):
    """The same for a token table, as a table and as an output head."""

    def __call__(self, x: mx.array) -> mx.array:
        kept: Arrays | None = None if self._is_unpacked else self._settled()
        if kept is None:
            grid = [self.scales[x], self.biases[x]]
            kept = [*_tuned([array[x] for array in self.moves()], grid)]
        else:
            kept = [array[x] for array in kept]
        scales, biases = kept
        if self._is_unpacked:
            return affine(self.weight[x], scales, biases).astype(self._type)
        parts = self.weight[x], scales.astype(self._type), biases.astype(self._type)
        return mx.dequantize(*parts, **self._kernel_options())

    def as_linear(self, x: mx.array) -> mx.array:
        """The table as an output head, x (..., dims) to (..., vocabulary)."""
        return super().__call__(x)


class GridSwitchLinear(_Grid):
    """The same for the experts of a mixture, each with a grid and factors of its own."""

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        def product(x: mx.array, scales: mx.array, biases: mx.array) -> mx.array:
            chosen: dict[str, Any] = {"rhs_indices": indices, "sorted_indices": sorted_indices}
            if self._is_unpacked:
                weight = self._float(scales, biases, x.dtype).swapaxes(-1, -2)
                return mx.gather_mm(x, weight, **chosen)
            s, b = scales.astype(x.dtype), biases.astype(x.dtype)
            return mx.gather_qmm(x, self.weight, s, b, **chosen, **self._kernel_options())

        def backward(primals: Arrays, cotangent: mx.array, _: Any) -> Arrays:
            # The float weights are made again here, so that none is kept from the forward pass.
            return mx.vjp(product, primals, [cotangent])[1]

        y: mx.array = on_one_stream(product, backward)(x, *self.moved())
        return y + mx.expand_dims(self.bias[indices], -2) if "bias" in self else y


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


class GridNorm(AdapterLayer):
    """A norm whose weight w, or 1 + w where it adds one, is multiplied by 1 + gain."""

    factors: ClassVar[tuple[str, ...]] = ("gain",)

    def __init__(self, base: nn.Module) -> None:
        super().__init__(1.0)
        self.weight = base["weight"]
        # On disk; on a CPU norms are computed in float32.
        self.stored_type = getattr(base, "stored_type", base["weight"].dtype)
        self.freeze()
        self.gain = mx.zeros(self.weight.shape)
        self._norm = _calling(base)
        # Whether zeros come of a weight of zeros, or the norm adds one to it.
        of_zeros = self._norm(mx.ones_like(self.weight)[None], mx.zeros_like(self.weight))
        self._added = 1.0 if mx.any(of_zeros != 0).item() else 0.0

    def __call__(self, x: mx.array) -> mx.array:
        return self._norm(x, self.moved().astype(self.weight.dtype))

    def moved(self) -> mx.array:
        """The tuned weight, float32, rounded to what the base's type can say."""
        whole = (self.weight.astype(mx.float32) + self._added) * (1 + self.gain)
        return rounded(whole - self._added, self.stored_type)

    def delta(self) -> mx.array:
        """What is added to the base's weight: (dims,) float32."""
        added: mx.array = self.moved() - self.weight.astype(mx.float32)
        return added

    def shipped(self) -> dict[str, mx.array]:
        """The tuned weight in the base's type, under the base's name."""
        return {"weight": self.moved().astype(self.stored_type)}


def is_norm(module: nn.Module) -> bool:
    """Whether a grid adapter knows this norm: an RMSNorm of MLX's, or of mlx-lm's under that name.

    One that takes more than its input (a gate) is none.
    """
    named = isinstance(module, nn.RMSNorm) or type(module).__name__ == "RMSNorm"
    return named and "weight" in module and module["weight"].ndim == 1


def _calling(base: nn.Module) -> Callable[[mx.array, mx.array], mx.array]:
    """The norm with another weight. Held in a function, it is no part of the model any more."""
    base.unfreeze()

    def call(x: mx.array, weight: mx.array) -> mx.array:
        before = base["weight"]
        base.weight = weight
        try:
            y: mx.array = base(x)
        finally:
            base.weight = before
        return y

    return call


def merged_grid(layer: nn.Module) -> tuple[mx.array, mx.array]:
    """The (scales, biases) that replace the base's, float32 (..., out, groups); codes stay.

    A grid layer's are exact in the type of the base's. Raises ModelError for another adapter.
    """
    if not isinstance(layer, OnGrid):
        raise ModelError(f"{type(layer).__name__} does not live on the grid")
    return layer.moved()


def rounded(wanted: mx.array, dtype: Any) -> mx.array:
    """The nearest numbers that `dtype` can say, in float32; the gradient passes straight."""
    if dtype == mx.float32:
        return wanted
    near = wanted.astype(dtype).astype(mx.float32)
    return wanted + mx.stop_gradient(near - wanted)


def _moves(scale: float, inputs: int, factors: Mapping[str, mx.array]) -> Arrays:
    """u and v of one layer's factors, or of many layers'."""
    u, v = (
        factors[f"{name}_b"].swapaxes(-1, -2) @ factors[f"{name}_a"].swapaxes(-1, -2)
        for name in ("scale", "bias")
    )
    return [(scale * math.sqrt(inputs)) * u, v if scale == 1 else scale * v]


def _tuned(moves: Arrays, grid: Sequence[mx.array]) -> tuple[mx.array, mx.array]:
    """s' and b', rounded to the types of s and b but in float32."""
    (u, v), (scales, biases) = moves, (array.astype(mx.float32) for array in grid)
    tuned = rounded(scales * (1 + u), grid[0].dtype)
    return tuned, rounded(biases * (1 + u) + v, grid[1].dtype)
