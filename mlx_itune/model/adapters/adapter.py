"""Adapters on disk: mlx-lm's two files, plus where they came from.

adapter_config.json   fine_tune_type, num_layers, lora_parameters {rank, scale, keys, ...}
adapters.safetensors  model.layers.N.self_attn.q_proj.lora_a, ...
grid.safetensors      of a grid or qalora adapter: the factors themselves, float32
provenance.json       base id and fingerprint, data, template, configuration, versions, metrics

mlx-lm knows no adapter of the grid. For it, adapters.safetensors holds the tuned scales and
biases (fine_tune_type "full") or, of qalora, the LoRA that it is; grid.safetensors is what we read,
and the other file is checked against it.
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
from mlx_itune.kit.files import sha256_file, staged_directory, storage_errors, write_durably
from mlx_itune.kit.tensorfile import read_header, write_tensors
from mlx_itune.model.adapters import lora
from mlx_itune.model.loading.base import LoadedModel

CONFIG, TENSORS, PROVENANCE = "adapter_config.json", "adapters.safetensors", "provenance.json"
GRID = "grid.safetensors"
# How mlx-lm reads each kind; and what a file that says only this is taken for.
_FINE_TUNE_TYPES = {
    "lora": "lora",
    "rslora": "lora",
    "dora": "dora",
    "grid": "full",
    "qalora": "lora",
}
_NAMES = {
    "float32": "F32",
    "float16": "F16",
    "int32": "I32",
    "uint32": "U32",
    "int64": "I64",
    "uint64": "U64",
}


@dataclass(frozen=True)
class AdapterConfig:
    """What rebuilds the adapter's layers; `scale` multiplies the update directly."""

    rank: int
    scale: float
    dropout: float
    keys: tuple[str, ...]
    num_layers: int
    kind: str = "lora"

    @property
    def fine_tune_type(self) -> str:
        """What mlx-lm calls this kind."""
        return _FINE_TUNE_TYPES[self.kind]

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
            "mlx_itune": {"v": 1, "adapter": self.kind},
        }


@dataclass(frozen=True)
class Adapter:
    """An adapter in memory; `provenance` is empty for one that another tool wrote.

    tensors: the factors. shipped: of an adapter of the grid, what mlx-lm gets in their place.
    """

    config: AdapterConfig
    tensors: Mapping[str, mx.array]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None
    shipped: Mapping[str, mx.array] = field(default_factory=dict)


def config_of(
    model: nn.Module, *, kind: str, rank: int, scale: float, dropout: float = 0.0
) -> AdapterConfig:
    """The configuration of the adapter that is on a model."""
    keys, layers = lora.placed(model)
    return AdapterConfig(rank, scale, dropout, keys, layers, kind)


def tensors_of(model: nn.Module) -> dict[str, mx.array]:
    """The factors of an adapted model by name; float32."""
    return {
        f"{path}.{name}": layer[name].astype(mx.float32)
        for path, layer in lora.adapted(model)
        for name in layer.factors
    }


def shipped_by(model: nn.Module) -> dict[str, mx.array]:
    """What adapters.safetensors holds where that is not the factors; empty where it is."""
    return {
        f"{path}.{name}": array
        for path, layer in lora.adapted(model)
        for name, array in layer.shipped().items()
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
    """The files of an adapter, into a directory that exists."""
    shipped, factors = shipped_by(model), tensors_of(model)
    if shipped:
        write_arrays(folder / GRID, factors)
    write_arrays(folder / TENSORS, shipped or factors)
    write_durably(folder / CONFIG, _json_bytes(config.to_json()))
    write_durably(folder / PROVENANCE, _json_bytes(provenance))


def write_arrays(path: Path, arrays: Mapping[str, mx.array]) -> None:
    """A safetensors file of float, int or uint arrays; the same arrays give the same bytes."""
    tensors = {}
    for name, value in arrays.items():
        # NumPy has no bfloat16; its bytes are those of a 16-bit integer.
        brain = value.dtype == mx.bfloat16
        array = np.array(value.view(mx.uint16) if brain else value)
        dtype = "BF16" if brain else _NAMES[str(array.dtype)]
        tensors[name] = (dtype, tuple(array.shape), array.tobytes())
    write_tensors(path, tensors, {"format": "mlx"})


def load(path: Path) -> Adapter:
    """Read an adapter directory; every file is checked before it is used. Raises ModelError."""
    path = Path(path)
    if not (path / CONFIG).is_file() or not (path / TENSORS).is_file():
        raise ModelError(
            f"is no adapter directory ({CONFIG} and {TENSORS} make one)", where=str(path)
        )
    config = _config(path / CONFIG)
    provenance = read_json(path / PROVENANCE) if (path / PROVENANCE).exists() else {}
    tensors = read_arrays(path / TENSORS)
    if config.kind not in lora.ON_THE_GRID:
        return Adapter(config, tensors, provenance, path)
    if not (path / GRID).is_file():
        raise ModelError(f"a {config.kind} adapter has a {GRID}; it is missing", where=str(path))
    return Adapter(config, read_arrays(path / GRID), provenance, path, tensors)


def apply(loaded: LoadedModel, adapter: Adapter, *, allow_other_base: bool = False) -> None:
    """Put an adapter on its base model, in place.

    Raises ModelError when it was trained on other weights or with another tokenizer, a name or
    shape does not fit, or the two files of an adapter of the grid do not say the same.
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
    if not allow_other_base:
        _require_tokenizer(loaded, adapter, where)
    config, model = adapter.config, loaded.model
    # To mlx-lm, no number of layers, or one beyond the model's, is all of them.
    some = 0 < config.num_layers <= len(model.layers)
    lora.attach(
        model,
        rank=config.rank,
        scale=config.scale,
        dropout=config.dropout,
        keys=config.keys or None,
        num_layers=config.num_layers if some else -1,
        kind=config.kind,
    )
    _require_fit(adapter.tensors, tensors_of(model), where)
    model.load_weights(
        [(name, tensor.astype(mx.float32)) for name, tensor in adapter.tensors.items()],
        strict=False,
    )
    mx.eval(model.trainable_parameters())
    if adapter.shipped:
        _require_same(adapter.shipped, shipped_by(model), where)
    for _, layer in lora.adapted(model):
        layer.settle()


def _require_tokenizer(loaded: LoadedModel, adapter: Adapter, where: str | None) -> None:
    """The same ids for the same text, as far as the file tells."""
    trained = adapter.provenance.get("tokenizer", {})
    digest = trained.get("sha256") if isinstance(trained, dict) else None
    file = loaded.path / "tokenizer.json"
    if digest and file.is_file() and sha256_file(file) != digest:
        raise ModelError(
            f"was trained with another tokenizer than {loaded.id} has now",
            where=where,
            hint="put back the tokenizer.json it was trained with",
        )


def _require_fit(
    given: Mapping[str, mx.array], expected: Mapping[str, mx.array], where: str | None
) -> None:
    faults = [f"{name} is missing" for name in sorted(expected.keys() - given.keys())]
    faults += [f"{name} has no layer" for name in sorted(given.keys() - expected.keys())]
    faults += [
        f"{name} is {tensor.shape}, the model needs {expected[name].shape}"
        for name, tensor in sorted(given.items())
        if name in expected and tensor.shape != expected[name].shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ModelError(f"does not fit the model: {', '.join(faults[:3])}{more}", where=where)


def _require_same(
    shipped: Mapping[str, mx.array], expected: Mapping[str, mx.array], where: str | None
) -> None:
    """Equal but for the last two bits, as another device may have rounded otherwise."""
    _require_fit(shipped, expected, where)
    for name, ours in expected.items():
        theirs = shipped[name]
        wide = ours.astype(mx.float32)
        slack = 4 * mx.finfo(ours.dtype).eps * mx.abs(wide).max()
        if theirs.dtype != ours.dtype or (mx.abs(theirs.astype(mx.float32) - wide).max() > slack):
            raise ModelError(
                f"{name} in {TENSORS} is not what {GRID} makes of this base",
                where=where,
                hint="the files are not of one adapter, or the base is another one",
            )


def read_arrays(file: Path) -> dict[str, mx.array]:
    """The arrays of a safetensors file, finite floats all of them. Raises ModelError."""
    read_header(file)
    with storage_errors(file):
        tensors: Any = mx.load(str(file))
    for name, tensor in tensors.items():
        if not mx.issubdtype(tensor.dtype, mx.floating):
            raise ModelError(f"{name} holds no floating-point numbers", where=str(file))
        if not mx.all(mx.isfinite(tensor)).item():
            raise ModelError(f"{name} holds NaN or infinity", where=str(file))
    return dict(tensors)


def _config(file: Path) -> AdapterConfig:
    raw = read_json(file)
    kind = _kind(raw, file)
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
    return AdapterConfig(rank, float(scale), float(dropout), tuple(keys or ()), num_layers, kind)


def _kind(raw: Mapping[str, Any], file: Path) -> str:
    stated, ours = raw.get("fine_tune_type", "lora"), raw.get("mlx_itune", {})
    kind = ours.get("adapter", stated) if isinstance(ours, dict) else None
    if isinstance(kind, str) and _FINE_TUNE_TYPES.get(kind) == stated:
        return kind
    raise ModelError(
        f"fine_tune_type {stated!r} (adapter {kind!r}) is not supported, only "
        + ", ".join(_FINE_TUNE_TYPES),
        where=str(file),
    )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ModelError, StorageError."""
    try:
        with storage_errors(file):
            value = json.loads(file.read_bytes())
    except ValueError as error:
        raise ModelError(f"is not valid JSON ({error})", where=str(file)) from error
    if not isinstance(value, dict):
        raise ModelError("is not a JSON object", where=str(file))
    return value
