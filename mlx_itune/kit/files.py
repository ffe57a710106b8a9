"""Durable files: what is written is either wholly there after a power cut, or not there at all."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from mlx_itune.kit.errors import ItuneError, StorageError
from mlx_itune.kit.wording import size

_CHUNK_BYTES = 1 << 20
_PARTIAL = ".partial"
_OTHER_NAME = "choose another name or remove it first"
# Directories that are being filled.
_stages: set[Path] = set()
_LEFTOVER = re.compile(r"\.(\d+)-[0-9a-f]{8}\.partial$")


def write_durably(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Replace `path` by `data` atomically; afterwards it survives a power cut. In a directory that
    is being staged it is synced with the rest of it. Raises StorageError, with `path` as it was."""
    path = Path(path)
    staged = path.parent in _stages
    temporary = beside(path)
    try:
        with storage_errors(path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(temporary, flags, 0o666)
            try:
                for chunk in (data,) if isinstance(data, bytes) else data:
                    left = memoryview(chunk)
                    while left:
                        left = left[os.write(descriptor, left) :]
                if not staged:
                    _sync_descriptor(descriptor)
            finally:
                os.close(descriptor)
            temporary.replace(path)
            if not staged:
                _sync_path(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


@contextlib.contextmanager
def staged_directory(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Fill a temporary sibling of `out`; it becomes `out` only if the block succeeds. On any
    exception `out` is as it was. Raises StorageError for an `out` that is a file or, unless
    `overwrite`, not empty."""
    # A link keeps pointing where it points: the directory behind it is what is replaced.
    out = Path(os.path.realpath(out))
    refuse_occupied(out, overwrite)
    with _stage_for(out) as stage:
        _stages.add(stage)
        try:
            yield stage
        finally:
            _stages.discard(stage)
        _sync_tree(stage)
        refuse_occupied(out, overwrite)
        _swap_in(stage, out)


@contextlib.contextmanager
def staged_file(out: Path) -> Iterator[Path]:
    """Yield a path in a hidden folder beside `out`; that file becomes `out` if the block succeeds.
    The block writes it durably; others in the folder go with it. Raises StorageError where `out`
    exists, before or after."""
    out = Path(os.path.realpath(out))
    refuse_taken(out)
    with _stage_for(out) as folder:
        yield folder / out.name
        # Of two writers one wins: a link is never made over what exists, a rename is.
        try:
            os.link(folder / out.name, out)
        except FileExistsError:
            refuse_taken(out)
        except OSError:
            # A file system without links.
            refuse_taken(out)
            (folder / out.name).replace(out)


@contextlib.contextmanager
def _stage_for(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`, which is gone afterwards; so are, on an error, new parents."""
    stage, made = beside(out), list[Path]()
    try:
        with storage_errors(out):
            made = _make_durably(out.parent)
            sweep(out.parent, out.name)
            stage.mkdir()
            yield stage
            _sync_path(out.parent)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    shutil.rmtree(stage, ignore_errors=True)


def remove_directory(path: Path) -> None:
    """Remove a directory; a crash leaves it whole, or gone but for a hidden leftover."""
    gone = beside(path)
    with storage_errors(path):
        path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def sweep(folder: Path, name: str | None = None, *, every_owner: bool = False) -> None:
    """Remove what killed writers left in `folder` for the entry `name`, or for every one. Leftovers
    of processes that live stay, unless `every_owner`: for a folder under one's own lock."""
    pattern = "*" if name is None else glob.escape(name)
    for path in [*folder.glob(f".{pattern}.*{_PARTIAL}")] if folder.is_dir() else []:
        owner = _LEFTOVER.search(path.name)
        if owner and (every_owner or not _lives(int(owner.group(1)))):
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def refuse_occupied(out: Path, overwrite: bool = False) -> None:
    """Raise StorageError where a directory cannot appear at `out`."""
    out = Path(os.path.realpath(out))
    if os.path.lexists(out) and not out.is_dir():
        raise StorageError("is a file, not a directory", where=str(out), hint="choose another name")
    with storage_errors(out):
        if not overwrite and out.is_dir() and any(out.iterdir()):
            raise StorageError("already exists and is not empty", where=str(out), hint=_OTHER_NAME)


def write_new(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write a file that must not exist yet, durably, whole or not at all. Raises StorageError."""
    with staged_file(path) as stage:
        write_durably(stage, data)


def refuse_taken(out: Path) -> None:
    """Raise StorageError where a file cannot appear at `out`: before the work, not after it."""
    out = Path(os.path.realpath(out))
    if out.is_dir():
        raise StorageError("is a directory", where=str(out), hint="name a file")
    if os.path.lexists(out):
        raise StorageError("already exists", where=str(out), hint=_OTHER_NAME)
    folder = next(parent for parent in out.parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise StorageError("is a file, not a directory", where=str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError("cannot be written to", where=str(folder))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        # Another user's process says so.
        return not isinstance(error, ProcessLookupError)
    return True


def open_regular(path: Path, error: type[ItuneError] = StorageError) -> BinaryIO:
    """A regular file, open for reading; a pipe, socket, device or directory is `error`, at once.
    Raises StorageError where the system says no."""
    with storage_errors(path):
        # Without O_NONBLOCK, opening a pipe waits for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode):
            return os.fdopen(descriptor, "rb")
        os.close(descriptor)
    what = "a directory" if stat.S_ISDIR(mode) else "a pipe, socket or device"
    raise error(f"is {what}, not a file", where=str(path))


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex. Raises StorageError."""
    digest = hashlib.sha256()
    with open_regular(path) as file, storage_errors(path):
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def require_free_bytes(path: Path, needed_bytes: int, what: str) -> None:
    """Raise StorageError unless the disk that will hold `path` has `needed_bytes` free."""
    existing = Path(os.path.realpath(path))
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    with storage_errors(path):
        free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        what = f"{what} needs {size(needed_bytes)}, the disk has {size(free_bytes)} free"
        raise StorageError(what, where=str(path), hint="free some space or choose another place")


@contextlib.contextmanager
def storage_errors(where: Path | str) -> Iterator[None]:
    """Turn an OSError of the block into a StorageError that names the file and the reason."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        # A temporary name says nothing to whoever asked for the file.
        hidden = str(error.filename or _PARTIAL).endswith(_PARTIAL)
        raise StorageError(reason, where=str(where if hidden else error.filename)) from error


def beside(path: Path) -> Path:
    """A hidden name of this process next to `path`, which `sweep` knows."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{_PARTIAL}")


def _make_durably(folder: Path) -> list[Path]:
    """mkdir -p, each new entry synced to its parent; the new ones, innermost first."""
    missing: list[Path] = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        _sync_path(path.parent)
    return missing


def _swap_in(stage: Path, out: Path) -> None:
    # POSIX renames over an empty directory atomically; a full one has to step aside first.
    if not out.exists() or not any(out.iterdir()):
        stage.rename(out)
        return
    old = beside(out)
    out.rename(old)
    try:
        stage.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync_tree(root: Path) -> None:
    for folder, _, names in os.walk(root):
        for path in (Path(folder), *(Path(folder) / name for name in names)):
            _sync_path(path, to_drive=True)
    _sync_path(root)


def _sync_path(path: Path, *, to_drive: bool = False) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _sync_descriptor(descriptor, to_drive=to_drive)
    finally:
        os.close(descriptor)


def _sync_descriptor(descriptor: int, *, to_drive: bool = False) -> None:
    # On macOS fsync stops at the drive's cache. F_FULLFSYNC empties that cache, of whatever was
    # sent `to_drive` before (fcntl(2)): once is enough for many files.
    if sys.platform == "darwin" and not to_drive:
        import fcntl

        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)
