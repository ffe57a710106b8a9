"""A run's files of JSON lines: what happened (events), and updates that were not made (incidents).

They outlive crashes: a torn line is passed over, a torn end is cut off.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mlx_itune.kit.errors import StorageError
from mlx_itune.kit.events import EventLog
from mlx_itune.kit.files import storage_errors, write_durably
from mlx_itune.kit.json_files import plain, read_bytes, to_record

EVENTS, INCIDENTS = "events.jsonl", "incidents.jsonl"
_TAIL_BYTES = 1 << 16
T = TypeVar("T")
_LIMIT_BYTES = 4 << 30


@dataclass(frozen=True)
class Incident:
    """A skipped step. rows: all of it as file:line; suspects: those whose own loss is not finite.

    There are no suspects where only the gradient was not. A number that is none is a word.
    """

    step: int
    epoch: int = 0
    loss: float | str | None = None
    gradient_norm: float | str | None = None
    rows: tuple[str, ...] = ()
    suspects: tuple[str, ...] = ()


def note_incident(folder: Path, incident: Incident) -> None:
    """Add an incident to the run's file. Raises StorageError."""
    with EventLog(folder / INCIDENTS) as log:
        log.emit("incident", **plain(incident))


def incidents(folder: Path) -> list[Incident]:
    """The incidents of a run, oldest first."""
    return _records(objects(folder / INCIDENTS), Incident)


def forget_incidents_after(folder: Path, step: int) -> None:
    """Keep the incidents up to `step`: later steps are about to be made again."""
    if (folder / INCIDENTS).exists():
        kept = [incident for incident in incidents(folder) if incident.step <= step]
        lines = "".join(json.dumps(plain(incident)) + "\n" for incident in kept)
        write_durably(folder / INCIDENTS, lines.encode())


def objects(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, one per line; of a file that is not there, none."""
    if path.exists():
        yield from _objects(read_bytes(path, limit_bytes=_LIMIT_BYTES))


@dataclass(frozen=True)
class Told:
    """What an event says of where a run is."""

    event: str
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    exit_code: int | None = None


def last_events(folder: Path) -> list[Told]:
    """The events in the last 64 KiB of a run's log: enough to see how it ends."""
    path = folder / EVENTS
    if not path.is_file():
        return []
    with storage_errors(path), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        data = file.read()
    return _records(_objects(data), Told)


def _records(values: Iterable[dict[str, Any]], cls: type[T]) -> list[T]:
    """Those of the objects that are what they should be."""
    found = []
    for value in values:
        with contextlib.suppress(StorageError):
            found.append(to_record(value, cls, where=None, error=StorageError))
    return found


def repair(path: Path) -> None:
    """Cut off a last line that a crash left unfinished."""
    if not path.is_file():
        return
    with storage_errors(path), path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        end = _end_of_last_line(file, size)
        if end < size:
            file.truncate(end)
            file.flush()
            os.fsync(file.fileno())


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
