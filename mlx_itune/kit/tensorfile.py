"""Safetensors files: a strict reader of headers and a canonical, durable writer.

The checks are the reference implementation's, before any array library maps the file; what it lets
pass of a header's JSON is refused here. https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.files import open_regular, storage_errors, write_durably
from mlx_itune.kit.json_files import parse_object

Tensor = tuple[str, tuple[int, ...], bytes]

_MAX_SIZE = 2**64 - 1
_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
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

    Raises ModelError for a file that is not exactly what the format says; StorageError.
    """
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
    """Write (dtype, shape, bytes) per name, sorted by name: equal tensors give equal files.

    Raises ValueError for a tensor whose bytes do not fit its shape; StorageError.
    """
    described = {name: tensors[name][:2] for name in sorted(tensors)}
    stream_tensors(path, described, lambda name: (tensors[name][2],), metadata)


def stream_tensors(
    path: Path,
    described: Mapping[str, tuple[str, tuple[int, ...]]],
    parts: Callable[[str], Iterable[bytes]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors in the order of `described` (dtype, shape); memory holds no more than a part of
    one.

    Raises ValueError for bytes that do not fit a shape; StorageError.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, (dtype, shape) in described.items():
        size_bytes = _size_bytes(dtype, shape)
        if size_bytes is None or name == "__metadata__":
            raise ValueError(f"{name}: no tensor can be {dtype} {list(shape)}")
        end = offset + size_bytes
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


def _size_bytes(dtype: str, shape: Sequence[int]) -> int | None:
    """Bytes of a tensor; None for an unknown dtype, beyond 64 bits, or where a byte is shared."""
    bits = _BITS.get(dtype, 0)
    for size in shape:
        bits *= size
        if bits > _MAX_SIZE:
            return None
    return bits // 8 if dtype in _BITS and not bits % 8 else None
