"""events.jsonl: the append-only, versioned story of a run, one JSON object per line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from mlx_itune.kit.files import storage_errors
from mlx_itune.kit.json_files import plain

VERSION = 1


def _now() -> datetime:
    return datetime.now(timezone.utc)


class EventLog:
    """Appends `{"v": 1, "time": ..., "event": kind, ...}` lines to a file only its owner can read.

    Raises StorageError when the file cannot be opened or written.
    """

    def __init__(self, path: Path, *, clock: Callable[[], datetime] = _now) -> None:
        self._path = Path(path)
        self._clock = clock
        with storage_errors(self._path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0)
            self._descriptor: int | None = os.open(self._path, flags, 0o600)

    def emit(self, kind: str, **fields: Any) -> None:
        """Append one event. NaN and infinities are written as null: JSON has no word for them."""
        if self._descriptor is None:
            raise ValueError("the event log is closed")
        time = self._clock().isoformat(timespec="milliseconds")
        event = {"v": VERSION, "time": time, "event": kind, **plain(fields)}
        line = json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n"
        data = line.encode("utf-8", errors="backslashreplace")
        with storage_errors(self._path):
            while data:
                data = data[os.write(self._descriptor, data) :]

    def close(self) -> None:
        """Close the file; closing twice does no harm."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with storage_errors(self._path):
                os.close(descriptor)

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
