"""A GGUF file on its way to disk: the header by the gguf package, the data a tensor at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np

from mlx_itune.export.gguf.plan import Planned
from mlx_itune.kit.files import require_free_bytes, storage_errors, write_durably

_ALIGNMENT_BYTES = gguf.GGUF_DEFAULT_ALIGNMENT


def add_keys(writer: gguf.GGUFWriter, keys: Mapping[str, Any]) -> None:
    """Add keys under the architecture's name, each in the type of its value."""
    for name, value in keys.items():
        key = f"{writer.arch}.{name}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_string(key, str(value))


def header(writer: gguf.GGUFWriter, tensors: Sequence[Planned]) -> bytes:
    """All that comes before the data."""
    for tensor in tensors:
        size_bytes = data_bytes(tensor)
        # With another type than bytes, the shape is taken as it is.
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), size_bytes, raw_dtype=tensor.type
        )
    # The package writes to a path only.
    with tempfile.TemporaryDirectory() as folder, storage_errors(folder):
        path = Path(folder) / "header"
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        start = path.read_bytes()
    return start + bytes(-len(start) % _ALIGNMENT_BYTES)


def write(out: Path, start: bytes, tensors: list[Planned]) -> int:
    """Write a file durably and return its size in bytes; ``tensors`` is emptied on the way.

    Raises what `Planned.chunks` raises, and StorageError.
    """
    needed_bytes = len(start) + sum(data_bytes(t) + _ALIGNMENT_BYTES for t in tensors)
    require_free_bytes(out, needed_bytes, "the GGUF file")
    write_durably(out, _data(start, tensors))
    return out.stat().st_size


def data_bytes(tensor: Planned) -> int:
    """Size of a tensor's data."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[tensor.type]
    return int(np.prod(tensor.shape, dtype=np.int64)) // block * block_bytes


def _data(start: bytes, tensors: list[Planned]) -> Iterator[bytes]:
    yield start
    tensors.reverse()
    while tensors:
        # Taken out of the list, so that its weights leave memory when they are written.
        tensor = tensors.pop()
        yield from tensor.chunks()
        yield bytes(-data_bytes(tensor) % _ALIGNMENT_BYTES)
        del tensor
        mx.clear_cache()
