"""PEFT's adapter_model.safetensors: one layer's factors from its names and shapes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_itune.kit.errors import ModelError
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.adapters.peft_config import PeftConfig

_NAME = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)\."
    r"(?P<part>lora_embedding_[AB]|lora_[AB]|lora_magnitude_vector)(?:\.default)?(?:\.weight)?"
)
_PARTS = {
    "lora_A": "a",
    "lora_B": "b",
    "lora_embedding_A": "a",
    "lora_embedding_B": "b",
    "lora_magnitude_vector": "magnitude",
}
# PEFT saves the tables themselves along with adapters on them, unchanged.
_COPY = re.compile(r".*\.base_layer\.weight")


@dataclass(frozen=True)
class PeftLayer:
    """W + scale * b a: a (rank, in), b (out, rank) float32; of a table a (rank, V), b (dims, rank).

    magnitude: DoRA's lengths (out,).
    """

    a: Any
    b: Any
    scale: float
    magnitude: Any | None
    is_table: bool

    @property
    def rank(self) -> int:
        """The inner width."""
        return int(self.a.shape[0])


def read_layers(file: Path, config: PeftConfig) -> dict[str, PeftLayer]:
    """The layers of a PEFT adapter, by module path. Raises ModelError."""
    found: dict[str, dict[str, Any]] = {}
    for name, tensor in adapters.read_arrays(file).items():
        match = _NAME.fullmatch(name)
        if match is None:
            if _COPY.fullmatch(name):
                continue
            raise ModelError(f"tensor {name} is none of a LoRA", where=str(file))
        parts = found.setdefault(match["module"], {})
        part = _PARTS[match["part"]]
        if part in parts:
            raise ModelError(f"{match['module']} has two of {match['part']}", where=str(file))
        parts[part] = np.array(tensor.astype(mx.float32))
        parts["is_table"] = parts.get("is_table", False) or "embedding" in match["part"]
    if not found:
        raise ModelError("holds no LoRA", where=str(file))
    return {module: _layer(module, parts, config, file) for module, parts in found.items()}


def _layer(module: str, parts: dict[str, Any], config: PeftConfig, file: Path) -> PeftLayer:
    where = str(file)
    for part in ("a", "b"):
        if part not in parts:
            raise ModelError(f"{module} has no lora_{part.upper()}", where=where)
    a, b = parts["a"], parts["b"]
    rank = config.rank_of(module)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise ModelError(
            f"{module} has factors {list(a.shape)} and {list(b.shape)}, the rank is {rank}",
            where=where,
        )
    magnitude = parts.get("magnitude")
    if (magnitude is not None) is not config.dora:
        stated = "use_dora is set" if config.dora else "use_dora is not set"
        raise ModelError(f"{stated}, but {module} says otherwise", where=where)
    if config.dora and parts["is_table"]:
        raise ModelError(f"PEFT's DoRA of a token table ({module}) is another one", where=where)
    if magnitude is not None:
        magnitude = magnitude.reshape(-1)
    return PeftLayer(a, b, config.scale_of(module), magnitude, parts["is_table"])
