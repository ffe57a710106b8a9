"""events.jsonl: the append-only, versioned story of a run, one JSON object per line."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mlx_itune.kit.files import storage_errors
from mlx_itune.kit.json_files import plain

VERSION = 1


class EventLog:
    """Appends `{"v": 1, "time": ..., "event": kind, ...}` lines to a file only its owner can read.
    Raises StorageError when the file cannot be opened or written."""

    def __init__(self, path: Path) -> None:
        self._path = Path(path)
        with storage_errors(self._path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._descriptor: int | None = os.open(self._path, flags, 0o600)

    def emit(self, kind: str, **fields: Any) -> None:
        """Append one event. NaN and infinities are written as null: JSON has no word for them."""
        if self._descriptor is None:
            raise ValueError("the event log is closed")
        time = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
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

    def __exit__(self, *_: object) -> None:
        self.close()
