"""Safetensors files: a strict reader of headers and a canonical, durable writer. The checks are the
reference implementation's, before any array library maps the file; what it lets pass of a header's
JSON is refused here. https://github.com/huggingface/safetensors#format"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.files import open_regular, storage_errors, write_durably
from mlx_itune.kit.json_files import parse_object

Tensor = tuple[str, tuple[int, ...], bytes]

# Bytes of a number, of the types that are written.
_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8"), 1),
    **dict.fromkeys(("F16", "BF16", "U16", "I16"), 2),
    **dict.fromkeys(("F32", "U32", "I32"), 4),
    **dict.fromkeys(("F64", "U64", "I64"), 8),
}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a file: `start` and `end` are byte offsets from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file, in the order of their data; only the header is read.
    Raises ModelError for a file that is not exactly what the format says; StorageError."""
    path, broken = Path(path), "not a valid safetensors file"
    with open_regular(path, ModelError) as file, storage_errors(path):
        length = int.from_bytes(file.read(8), "little")
        try:
            with safe_open(path, "numpy"):
                header = file.read(length)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{broken}: {error}", where=str(path)) from None
    if not header.startswith(b"{"):
        raise ModelError(f"{broken}: the header is not a JSON object", where=str(path))
    table = parse_object(header, where=str(path), error=ModelError)
    table.pop("__metadata__", None)
    found = {}
    for name, entry in sorted(table.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        found[name] = TensorInfo(entry["dtype"], tuple(entry["shape"]), start, end)
    return found


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write (dtype, shape, bytes) per name, sorted by name: equal tensors give equal files. Raises
    ValueError for a tensor whose bytes do not fit its shape; StorageError."""
    described = {name: tensors[name][:2] for name in sorted(tensors)}
    stream_tensors(path, described, lambda name: (tensors[name][2],), metadata)


def stream_tensors(
    path: Path,
    described: Mapping[str, tuple[str, tuple[int, ...]]],
    parts: Callable[[str], Iterable[bytes]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors in the order of `described` (dtype, shape); memory holds no more than a part of
    one. Raises ValueError for bytes that do not fit a shape; StorageError."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, (dtype, shape) in described.items():
        if dtype not in _BYTES or name == "__metadata__":
            raise ValueError(f"{name}: no tensor can be {dtype} {list(shape)}")
        end = offset + _BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), sort_keys=True).encode()
    text += b" " * (-len(text) % 8)

    def chunks() -> Iterator[bytes]:
        yield len(text).to_bytes(8, "little") + text
        for name in described:
            start, end = header[name]["data_offsets"]
            for part in parts(name):
                start += len(part)
                yield part
            if start != end:
                raise ValueError(f"{name}: the bytes do not fit {described[name]}")

    write_durably(path, chunks())
