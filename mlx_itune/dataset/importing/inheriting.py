"""What a data folder takes over from the data folders it is made of: history and sources."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_itune.dataset.importing.inputs import Parent
from mlx_itune.dataset.importing.ledger import DESCRIPTION, LEDGER, LINEAGE, read_entries
from mlx_itune.kit.errors import DataError
from mlx_itune.kit.files import sha256_file, storage_errors


def carry_history(parents: Sequence[Parent], stage: Path) -> dict[str, str]:
    """Copy the ledgers and lineage of `parents` into the new folder at `stage`.

    The first parent's chain is the one that goes on; each other is kept whole in a branch, and
    the answer says where in the folder, by the prefix of its files' labels.
    """
    (stage / LINEAGE).mkdir()
    branches: dict[str, str] = {}
    step = 0
    for number, parent in enumerate(parents, 1):
        home = stage
        if number == 1:
            step = len(read_entries(parent.folder)) + 1
        else:
            branches[parent.prefix] = f"{LINEAGE}/{step:04d}.{number}"
            home = stage / branches[parent.prefix]
            home.mkdir()
        shutil.copyfile(parent.folder / LEDGER, home / LEDGER)
        if (parent.folder / LINEAGE).is_dir():
            shutil.copytree(
                parent.folder / LINEAGE, home / LINEAGE, dirs_exist_ok=True, symlinks=True
            )
    return branches


def branch_hashes(stage: Path, branches: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of every file of the branches, by name within the folder."""
    return {
        path.relative_to(stage).as_posix(): sha256_file(path)
        for place in branches.values()
        for path in sorted((stage / place).rglob("*"))
        if path.is_file()
    }


def described_sources(folder: Path) -> list[dict[str, Any]]:
    """The `sources` of a data folder's dataset.json. Raises DataError for a broken one."""
    path = folder / DESCRIPTION
    with storage_errors(path):
        raw = path.read_bytes()
    try:
        return [dict(source) for source in json.loads(raw)["sources"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError("not the description of a data folder", where=str(path)) from None


def portable(value: Any) -> Any:
    """Settings as JSON; of an absolute path the last part, so that they mean the same anywhere."""
    if isinstance(value, Path):
        return value.name
    if isinstance(value, str):
        return Path(value).name if Path(value).is_absolute() else value
    if isinstance(value, Mapping):
        return {str(key): portable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(item) for item in value]
    return value
