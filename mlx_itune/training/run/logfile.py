"""Files of JSON lines that outlive crashes: a torn line is passed over, a torn end is cut off."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlx_itune.kit.files import storage_errors

EVENTS = "events.jsonl"
_TAIL_BYTES = 1 << 16


def objects(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, one per line; of a file that is not there, none."""
    if path.exists():
        with storage_errors(path):
            data = path.read_bytes()
        yield from _objects(data)


def tail(path: Path) -> list[dict[str, Any]]:
    """The objects in the last 64 KiB of a file: enough to see how it ends."""
    if not path.exists():
        return []
    with storage_errors(path), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        return list(_objects(file.read()))


def repair(path: Path) -> bool:
    """Cut off a last line that a crash left unfinished; whether there was one."""
    if not path.exists():
        return False
    with storage_errors(path), path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        end = _end_of_last_line(file, size)
        if end == size:
            return False
        file.truncate(end)
        file.flush()
        os.fsync(file.fileno())
    return True


def _end_of_last_line(file: Any, size: int) -> int:
    """The offset behind the last newline; 0 if there is none."""
    end = size
    while end:
        start = max(0, end - _TAIL_BYTES)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return int(start + found + 1)
        end = start
    return 0


def _objects(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.split(b"\n"):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value
