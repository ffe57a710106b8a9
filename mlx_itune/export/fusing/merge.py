"""Put an adapter into a base's weights, one way or another; layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_itune.export.fusing.calibrate import Calibration
from mlx_itune.export.fusing.compensate import compensated
from mlx_itune.export.fusing.merge_ways import Way
from mlx_itune.kit.errors import ModelError
from mlx_itune.model.adapters.grid import merged_grid
from mlx_itune.model.adapters.grid_norm import GridNorm
from mlx_itune.model.engine.compute import dequantized_weight

# mlx-lm's own choice, and what narrow layers get.
_GROUP_SIZES = (64, 32)
_HALF = {mx.float16, mx.bfloat16}
Grid = dict[str, Any]


def merge(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    way: Way,
    calibration: Calibration | None = None,
) -> tuple[dict[str, Any], dict[str, Grid] | None]:
    """Tensors by name, and per-layer quantization settings (None: nothing is quantized).

    ``layers[path]`` is the adapter's layer for that of the base (as mlx-lm reads it) at ``path``;
    ``calibration`` has what a compensated way needs. Raises ModelError where the base lacks one.
    """
    tensors: dict[str, Any] = dict(tree_flatten(model.parameters()))
    modules = dict(model.named_modules())
    lost = sorted(set(layers) - set(modules))
    if lost:
        raise ModelError(f"the base has no layer {lost[0]}")
    rounded = _compensated(modules, layers, way, calibration) if way.compensated else {}
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
        tensors = {
            name: t.astype(way.dtype) if t.dtype in _HALF else t for name, t in tensors.items()
        }
    return tensors, settings or None


def _changed(
    module: nn.Module, layer: nn.Module | None, grid: Grid | None, way: Way
) -> dict[str, Any]:
    """One layer's new tensors by name; nothing where they stay exactly what they are."""
    now = _grid(module) if hasattr(module, "bits") else None
    if layer is None and grid == now and way.kind != "dequantized":
        return {}
    if way.kind == "exact" and layer is not None:
        dtype = way.dtype or module["scales"].dtype
        pair = (array.astype(dtype) for array in merged_grid(layer))
        return {"weight": module["weight"], **dict(zip(("scales", "biases"), pair, strict=True))}
    dtype = _layer_type(module)
    weight = _weight(module, layer)
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
    calibration: Calibration | None,
) -> dict[str, dict[str, Any]]:
    """Tensors of the adapted layers whose inputs are known; the others are rounded plainly."""
    assert calibration is not None
    done: dict[str, dict[str, Any]] = {}
    for path, moments in calibration.moments():
        module = modules[path]
        grid = _target(module, True, way)
        if grid is None or grid["mode"] != "affine":
            continue
        weight, dtype = _weight(module, layers[path]), _layer_type(module)
        options = {"group_size": grid["group_size"], "bits": grid["bits"], "dtype": dtype}
        if weight.ndim == 2:
            done[path] = compensated(weight, moments.factor(), **options)
            continue
        # An expert that saw nothing has moments of zero, by which it is rounded plainly.
        experts = [
            compensated(weight[e], moments.factor(e), **options) for e in range(weight.shape[0])
        ]
        done[path] = {n: mx.stack([expert[n] for expert in experts]) for n in experts[0]}
    return done


def _weight(module: nn.Module, layer: nn.Module | None) -> Any:
    """The layer's weight, merged where it is adapted; float32."""
    quantized = hasattr(module, "bits")
    weight = dequantized_weight(module) if quantized else module["weight"]
    weight = weight.astype(mx.float32)
    return weight if layer is None else weight + layer.delta()


def _target(module: nn.Module, touched: bool, way: Way) -> Grid | None:
    """The grid a layer shall have; None for floats."""
    own = _grid(module) if hasattr(module, "bits") else None
    if way.kind in ("dequantized", "merged"):
        return None
    if own is None:
        sizes = [size for size in _GROUP_SIZES if module["weight"].shape[-1] % size == 0]
        return _affine(sizes[0], way.bits) if way.kind == "quantized" and sizes else None
    keeps = way.kind in ("exact", "requantized") or (way.kind == "touched" and not touched)
    # A layer that has more bits already keeps them.
    if keeps or own["bits"] == way.bits or (way.kind == "touched" and own["bits"] > way.bits):
        return own
    if own["mode"] == "affine":
        return _affine(own["group_size"], way.bits)
    inputs = module["scales"].shape[-1] * own["group_size"]
    sizes = [size for size in _GROUP_SIZES if inputs % size == 0]
    return _affine(sizes[0], way.bits) if sizes else own


def _affine(group_size: int, bits: int) -> Grid:
    return {"group_size": group_size, "bits": bits, "mode": "affine"}


def _grid(module: nn.Module) -> Grid:
    return {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}


def _layer_type(module: nn.Module) -> Any:
    """The float type a layer's product has in mlx-lm."""
    dtype = module["scales" if hasattr(module, "bits") else "weight"].dtype
    return dtype if mx.issubdtype(dtype, mx.floating) else mx.bfloat16
