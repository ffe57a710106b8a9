"""One process at a time: a lock the system takes back when its holder dies, however it dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlx_itune.kit.errors import StorageError
from mlx_itune.kit.files import storage_errors

# Whoever asks `holder` has the lock for an instant; a trainer that comes then waits this long.
_PATIENCE_S = 1.0
_RETRY_S = 0.02


@dataclass(frozen=True)
class Holder:
    """Who has a lock; None where the file does not say (yet)."""

    pid: int | None
    host: str | None

    def __str__(self) -> str:
        if self.pid is None:
            return "another process"
        elsewhere = f" on {self.host}" if self.host not in (None, socket.gethostname()) else ""
        return f"process {self.pid}{elsewhere}"


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path` for the block (flock(2)); `what` names the thing in messages. The
    file stays: removed, two processes could lock two files of one name. Raises StorageError."""
    path = Path(path)
    descriptor = _acquire(path, what)
    try:
        with storage_errors(path):
            os.ftruncate(descriptor, 0)
            words = {"pid": os.getpid(), "host": socket.gethostname()}
            os.pwrite(descriptor, json.dumps(words).encode() + b"\n", 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
        os.close(descriptor)


def holder(path: Path) -> Holder | None:
    """Who holds the lock file now; None if nobody does."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        taken = error.errno in (errno.EWOULDBLOCK, errno.EAGAIN)
        return _read_holder(descriptor) if taken else None
    else:
        return None
    finally:
        os.close(descriptor)


def _acquire(path: Path, what: str) -> int:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        with storage_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The file may have been removed, and made anew by another, since it was opened.
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.ENOENT):
                os.close(descriptor)
                what = f"cannot be locked ({os.strerror(error.errno or 0)})"
                hint = "keep runs on a local disk"
                raise StorageError(what, where=str(path), hint=hint) from error
        who = _read_holder(descriptor)
        os.close(descriptor)
        if time.monotonic() >= deadline:
            raise StorageError(f"{what} is in use by {who}", where=str(path.parent))
        time.sleep(_RETRY_S)


def _read_holder(descriptor: int) -> Holder:
    try:
        words = json.loads(os.pread(descriptor, 4096, 0))
        return Holder(int(words["pid"]), str(words["host"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Holder(None, None)
