"""What a base is: its tensors, and what of its configuration the function depends on."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.nn as nn

from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.files import storage_errors
from mlx_itune.kit.json_files import plain
from mlx_itune.kit.tensorfile import TensorInfo, read_header

_CHUNK_BYTES = 1 << 22


def weight_files(path: Path) -> list[Path]:
    """The safetensors files mlx-lm loads from a model directory, sorted."""
    return sorted(Path(path).glob("model*.safetensors"))


def fingerprint(path: Path) -> str:
    """SHA-256 (hex) over the sorted names, dtypes, shapes and bytes of a model's tensors.

    File names, order and sharding make no difference. Raises ModelError, StorageError.
    """
    tensors: dict[str, tuple[Path, TensorInfo]] = {}
    for file in weight_files(path):
        for name, info in read_header(file).items():
            if name in tensors:
                raise ModelError(f"tensor {name} is in two files", where=str(file))
            tensors[name] = (file, info)
    digest = hashlib.sha256()
    for name in sorted(tensors):
        file, info = tensors[name]
        digest.update(f"{name}\0{info.dtype}\0{info.shape}\0".encode())
        with storage_errors(file), file.open("rb") as stream:
            stream.seek(info.start)
            left_bytes = info.end - info.start
            while left_bytes:
                chunk = stream.read(min(_CHUNK_BYTES, left_bytes))
                if not chunk:
                    raise ModelError("ends too early", where=str(file))
                digest.update(chunk)
                left_bytes -= len(chunk)
    return digest.hexdigest()


def function_of(model: nn.Module, config: Mapping[str, Any]) -> dict[str, Any]:
    """What mlx-lm reads of a config.json, defaults included: rope_theta, norms' epsilon, sizes...

    Two models of equal tensors and equal such values compute the same.
    """
    args = getattr(model, "args", None)
    read = dataclasses.asdict(args) if dataclasses.is_dataclass(args) else dict(config)  # type: ignore[arg-type]
    return {**plain(read), "quantization": plain(config.get("quantization"))}


def changed_values(before: Mapping[str, Any], now: Mapping[str, Any], at: str = "") -> list[str]:
    """Each value that differs, as "rope_theta is 1e6, was 1e4".

    Keys that only one side has, at the top, are of another version of mlx-lm: passed over.
    """
    found: list[str] = []
    for name in (before.keys() | now.keys()) if at else (before.keys() & now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += changed_values(old, new, f"{at}{name}.")
        elif old != new:
            found.append(f"{at}{name} is {new!r}, was {old!r}")
    return sorted(found)
