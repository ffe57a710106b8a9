"""What a grid adapter does to a block's norms: each input of the layers behind it gets a gain.

A group of the grid moves as one for every input in it; the weight of the norm in front moves single
inputs, the same for all outputs. It is a vector of floats, so it merges without loss, too: in
training it is already rounded to the type the base stores it in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from mlx_itune.model.adapters.grid import rounded
from mlx_itune.model.adapters.lowrank import AdapterLayer


class GridNorm(AdapterLayer):
    """A norm whose weight w, or 1 + w where it adds one, is multiplied by 1 + gain."""

    factors: ClassVar[tuple[str, ...]] = ("gain",)

    def __init__(self, base: nn.Module) -> None:
        super().__init__(1.0)
        self.weight = base["weight"]
        self.stored_type = stored_type(base)
        self.freeze()
        self.gain = mx.zeros(self.weight.shape)
        self._added = 0.0 if _is_zero(base) else 1.0
        self._norm = _calling(base)

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self._norm(x, self.moved().astype(self.weight.dtype))
        return y

    def moved(self) -> mx.array:
        """The tuned weight, float32, rounded to what the base's type can say."""
        whole = (self.weight.astype(mx.float32) + self._added) * (1 + self.gain)
        moved: mx.array = rounded(whole - self._added, self.stored_type)
        return moved

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


def stored_type(norm: nn.Module) -> Any:
    """The type a norm's weight has on disk; on a CPU it is computed in float32."""
    return getattr(norm, "stored_type", norm["weight"].dtype)


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


def _is_zero(base: nn.Module) -> bool:
    """Whether the norm gives zeros with a weight of zeros."""
    weight = base["weight"]
    base.weight = mx.zeros_like(weight)
    try:
        return not bool(mx.abs(base(mx.ones((1, weight.size), weight.dtype))).max().item())
    finally:
        base.weight = weight
