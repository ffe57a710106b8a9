"""The identity of a model's weights, independent of file names, order and sharding."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.files import storage_errors
from mlx_itune.kit.tensorfile import TensorInfo, read_header

_CHUNK_BYTES = 1 << 22


def weight_files(path: Path) -> list[Path]:
    """The safetensors files mlx-lm loads from a model directory, sorted."""
    return sorted(Path(path).glob("model*.safetensors"))


def fingerprint(path: Path) -> str:
    """SHA-256 (hex) over the sorted names, dtypes, shapes and bytes of a model's tensors.

    Streams: memory stays at a few megabytes. Raises ModelError, StorageError.
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
