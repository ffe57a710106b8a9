"""The keys of a GGUF file, read front to back: quick for vocabularies of any size.

Layout: github.com/ggml-org/ggml, docs/gguf.md (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.files import storage_errors

_NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# No key of a sound file comes near; a broken length would ask for all memory.
_MOST_BYTES = 1 << 30


def read_keys(file: Path) -> dict[str, Any]:
    """Every key and its value. Raises ModelError for a file that is no GGUF, StorageError."""
    try:
        with storage_errors(file), file.open("rb") as opened:
            if opened.read(4) != b"GGUF":
                raise ModelError("is not a GGUF file", where=str(file))
            version, _, count = struct.unpack("<IQQ", opened.read(20))
            if version not in (2, 3):
                raise ModelError(f"is a GGUF file of version {version}", where=str(file))
            keys: dict[str, Any] = {}
            for _ in range(count):
                key = _string(opened)
                keys[key] = _value(opened, _number(opened, "I"))
            return keys
    except (struct.error, KeyError, ValueError, EOFError) as error:
        raise ModelError("is a broken or cut GGUF file", where=str(file)) from error


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        return _number(file, _NUMBERS[kind])
    inner, count = struct.unpack("<IQ", file.read(12))
    if inner in (_STRING, _ARRAY):
        return [_value(file, inner) for _ in range(count)]
    form = f"<{count}{_NUMBERS[inner]}"
    return list(struct.unpack(form, _exactly(file, struct.calcsize(form))))


def _string(file: BinaryIO) -> str:
    return _exactly(file, _number(file, "Q")).decode("utf-8")


def _number(file: BinaryIO, form: str) -> Any:
    return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))[0]


def _exactly(file: BinaryIO, count_bytes: int) -> bytes:
    if count_bytes > _MOST_BYTES:
        raise EOFError
    data = file.read(count_bytes)
    if len(data) != count_bytes:
        raise EOFError
    return data
