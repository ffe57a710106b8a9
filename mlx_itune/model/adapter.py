"""Adapters on disk: mlx-lm's two files, plus where they came from.

adapter_config.json   fine_tune_type, num_layers, lora_parameters {rank, scale, keys, ...}
adapters.safetensors  model.layers.N.self_attn.q_proj.lora_a, ...
provenance.json       base id and fingerprint, data, template, configuration, versions, metrics
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.files import staged_directory, storage_errors, write_durably
from mlx_itune.kit.tensorfile import read_header, write_tensors
from mlx_itune.model import lora
from mlx_itune.model.base import LoadedModel

CONFIG, TENSORS, PROVENANCE = "adapter_config.json", "adapters.safetensors", "provenance.json"


@dataclass(frozen=True)
class AdapterConfig:
    """What rebuilds the LoRA layers; `scale` multiplies the update directly."""

    rank: int
    scale: float
    dropout: float
    keys: tuple[str, ...]
    num_layers: int
    fine_tune_type: str = "lora"

    @property
    def alpha(self) -> float:
        """What PEFT and Ollama divide by the rank to get `scale`."""
        return self.scale * self.rank

    def to_json(self) -> dict[str, Any]:
        """The content of adapter_config.json."""
        return {
            "fine_tune_type": self.fine_tune_type,
            "num_layers": self.num_layers,
            "lora_parameters": {
                "rank": self.rank,
                "scale": self.scale,
                "dropout": self.dropout,
                "keys": list(self.keys),
                "alpha": self.alpha,
            },
        }


@dataclass(frozen=True)
class Adapter:
    """An adapter in memory; `provenance` is empty for one that another tool wrote."""

    config: AdapterConfig
    tensors: Mapping[str, mx.array]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None


def tensors_of(model: nn.Module) -> dict[str, mx.array]:
    """The low-rank pairs of an adapted model by name; float32."""
    return {
        f"{path}.{name}": layer[name].astype(mx.float32)
        for path, layer in lora.adapted(model)
        for name in ("lora_a", "lora_b")
    }


def save(
    out: Path,
    model: nn.Module,
    config: AdapterConfig,
    provenance: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Write a model's adapter as a directory, whole or not at all. Raises StorageError."""
    with staged_directory(Path(out), overwrite=overwrite) as stage:
        write_files(stage, model, config, provenance)


def write_files(
    folder: Path, model: nn.Module, config: AdapterConfig, provenance: Mapping[str, Any]
) -> None:
    """The three files of an adapter, into a directory that exists."""
    write_arrays(folder / TENSORS, tensors_of(model))
    write_durably(folder / CONFIG, _json_bytes(config.to_json()))
    write_durably(folder / PROVENANCE, _json_bytes(provenance))


def write_arrays(path: Path, arrays: Mapping[str, mx.array]) -> None:
    """A safetensors file of float32, int or uint arrays; the same arrays give the same bytes."""
    names = {"float32": "F32", "int32": "I32", "uint32": "U32", "int64": "I64", "uint64": "U64"}
    tensors = {}
    for name, value in arrays.items():
        array = np.array(value)
        tensors[name] = (names[str(array.dtype)], tuple(array.shape), array.tobytes())
    write_tensors(path, tensors, {"format": "mlx"})


def load(path: Path) -> Adapter:
    """Read an adapter directory; every file is checked before it is used. Raises ModelError."""
    path = Path(path)
    if not (path / CONFIG).is_file() or not (path / TENSORS).is_file():
        raise ModelError(
            f"is no adapter directory ({CONFIG} and {TENSORS} make one)", where=str(path)
        )
    config = _config(path / CONFIG)
    provenance = _read_json(path / PROVENANCE) if (path / PROVENANCE).exists() else {}
    read_header(path / TENSORS)
    with storage_errors(path / TENSORS):
        tensors: Any = mx.load(str(path / TENSORS))
    for name, tensor in tensors.items():
        if not mx.all(mx.isfinite(tensor)).item():
            raise ModelError(f"{name} holds NaN or infinity", where=str(path / TENSORS))
    return Adapter(config, tensors, provenance, path)


def apply(loaded: LoadedModel, adapter: Adapter, *, allow_other_base: bool = False) -> None:
    """Put an adapter on its base model, in place.

    Raises ModelError when it was trained on other weights, or a name or shape does not fit.
    """
    where = str(adapter.path) if adapter.path else None
    base = adapter.provenance.get("base", {})
    trained_on = base.get("fingerprint") if isinstance(base, dict) else None
    if trained_on and trained_on != loaded.fingerprint and not allow_other_base:
        raise ModelError(
            f"was trained on {base.get('id', 'another model')} ({trained_on[:12]}), "
            f"not on {loaded.id} ({loaded.fingerprint[:12]})",
            where=where,
            hint="use the base model it was trained on",
        )
    config = adapter.config
    lora.attach(
        loaded.model,
        rank=config.rank,
        scale=config.scale,
        dropout=config.dropout,
        keys=config.keys or None,
        num_layers=config.num_layers,
    )
    expected = tensors_of(loaded.model)
    faults = [f"{name} is missing" for name in sorted(expected.keys() - adapter.tensors.keys())]
    faults += [f"{name} has no layer" for name in sorted(adapter.tensors.keys() - expected.keys())]
    faults += [
        f"{name} is {tensor.shape}, the model needs {expected[name].shape}"
        for name, tensor in sorted(adapter.tensors.items())
        if name in expected and tensor.shape != expected[name].shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ModelError(f"does not fit the model: {', '.join(faults[:3])}{more}", where=where)
    loaded.model.load_weights(
        [(name, tensor.astype(mx.float32)) for name, tensor in adapter.tensors.items()],
        strict=False,
    )
    mx.eval(loaded.model.trainable_parameters())


def _config(file: Path) -> AdapterConfig:
    raw = _read_json(file)
    kind = raw.get("fine_tune_type", "lora")
    if kind != "lora":
        raise ModelError(f"fine_tune_type {kind!r} is not supported, only 'lora'", where=str(file))
    parameters = raw.get("lora_parameters")
    if not isinstance(parameters, dict):
        raise ModelError("has no lora_parameters", where=str(file))
    rank: Any = parameters.get("rank")
    scale: Any = parameters.get("scale")
    dropout, keys = parameters.get("dropout", 0.0), parameters.get("keys")
    num_layers = raw.get("num_layers", -1)
    fair = (
        _is_int(rank)
        and rank > 0
        and _is_number(scale)
        and _is_number(dropout)
        and 0 <= dropout < 1
        and _is_int(num_layers)
        and (keys is None or (isinstance(keys, list) and all(isinstance(k, str) for k in keys)))
    )
    if not fair:
        raise ModelError("rank, scale, dropout, keys or num_layers make no sense", where=str(file))
    return AdapterConfig(rank, float(scale), float(dropout), tuple(keys or ()), num_layers)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        with storage_errors(file):
            value = json.loads(file.read_bytes())
    except ValueError as error:
        raise ModelError(f"is not valid JSON ({error})", where=str(file)) from error
    if not isinstance(value, dict):
        raise ModelError("is not a JSON object", where=str(file))
    return value
