"""Ways to put a low-rank update into a base's weights, from the smallest result to the largest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_itune.kit.errors import ModelError
from mlx_itune.model.compute import dequantized_weight

_GROUP_SIZE = 64
_HALF = {mx.float16, mx.bfloat16}


@dataclass(frozen=True)
class Way:
    """One way to merge: ``requantized`` (the base's own grid), ``touched`` layers at ``bits``,
    ``quantized`` (every layer at ``bits``), ``dequantized``, or ``merged`` (a float base).
    """

    kind: Literal["requantized", "touched", "quantized", "dequantized", "merged"]
    bits: int

    @property
    def name(self) -> str:
        """How users see it."""
        return {
            "requantized": f"requantized at the base's {self.bits} bits",
            "touched": f"adapted layers at {self.bits} bits, the rest as they were",
            "quantized": f"every layer at {self.bits} bits",
            "dequantized": f"dequantized to {self.bits}-bit floats",
            "merged": f"merged in the base's {self.bits}-bit floats",
        }[self.kind]


def ways(model: nn.Module, bits: int | None) -> list[Way]:
    """The ways to try for a base as mlx-lm reads it, smallest first; one where ``bits`` forces it.

    Raises ModelError for bits the base cannot have.
    """
    own = _own_bits(model)
    if own is None:
        size = 8 * _float_type(model).size
        if bits is None or bits == size:
            return [Way("merged", size)]
        return [Way("dequantized", 16) if bits == 16 else Way("quantized", bits)]
    if bits is None:
        wider = [Way("touched", 8)] if own < 8 else []
        return [Way("requantized", own), *wider, Way("dequantized", 16)]
    if bits == 16:
        return [Way("dequantized", 16)]
    if bits == own:
        return [Way("requantized", own)]
    return [Way("touched" if bits > own else "quantized", bits)]


def merge(
    model: nn.Module, deltas: Mapping[str, Any], way: Way
) -> tuple[dict[str, Any], dict[str, dict[str, Any]] | None]:
    """Tensors by name, and per-layer quantization settings (None: nothing is quantized).

    ``deltas[path]`` (the weight's shape, float32) is added to the layer at ``path``.
    Raises ModelError where a delta has no layer.
    """
    tensors: dict[str, Any] = dict(tree_flatten(model.parameters()))
    modules = dict(model.named_modules())
    lost = sorted(set(deltas) - set(modules))
    if lost:
        raise ModelError(f"the base has no layer {lost[0]}")
    settings: dict[str, dict[str, Any]] = {}
    for path, module in modules.items():
        quantizable = hasattr(module, "bits") or hasattr(module, "to_quantized")
        if "weight" in module and (path in deltas or quantizable):
            grid = _target(module, path in deltas, way)
            _change(tensors, settings, path, module, deltas.get(path), grid, way)
    return tensors, settings or None


def _change(
    tensors: dict[str, Any],
    settings: dict[str, dict[str, Any]],
    path: str,
    module: nn.Module,
    delta: Any | None,
    grid: dict[str, Any] | None,
    way: Way,
) -> None:
    """Replace one layer's tensors, unless they stay exactly what they are."""
    quantized = hasattr(module, "bits")
    now = _grid(module) if quantized else None
    if grid:
        settings[path] = grid
    if delta is None and grid == now and way.kind != "dequantized":
        return
    dtype = _layer_type(module)
    weight = dequantized_weight(module) if quantized else module["weight"].astype(mx.float32)
    if delta is not None:
        weight = weight + delta
    for name in ("scales", "biases"):
        tensors.pop(f"{path}.{name}", None)
    if grid is None:
        if way.kind == "dequantized" and dtype not in _HALF:
            dtype = mx.float16
        tensors[f"{path}.weight"] = weight.astype(dtype)
        return
    # MLX keeps the scales in the type of what it quantizes; the base's type keeps activations so.
    parts = mx.quantize(weight.astype(dtype), **grid)
    for name, part in zip(("weight", "scales", "biases"), parts, strict=False):
        tensors[f"{path}.{name}"] = part


def _target(module: nn.Module, touched: bool, way: Way) -> dict[str, Any] | None:
    """The grid a layer shall have; None for floats."""
    own = _grid(module) if hasattr(module, "bits") else None
    if way.kind in ("dequantized", "merged"):
        return None
    affine = {"group_size": _GROUP_SIZE, "bits": way.bits, "mode": "affine"}
    if own is None:
        fits = "weight" in module and module["weight"].shape[-1] % _GROUP_SIZE == 0
        return affine if way.kind == "quantized" and fits else None
    if way.kind == "requantized" or (way.kind == "touched" and not touched):
        return own
    if own["mode"] == "affine":
        affine["group_size"] = own["group_size"]
    return affine if own["bits"] != way.bits else own


def _grid(module: nn.Module) -> dict[str, Any]:
    return {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}


def _own_bits(model: nn.Module) -> int | None:
    bits = [m.bits for _, m in model.named_modules() if hasattr(m, "bits")]
    return max(set(bits), key=bits.count) if bits else None


def _float_type(model: nn.Module) -> Any:
    sizes: dict[Any, int] = {}
    for _, array in tree_flatten(model.parameters()):
        sizes[array.dtype] = sizes.get(array.dtype, 0) + array.size
    return max(sizes, key=lambda dtype: sizes[dtype])


def _layer_type(module: nn.Module) -> Any:
    """The float type a layer's product has in mlx-lm."""
    dtype = module["scales" if hasattr(module, "bits") else "weight"].dtype
    return dtype if mx.issubdtype(dtype, mx.floating) else mx.bfloat16
