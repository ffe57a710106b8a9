"""A first look at whatever a user has: which columns ask and answer, and all rows as read so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_itune.dataset.conversation import Conversation, Fault
from mlx_itune.dataset.formats.fields import guess
from mlx_itune.dataset.how import Account, Reading
from mlx_itune.dataset.importing.plan import ImportPlan
from mlx_itune.dataset.sources import expand, no_such, read_rows, split_paths
from mlx_itune.kit.errors import DataError

_FIELDS = ("instruction", "output")
# Rows that are scored, and that are validated, of many; of few, the share.
TEST_ROWS, TEST_SHARE = 330, 0.2
# Minutes of a run are not for measuring.
VALID_ROWS, VALID_SHARE = 64, 0.1
_LEAST_SHARE = 0.0005


@dataclass(frozen=True)
class FirstLook:
    """plan: how the rows were read, and how to import them; guessed: the columns that were taken
    for question and answer because of their looks; how: the account of the reading."""

    rows: tuple[Conversation, ...]
    faults: tuple[Fault, ...]
    plan: ImportPlan
    guessed: Mapping[str, str]
    how: Reading
    # Of a folder without splits the files that were taken for one data set.
    files: tuple[str, ...] = ()


def look(path: Path, plan: ImportPlan) -> FirstLook:
    """Every row of a file or folder, read as planned; where nothing can be read so, by the columns
    that look like question and answer. Raises DataError where no row has an answer."""
    if not path.exists():
        raise no_such(path)
    files = expand([path])
    found, guessed, how = by_looks(files, plan.reading)
    rows = tuple(row for row in found if isinstance(row, Conversation))
    faults = tuple(row for row in found if isinstance(row, Fault))
    if not rows:
        first = next((fault for fault in faults if fault.severity == "error"), None)
        what = f"no row has a question and an answer to learn: {first.message}" if first else ""
        hint = first.hint if first and first.hint else "a table needs a column with the answers"
        raise DataError(what or "holds no rows", where=str(path), hint=hint)
    if guessed:
        plan = replace(plan, map=tuple(f"{field}={name}" for field, name in guessed.items()))
    parts = split_paths(path)
    together = tuple(file.name for file in parts.values()) if any("/" in p for p in parts) else ()
    return FirstLook(rows, faults, plan, guessed, how, together)


def by_looks(
    paths: Sequence[Path], how: Reading
) -> tuple[list[Conversation | Fault], dict[str, str], Reading]:
    """The rows of files, read so; where none can be, by the columns that look like question and
    answer. Rows and faults, those columns by field, and how it was read, with its account."""
    found = [row for path in paths for row in read_rows(path, how=how)]
    pair = guess(how.told.refused)
    if pair is None or how.columns or any(isinstance(row, Conversation) for row in found):
        return found, {}, how
    columns = dict(zip(_FIELDS, pair, strict=True))
    for key in how.told.refused[0]:
        if key.strip().lower() == "system":
            columns["system"] = key
    how = replace(how, columns=columns, told=Account())
    return [row for path in paths for row in read_rows(path, how=how)], columns, how


def held_out(path: Path, rows: int) -> str | None:
    """The --split of an import that holds rows out for scores and validation; None where a folder
    has a test split of its own."""
    if path.is_dir() and "test" in split_paths(path):
        return None
    test = _share(TEST_ROWS, TEST_SHARE, rows)
    valid = _share(VALID_ROWS, VALID_SHARE, rows)
    return f"{1 - test - valid:.4f}/{valid:.4f}/{test:.4f}"


def _share(wanted: int, most: float, rows: int) -> float:
    return round(min(most, max(_LEAST_SHARE, wanted / rows)), 4)
