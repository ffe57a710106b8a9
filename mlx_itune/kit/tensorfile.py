"""Safetensors files: a strict reader of headers and a canonical, durable writer.

The checks are those of the reference implementation (the Rust crate `safetensors`), done here
before any array library maps the file. https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.files import open_regular, storage_errors, write_durably

Tensor = tuple[str, tuple[int, ...], bytes]

_MAX_HEADER_BYTES = 100_000_000
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


class _Broken(Exception):
    pass


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file, in the order of their data.

    Raises ModelError for a file that is not exactly what the format says; StorageError when it
    cannot be read. Only the header is read.
    """
    path = Path(path)
    with open_regular(path, ModelError) as file, storage_errors(path):
        size_bytes = path.stat().st_size
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        enough = len(prefix) == 8 and length <= min(_MAX_HEADER_BYTES, size_bytes - 8)
        header = file.read(length) if enough else b""
    try:
        if len(prefix) < 8:
            raise _Broken("the file is too short for a header")
        if length > _MAX_HEADER_BYTES:
            raise _Broken(f"the header claims {length} bytes")
        if not enough or len(header) != length:
            raise _Broken("the header runs past the end of the file")
        return _parse(header, 8 + length, size_bytes)
    except _Broken as error:
        raise ModelError(f"not a valid safetensors file: {error}", where=str(path)) from None


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write (dtype, shape, bytes) per name, sorted by name: equal tensors give equal files.

    Raises ValueError for a tensor whose bytes do not fit its shape; StorageError.
    """
    for name, (dtype, shape, data) in tensors.items():
        if dtype not in _BITS or _size_bytes(dtype, shape) != len(data):
            raise ValueError(f"{name}: {len(data)} bytes do not make {dtype} {list(shape)}")
    described = {name: tensors[name][:2] for name in sorted(tensors)}
    stream_tensors(path, described, lambda name: (tensors[name][2],), metadata)


def stream_tensors(
    path: Path,
    described: Mapping[str, tuple[str, tuple[int, ...]]],
    parts: Callable[[str], Iterable[bytes]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors in the order of `described` (dtype, shape), each from the bytes of its parts.

    The parts of one tensor are asked for when the one before it is written, so that memory holds
    no more than a part. Raises ValueError for bytes that do not fit a shape; StorageError.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, (dtype, shape) in described.items():
        size_bytes = _size_bytes(dtype, shape) if dtype in _BITS else None
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


def _parse(header: bytes, data_start: int, size_bytes: int) -> dict[str, TensorInfo]:
    if not header.startswith(b"{"):
        raise _Broken("the header is not a JSON object")
    try:
        table = json.loads(
            header.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant
        )
        # JSON escapes can spell half a surrogate pair, which is no text in any other place.
        "".join(table).encode("utf-8")
    except (ValueError, RecursionError):
        raise _Broken("the header is not JSON") from None
    # MLX writes null where it was given no metadata; so do older mlx-lm adapters.
    metadata = table.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _Broken("the metadata is not a table of strings")
    found = {name: _tensor(name, entry) for name, entry in table.items()}
    ordered = dict(sorted(found.items(), key=lambda item: (item[1].start, item[1].end)))
    end = 0
    for name, tensor in ordered.items():
        if tensor.start != end:
            raise _Broken(f"tensor {name!r} leaves a gap or overlaps another")
        end = tensor.end
    if data_start + end != size_bytes:
        raise _Broken(f"the tensors end at byte {data_start + end}, the file at {size_bytes}")
    return {
        name: TensorInfo(t.dtype, t.shape, data_start + t.start, data_start + t.end)
        for name, t in ordered.items()
    }


def _tensor(name: str, entry: Any) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _Broken(f"tensor {name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _Broken(f"tensor {name!r} has the unknown dtype {dtype!r}")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise _Broken(f"tensor {name!r} has a bad shape or bad offsets")
    start, end = offsets
    if _size_bytes(dtype, shape) != end - start:
        raise _Broken(f"tensor {name!r} has {end - start} bytes, not those of its shape")
    return TensorInfo(dtype, tuple(shape), start, end)


def _size_bytes(dtype: str, shape: Sequence[int]) -> int | None:
    """Bytes of a tensor; None where 64-bit arithmetic overflows or a byte would be shared."""
    count = 1
    for size in shape:
        count *= size
        if count > _MAX_SIZE:
            return None
    bits = count * _BITS[dtype]
    return None if bits > _MAX_SIZE or bits % 8 else bits // 8


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v <= _MAX_SIZE for v in value)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise _Broken("a key occurs twice in the header")
    return table


def _no_constant(text: str) -> Any:
    raise _Broken(f"{text} in the header")
