"""Put an adapter into its base's weights: the ways, from the smallest result to the largest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_itune.export.fusing.compensate import Calibration, compensated
from mlx_itune.kit.errors import ModelError, UsageError
from mlx_itune.kit.wording import known
from mlx_itune.model.adapters.grid import GridNorm, OnGrid, merged_grid
from mlx_itune.model.engine.compute import dequantized_weight

# What a user can ask for; "auto" takes the first way within the limit.
CHOICES = ("auto", "exact", "compensated", "plain", "float")
# Widths of MLX's affine grid, and those worth trying on the layers that the adapter touched.
WIDTHS = (2, 3, 4, 5, 6, 8)
_WIDER = (5, 6, 8)
# mlx-lm's own choice, and what narrow layers get.
_GROUP_SIZES = (64, 32)
_HALF = {mx.float16, mx.bfloat16}
_NAMES = {
    "exact": "same {}-bit codes, new scales",
    "requantized": "requantized at {} bits",
    "touched": "adapted layers at {} bits",
    "quantized": "every layer at {} bits",
    "dequantized": "dequantized to {}-bit floats",
    "merged": "merged in {}-bit floats",
}
Grid = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """One way to merge. exact: new scales and biases, the same codes. requantized: on the base's
    own grid. touched: the adapted layers at ``bits``. quantized: every layer at ``bits``.
    dequantized: floats. merged: the floats of a float base. ``compensated``: rounded for the
    layers' inputs, not one by one. ``dtype``: the type that all the model's floats get, where it is
    not the base's."""

    kind: Literal["exact", "requantized", "touched", "quantized", "dequantized", "merged"]
    bits: int
    compensated: bool = False
    dtype: Any = None

    @property
    def name(self) -> str:
        """How users see it."""
        stem = _NAMES[self.kind].format(self.bits) + ", compensated" * self.compensated
        return stem if self.dtype is None else f"{stem}, in float16"

    @property
    def choice(self) -> str:
        """Its name among the choices."""
        if self.kind in ("dequantized", "merged"):
            return "float"
        return "exact" if self.kind == "exact" else "compensated" if self.compensated else "plain"


def ways(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    choice: str,
    bits: int | None,
    *,
    calibrated: bool,
    every: bool,
) -> list[Way]:
    """The ways to try for a base and the adapter's layers, smallest first. ``calibrated``: there
    are rows to compensate errors on. ``every``: those that "auto" would pass over, too. Raises
    UsageError, ModelError for a way that this base and adapter cannot have."""
    known("way", choice, CHOICES)
    if bits not in (None, 16, 32, *WIDTHS):
        raise UsageError(f"no grid has {bits} bits", hint=f"one of {WIDTHS} or 16")
    if choice == "compensated" and not calibrated:
        raise UsageError("error compensation needs rows to calibrate on", hint="give more --data")
    plain = every or choice == "plain" or not calibrated
    found = _all(model, layers, bits, [False] * plain + [True] * calibrated)
    if choice != "auto":
        found = [way for way in found if way.choice == choice]
    if found:
        return found
    if choice == "exact" and not on_the_grid(layers):
        what = "an exact merge needs an adapter of the grid on a quantized base"
        raise ModelError(what, hint="train with --adapter grid or qalora, or leave --way out")
    asked = f"--way {choice}" + (f" and --bits {bits}" if bits else "")
    raise UsageError(f"{asked}: this base and adapter have no such way", hint="leave one out")


def on_the_grid(layers: Mapping[str, nn.Module]) -> bool:
    """Whether an adapter moves nothing but its base's scales and biases, and norms."""
    return bool(layers) and all(isinstance(m, (OnGrid, GridNorm)) for m in layers.values())


def _all(
    model: nn.Module, layers: Mapping[str, nn.Module], bits: int | None, rounded: list[bool]
) -> list[Way]:
    """``rounded``: whether with compensation, one after the other."""
    quantized = [m for _, m in model.named_modules() if hasattr(m, "bits")]
    if not quantized:
        sizes: Counter[Any] = Counter()
        for _, array in tree_flatten(model.parameters()):
            sizes[array.dtype] += array.size
        width = 8 * sizes.most_common(1)[0][0].size
        if bits in (None, width):
            return [Way("merged", width)]
        if bits in (16, 32):
            return [Way("dequantized", bits)]
        return [Way("quantized", bits, c) for c in rounded]
    own = Counter(m.bits for m in quantized).most_common(1)[0][0]
    # Only MLX's affine grid is rounded to with compensation.
    is_affine = Counter(m.mode for m in quantized).most_common(1)[0][0] == "affine"
    same = [Way("requantized", own, c) for c in (rounded if is_affine else [False])]
    if on_the_grid(layers):
        # A grid in bfloat16 holds a qalora's biases roughly.
        qalora = [m for m in layers.values() if "bias_a" in m and "scale_a" not in m]
        rough = any(layer._biases.dtype == mx.bfloat16 for layer in qalora)
        same = [Way("exact", own), *[Way("exact", own, dtype=mx.float16)] * rough, *same]
    if bits is None:
        wider = [Way("touched", wide, c) for wide in _WIDER if wide > own for c in rounded]
        return [*same, *wider, Way("dequantized", 16)]
    if bits == own:
        return same
    if bits in (16, 32):
        return [Way("dequantized", bits)]
    return [Way("touched" if bits > own else "quantized", bits, c) for c in rounded]


def merge(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    way: Way,
    calibration: Calibration | None = None,
) -> tuple[dict[str, Any], dict[str, Grid] | None]:
    """Tensors by name, and per-layer quantization settings (None: nothing is quantized).
    ``layers``: the adapter's, by path. Raises ModelError where the base lacks one."""
    tensors: dict[str, Any] = dict(tree_flatten(model.parameters()))
    modules = dict(model.named_modules())
    lost = sorted(set(layers) - set(modules))
    if lost:
        raise ModelError(f"the base has no layer {lost[0]}")
    rounded = {}
    if way.compensated and calibration is not None:
        rounded = _compensated(modules, layers, way, calibration)
    settings: dict[str, Grid] = {}
    for path, module in modules.items():
        quantizable = hasattr(module, "bits") or hasattr(module, "to_quantized")
        if "weight" not in module or not (path in layers or quantizable):
            continue
        layer = layers.get(path)
        if isinstance(layer, GridNorm):
            tensors[f"{path}.weight"] = layer.moved().astype(module["weight"].dtype)
            continue
        grid = _target(module, layer is not None, way)
        if grid:
            settings[path] = grid
        changed = rounded.get(path) or _changed(module, layer, grid, way)
        if changed:
            mx.eval(changed)
            for name in ("scales", "biases"):
                tensors.pop(f"{path}.{name}", None)
            tensors.update({f"{path}.{name}": tensor for name, tensor in changed.items()})
    if way.dtype is not None:
        halves = {name: t.astype(way.dtype) for name, t in tensors.items() if t.dtype in _HALF}
        tensors |= halves
    return tensors, settings or None


def _changed(
    module: nn.Module, layer: nn.Module | None, grid: Grid | None, way: Way
) -> dict[str, Any]:
    """One layer's new tensors by name; nothing where they stay exactly what they are."""
    if layer is None and grid == _grid(module) and way.kind != "dequantized":
        return {}
    if way.kind == "exact" and layer is not None:
        dtype = way.dtype or module["scales"].dtype
        pair = (array.astype(dtype) for array in merged_grid(layer))
        return {"weight": module["weight"], **dict(zip(("scales", "biases"), pair, strict=True))}
    weight, dtype = _weight(module, layer)
    if grid is None:
        if way.kind == "dequantized":
            dtype = mx.float32 if way.bits == 32 else dtype if dtype in _HALF else mx.float16
        return {"weight": weight.astype(dtype)}
    # MLX keeps the scales in the type of what it quantizes; the base's type keeps activations so.
    parts = mx.quantize(weight.astype(dtype), **grid)
    return dict(zip(("weight", "scales", "biases"), parts, strict=False))


def _compensated(
    modules: Mapping[str, nn.Module],
    layers: Mapping[str, nn.Module],
    way: Way,
    calibration: Calibration,
) -> dict[str, dict[str, Any]]:
    """Tensors of the adapted layers whose inputs are known; the others are rounded plainly."""
    done: dict[str, dict[str, Any]] = {}
    for path, moments in calibration.moments():
        grid = _target(modules[path], True, way)
        if grid is None or grid["mode"] != "affine":
            continue
        weight, dtype = _weight(modules[path], layers[path])
        options = {"group_size": grid["group_size"], "bits": grid["bits"], "dtype": dtype}
        if weight.ndim == 2:
            done[path] = compensated(weight, moments.factor(), **options)
            continue
        # An expert that saw nothing has moments of zero, by which it is rounded plainly.
        experts = [compensated(w, moments.factor(e), **options) for e, w in enumerate(weight)]
        done[path] = {n: mx.stack([expert[n] for expert in experts]) for n in experts[0]}
    return done


def _weight(module: nn.Module, layer: nn.Module | None) -> tuple[Any, Any]:
    """The layer's weight in float32, merged where it is adapted; its product's type in mlx-lm."""
    quantized = hasattr(module, "bits")
    weight = dequantized_weight(module) if quantized else module["weight"]
    weight = weight.astype(mx.float32)
    dtype = module["scales" if quantized else "weight"].dtype
    dtype = dtype if mx.issubdtype(dtype, mx.floating) else mx.bfloat16
    return weight if layer is None else weight + layer.delta(), dtype


def _target(module: nn.Module, touched: bool, way: Way) -> Grid | None:
    """The grid a layer shall have; None for floats."""
    own = _grid(module)
    if way.kind in ("dequantized", "merged"):
        return None
    if own is None:
        return _affine(module["weight"].shape[-1], way.bits) if way.kind == "quantized" else None
    keeps = way.kind in ("exact", "requantized") or (way.kind == "touched" and not touched)
    # A layer that has more bits already keeps them.
    if keeps or own["bits"] == way.bits or (way.kind == "touched" and own["bits"] > way.bits):
        return own
    if own["mode"] == "affine":
        return own | {"bits": way.bits}
    return _affine(module["scales"].shape[-1] * own["group_size"], way.bits) or own


def _affine(inputs: int, bits: int) -> Grid | None:
    """None for a width that no group fits."""
    sizes = [size for size in _GROUP_SIZES if inputs % size == 0]
    return {"group_size": sizes[0], "bits": bits, "mode": "affine"} if sizes else None


def _grid(module: nn.Module) -> Grid | None:
    if not hasattr(module, "bits"):
        return None
    return {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
