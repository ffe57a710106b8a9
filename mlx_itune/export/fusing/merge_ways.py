"""The ways to put an adapter into its base's weights, from the smallest result to the largest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_itune.kit.errors import ModelError, UsageError
from mlx_itune.model.adapters.grid import OnGrid
from mlx_itune.model.adapters.grid_norm import GridNorm

# What a user can ask for; "auto" takes the first way within the limit.
CHOICES = ("auto", "exact", "compensated", "plain", "float")
# Widths of MLX's affine grid, and those worth trying on the layers that the adapter touched.
WIDTHS = (2, 3, 4, 5, 6, 8)
_WIDER = (5, 6, 8)


@dataclass(frozen=True)
class Way:
    """One way to merge.

    exact: new scales and biases, the same codes. requantized: on the base's own grid. touched: the
    adapted layers at ``bits``. quantized: every layer at ``bits``. dequantized: floats. merged: the
    floats of a float base. ``compensated``: rounded for the layers' inputs, not one by one.
    ``dtype``: the type that all the model's floats get, where it is not the base's.
    """

    kind: Literal["exact", "requantized", "touched", "quantized", "dequantized", "merged"]
    bits: int
    compensated: bool = False
    dtype: Any = None

    @property
    def name(self) -> str:
        """How users see it."""
        stem = {
            "exact": f"same {self.bits}-bit codes, new scales",
            "requantized": f"requantized at {self.bits} bits",
            "touched": f"adapted layers at {self.bits} bits",
            "quantized": f"every layer at {self.bits} bits",
            "dequantized": f"dequantized to {self.bits}-bit floats",
            "merged": f"merged in {self.bits}-bit floats",
        }[self.kind]
        stem += ", compensated" if self.compensated else ""
        return stem + (", in float16" if self.dtype is not None else "")

    @property
    def choice(self) -> str:
        """Its name among the choices."""
        if self.kind in ("dequantized", "merged"):
            return "float"
        if self.kind == "exact":
            return "exact"
        return "compensated" if self.compensated else "plain"


def ways(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    *,
    choice: str = "auto",
    bits: int | None = None,
    calibrated: bool = True,
    every: bool = False,
) -> list[Way]:
    """The ways to try for a base as mlx-lm reads it and the adapter's layers, smallest first.

    ``calibrated``: there are rows to compensate errors on. ``every``: those that "auto" would pass
    over, too. Raises UsageError for a width or way that this base and adapter cannot have.
    """
    if choice not in CHOICES:
        raise UsageError(f"there is no way {choice!r}", hint="one of " + ", ".join(CHOICES))
    if bits not in (None, 16, 32, *WIDTHS):
        raise UsageError(f"no grid has {bits} bits", hint=f"one of {WIDTHS} or 16")
    if choice == "compensated" and not calibrated:
        raise UsageError("error compensation needs rows to calibrate on", hint="give more --data")
    found = _all(model, layers, bits, calibrated=calibrated, plain=every or choice == "plain")
    if choice != "auto":
        found = [way for way in found if way.choice == choice]
    if found:
        return found
    if choice == "exact" and not on_the_grid(layers):
        raise ModelError(
            "an exact merge needs an adapter of the grid on a quantized base",
            hint="train with --adapter grid or qalora, or leave --way out",
        )
    asked = f"--way {choice}" + (f" and --bits {bits}" if bits else "")
    raise UsageError(f"{asked}: this base and adapter have no such way", hint="leave one out")


def _all(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    bits: int | None,
    *,
    calibrated: bool,
    plain: bool,
) -> list[Way]:
    own = own_bits(model)
    rounded = [False] * (plain or not calibrated) + [True] * calibrated
    if own is None:
        size = 8 * float_type(model).size
        if bits in (None, size):
            return [Way("merged", size)]
        if bits in (16, 32):
            return [Way("dequantized", bits)]
        return [Way("quantized", bits, c) for c in rounded]
    # Only MLX's affine grid is rounded to with compensation.
    here = rounded if _is_affine(model) else [False]
    same = [*_exact(layers, own), *(Way("requantized", own, c) for c in here)]
    if bits is None:
        wider = [Way("touched", wide, c) for wide in _WIDER if wide > own for c in rounded]
        return [*same, *wider, Way("dequantized", 16)]
    if bits == own:
        return same
    if bits in (16, 32):
        return [Way("dequantized", bits)]
    return [Way("touched" if bits > own else "quantized", bits, c) for c in rounded]


def _exact(layers: Mapping[str, nn.Module], own: int) -> list[Way]:
    """Where the adapter lives on the grid; a grid in bfloat16 holds a qalora's biases roughly."""
    if not on_the_grid(layers):
        return []
    qalora = [layer for layer in layers.values() if "bias_a" in layer and "scale_a" not in layer]
    rough = any(_is_brain(layer) for layer in qalora)
    return [Way("exact", own), *([Way("exact", own, dtype=mx.float16)] if rough else [])]


def on_the_grid(layers: Mapping[str, nn.Module]) -> bool:
    """Whether an adapter moves nothing but its base's scales and biases, and norms."""
    return bool(layers) and all(isinstance(m, (OnGrid, GridNorm)) for m in layers.values())


def _is_brain(layer: nn.Module) -> bool:
    return bool(layer._biases.dtype == mx.bfloat16)


def _is_affine(model: nn.Module) -> bool:
    modes = [m.mode for _, m in model.named_modules() if hasattr(m, "bits")]
    return bool(max(set(modes), key=modes.count) == "affine")


def own_bits(model: nn.Module) -> int | None:
    """The commonest width of a model's quantized layers; None for a float model."""
    bits = [m.bits for _, m in model.named_modules() if hasattr(m, "bits")]
    return max(set(bits), key=bits.count) if bits else None


def float_type(model: nn.Module) -> Any:
    """The type that most of a model's numbers have."""
    sizes: dict[Any, int] = {}
    for _, array in tree_flatten(model.parameters()):
        sizes[array.dtype] = sizes.get(array.dtype, 0) + array.size
    return max(sizes, key=lambda dtype: sizes[dtype])
