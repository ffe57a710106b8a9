"""Read a PEFT adapter back with the safetensors package, and recompute its updates in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.nn as nn
import numpy as np

from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.json_files import read_object
from mlx_itune.model.adapters import peft_format
from mlx_itune.model.adapters.lowrank import AdapterLayer
from mlx_itune.model.engine.compute import dequantized_weight

# float32 products in another order; relative to the update's largest entry.
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class PeftVerification:
    """Updates recomputed from the files against the adapter's, entry by entry."""

    layers: int
    tensors: int
    numbers: int
    largest_difference: float


def verify_peft(
    out: Path, model: nn.Module, layers: Mapping[str, AdapterLayer], model_type: str
) -> PeftVerification:
    """Compare B A alpha / r, or what DoRA makes of it, with each layer's own update.

    Raises ModelError where they differ by more than rounding, or a tensor is not accounted for.
    """
    from safetensors.numpy import load_file

    config = read_object(out / peft_format.CONFIG, error=ModelError)
    scale = config["lora_alpha"] / config["r"]
    left = {
        name.removeprefix(peft_format.PREFIX): array
        for name, array in load_file(out / peft_format.TENSORS).items()
    }
    tensors, numbers, largest = len(left), 0, 0.0
    for path, layer in layers.items():
        wanted = np.array(layer.delta())
        got = _update(left, path, layer, scale, wanted.shape, model_type)
        gap = float(np.abs(got - wanted).max())
        if not gap <= _TOLERANCE * max(float(np.abs(wanted).max()), 1e-6):
            raise ModelError(f"the update of {path} reads back as another, by {gap:.3g}")
        largest, numbers = max(largest, gap), numbers + wanted.size
    for name in ("lm_head.lora_A.weight", "lm_head.lora_B.weight"):
        left.pop(name, None)
    if left:
        raise ModelError(f"tensor {min(left)} belongs to no layer", where=str(out))
    return PeftVerification(len(layers), tensors, numbers, largest)


def _update(
    left: dict[str, Any],
    path: str,
    layer: AdapterLayer,
    scale: float,
    shape: tuple[int, ...],
    model_type: str,
) -> Any:
    """One layer's update from PEFT's tensors, which are taken out of `left`."""
    if len(shape) == 3:
        modules = peft_format.expert_modules(path, shape[0], model_type)
        return np.stack([_product(left, module, scale) for module in modules])
    if f"{path}.lora_embedding_A" in left:
        a, b = left.pop(f"{path}.lora_embedding_A"), left.pop(f"{path}.lora_embedding_B")
        if "lm_head.lora_A.weight" in left:
            head = left["lm_head.lora_B.weight"] @ left["lm_head.lora_A.weight"]
            if not np.array_equal(head, (b @ a).T):
                raise ModelError("the tied head's update is not the token table's")
        return (b @ a).T * scale
    update = _product(left, path, scale)
    magnitude = left.pop(f"{path}.lora_magnitude_vector", None)
    if magnitude is None:
        return update
    held = layer["linear"]
    weight = np.array(dequantized_weight(held) if hasattr(held, "bits") else held["weight"])
    tuned = weight.astype(np.float64) + update
    lengths = np.linalg.norm(tuned, axis=1, keepdims=True)
    return magnitude[:, None] / lengths * tuned - weight


def _product(left: dict[str, Any], module: str, scale: float) -> Any:
    a, b = left.pop(f"{module}.lora_A.weight"), left.pop(f"{module}.lora_B.weight")
    return b @ a * scale
