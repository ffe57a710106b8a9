"""Files whose SHA-256 is known as soon as they are written or read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson

from mlx_itune.kit.errors import DataError
from mlx_itune.kit.files import storage_errors

_BUFFER_BYTES = 1 << 20


class HashedFile:
    """A new file that is written in big pieces and knows the SHA-256 of what was written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("xb")
        self._digest = hashlib.sha256()
        self._pending: list[bytes] = []
        self._pending_bytes = 0

    def write(self, data: bytes) -> None:
        """Write some bytes, sooner or later."""
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes >= _BUFFER_BYTES:
            self._flush()

    def close(self) -> str:
        """Write the rest; the SHA-256 of the whole file in hex."""
        self._flush()
        self._file.close()
        return self._digest.hexdigest()

    def discard(self) -> None:
        """Let go of the file without writing the rest."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _flush(self) -> None:
        data = b"".join(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        self._digest.update(data)
        self._file.write(data)


class FileHashes:
    """SHA-256 of files, computed beside the work that reads them (hashlib frees the other core).

    A context manager; leaving it stops what is not done.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1)
        self._before = [_stamp(path) for path in paths]
        self._digests = [self._pool.submit(self._sha256, path) for path in paths]

    def __enter__(self) -> FileHashes:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def results(self) -> list[str]:
        """One hash per file. Raises DataError for a file that changed since the beginning."""
        hashes = [digest.result() for digest in self._digests]
        for path, before in zip(self._paths, self._before, strict=True):
            if _stamp(path) != before:
                raise DataError("changed while it was read", where=str(path))
        return hashes

    def _sha256(self, path: Path) -> str:
        digest = hashlib.sha256()
        with storage_errors(path), path.open("rb") as file:
            while not self._stop.is_set() and (chunk := file.read(_BUFFER_BYTES)):
                digest.update(chunk)
        return digest.hexdigest()


def json_line(value: Mapping[str, Any]) -> bytes:
    """`value` as one line of JSON."""
    try:
        return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        # Integers beyond 64 bits, and file names that are no UTF-8 (they come back as escapes).
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return text.encode("utf-8", "backslashreplace") + b"\n"


def _stamp(path: Path) -> tuple[int, int]:
    with storage_errors(path):
        status = path.stat()
    return status.st_size, status.st_mtime_ns
