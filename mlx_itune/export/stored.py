"""Weights as mlx-lm stores them, and the numbers that they stand for. MLX's affine weight is w = s
q + b, one scale s and bias b for 32, 64 or 128 neighbours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from numpy.typing import NDArray


@dataclass(frozen=True)
class Stored:
    """A weight as it lies on disk: (..., rows, columns), packed where ``bits`` says so. ``weight``
    uint32 codes, ``scales`` and ``biases`` (..., rows, groups); or floats alone."""

    name: str
    weight: mx.array
    scales: mx.array | None = None
    biases: mx.array | None = None
    group_size: int = 0
    bits: int = 0
    mode: str = "float"

    @property
    def shape(self) -> tuple[int, ...]:
        """The logical shape."""
        if self.scales is None:
            return tuple(self.weight.shape)
        return (*self.weight.shape[:-1], self.scales.shape[-1] * self.group_size)

    def flat(self) -> Stored:
        """The same as one matrix: experts one below the other."""
        return self._each(lambda a: a.reshape(-1, a.shape[-1]))

    def rows(self, which: int | slice | mx.array) -> Stored:
        """Some rows of a matrix, some entries of a vector, or one expert of a stack."""
        return self._each(lambda a: a[which])

    def floats(self) -> mx.array:
        """The numbers, float32."""
        if self.scales is None:
            return self.weight.astype(mx.float32)
        if self.mode != "affine":
            return self._dequantized(self.scales, None).astype(mx.float32)
        assert self.biases is not None
        return self._dequantized(self.scales.astype(mx.float32), self.biases.astype(mx.float32))

    def codes(self) -> NDArray[np.uint8]:
        """The integers q of an affine weight, (rows, columns) uint8."""
        assert self.scales is not None
        one = mx.ones(self.scales.shape)
        return np.array(self._dequantized(one, mx.zeros(self.scales.shape)).astype(mx.uint8))

    def _dequantized(self, scales: mx.array, biases: mx.array | None) -> mx.array:
        return mx.dequantize(
            self.weight, scales, biases, group_size=self.group_size, bits=self.bits, mode=self.mode
        )

    def _each(self, change: Callable[[mx.array], mx.array]) -> Stored:
        scales, biases = (None if a is None else change(a) for a in (self.scales, self.biases))
        return replace(self, weight=change(self.weight), scales=scales, biases=biases)


def stored_tensors(model: nn.Module) -> dict[str, Stored]:
    """Every parameter of a model by its name, the parts of a packed weight as one."""
    parameters = dict(tree_flatten(model.parameters()))
    found = {}
    for path, module in model.named_modules():
        if hasattr(module, "bits") and "weight" in module:
            name = f"{path}.weight"
            weight = parameters.pop(name)
            scales, biases = (parameters.pop(f"{path}.{n}", None) for n in ("scales", "biases"))
            grid = module.group_size, module.bits, module.mode
            found[name] = Stored(name, weight, scales, biases, *grid)
    return found | {name: Stored(name, array) for name, array in parameters.items()}
