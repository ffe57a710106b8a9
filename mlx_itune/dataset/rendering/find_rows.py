"""Finding single rows in files by place or by name, reading no further than needed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.faults import Fault
from mlx_itune.dataset.importing.provenance import row_id
from mlx_itune.kit.errors import DataError, UsageError

Row = Conversation | Fault
Reader = Callable[[Path], Iterator[Row]]

# A line, the 17th row of the file ("#17", "3#17"); the file by its path, name or stem.
_NUMBER = "[1-9][0-9]{0,14}"
_PLACE = re.compile(f"(?:(?P<file>.+):)?(?P<at>#{_NUMBER}|{_NUMBER}(?:#{_NUMBER})?)")
_CONTENT_ID = re.compile(r"[0-9a-f]{16}")


def find_rows(paths: Sequence[Path], wanted: Sequence[str], read: Reader) -> Iterator[Conversation]:
    """The rows that `wanted` names ("file:line", "split:line", a line, an id), in file order.

    Raises DataError for a wanted row that is broken, UsageError for one that is not there.
    """
    # An id may look like a place ("case:12"): then no file has that name.
    places = {
        spec: (found["file"] or "", found["at"])
        for spec in wanted
        if (found := _PLACE.fullmatch(spec))
        and any(_may_be(path, found["file"] or "") for path in paths)
    }
    ids = set(wanted) - places.keys()
    for path in paths:
        here = {spec: at for spec, (file, at) in places.items() if _may_be(path, file)}
        if not here and not ids:
            continue
        passed: set[str] = set()
        for row in read(path):
            at = _at(row)
            hits = {spec for spec, place in here.items() if place in (at, at.partition("#")[0])}
            # A line may give several rows; an id means one.
            if not hits and not ids and passed == here.keys():
                break
            if isinstance(row, Fault):
                if hits and row.severity == "error":
                    raise DataError(
                        f"this row is broken: {row.code}: {row.message}",
                        where=row.where,
                        hint=row.hint or None,
                    )
                continue
            named = {name for name in ids if _has_id(row, name)}
            if hits or named:
                yield row
            passed |= hits
            ids -= named
        places = {spec: place for spec, place in places.items() if spec not in passed}
    if missing := [spec for spec in wanted if spec in places or spec in ids]:
        raise UsageError(
            f"there is no row {missing[0]!r}",
            hint="name it as file:line, split:line, file:#row, or by its id",
        )


def first_rows(
    paths: Iterable[Path], count: int, read: Reader, on_fault: Callable[[Fault], None]
) -> Iterator[Conversation]:
    """The first `count` rows of the files; broken ones on the way go to `on_fault`."""
    left = count
    for path in paths:
        for row in read(path):
            if isinstance(row, Fault):
                if row.severity == "error":
                    on_fault(row)
                continue
            yield row
            left -= 1
            if not left:
                return


def _may_be(path: Path, name: str) -> bool:
    return name in ("", str(path), path.name, path.stem)


def _at(row: Row) -> str:
    return (row.where if isinstance(row, Fault) else row.origin).rpartition(":")[2]


def _has_id(row: Conversation, name: str) -> bool:
    """Whether `name` is the row's own `id` tag or the hash of its content."""
    if row.tags.get("id") == name:
        return True
    return _CONTENT_ID.fullmatch(name) is not None and row_id(row) == name
