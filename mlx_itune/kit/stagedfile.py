"""A file that appears under its name only when it is finished and found good."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from mlx_itune.kit.errors import StorageError
from mlx_itune.kit.files import beside, storage_errors, sweep


@contextlib.contextmanager
def staged_file(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a path in a hidden folder beside `out`; that file becomes `out` if the block succeeds.

    On any exception the folder is removed and `out` is as it was. The block writes the file
    durably (`files.write_durably`); others in the folder go with it. Raises StorageError where
    `out` is a directory or, unless `overwrite`, exists.
    """
    out = Path(os.path.realpath(out))
    refuse_taken(out, overwrite)
    folder = beside(out)
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        sweep(out.parent, out.name)
        folder.mkdir()
    try:
        yield folder / out.name
        with storage_errors(out):
            (folder / out.name).replace(out)
            descriptor = os.open(out.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def refuse_taken(out: Path, overwrite: bool = False) -> None:
    """Raise StorageError where a file cannot appear at `out`."""
    if out.is_dir():
        raise StorageError("is a directory", where=str(out), hint="name a file")
    if out.exists() and not overwrite:
        raise StorageError(
            "already exists", where=str(out), hint="choose another name or remove it first"
        )
