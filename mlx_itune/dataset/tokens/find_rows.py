"""Finding single rows in files by place or by name, reading no further than needed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.faults import Fault
from mlx_itune.dataset.importing.provenance import row_id
from mlx_itune.kit.errors import DataError, UsageError

Row = Conversation | Fault
Reader = Callable[[Path], Iterator[Row]]

_PLACE = re.compile(r"(?:(?P<file>.+):)?(?P<line>[1-9][0-9]{0,14})")
_CONTENT_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class _Place:
    """A line of the file of that path, name or stem; of any file where `file` is empty."""

    file: str
    line: int

    def may_be_in(self, path: Path) -> bool:
        return self.file in ("", str(path), path.name, path.stem)


@dataclass(frozen=True)
class _Name:
    """A row id (hash of its content) or the row's own `id` tag."""

    name: str

    def fits(self, row: Conversation) -> bool:
        if row.tags.get("id") == self.name:
            return True
        return _CONTENT_ID.fullmatch(self.name) is not None and row_id(row) == self.name


def pick_rows(paths: Sequence[Path], wanted: Sequence[str], read: Reader) -> Iterator[Conversation]:
    """The rows that `wanted` names ("file:line", "split:line", a line, an id), in file order.

    Raises DataError for a wanted row that is broken, UsageError for one that is not there.
    """
    places: dict[str, _Place] = {}
    names: dict[str, _Name] = {}
    for spec in wanted:
        found = _PLACE.fullmatch(spec)
        place = _Place(found["file"] or "", int(found["line"])) if found else None
        # An id may look like a place ("case:12"): then no file has that name.
        if place and any(place.may_be_in(path) for path in paths):
            places[spec] = place
        else:
            names[spec] = _Name(spec)
    for path in paths:
        here = {spec: place for spec, place in places.items() if place.may_be_in(path)}
        if not here and not names:
            continue
        seen: set[str] = set()
        for row in read(path):
            line = _line_of(row)
            hits = [spec for spec, place in here.items() if place.line == line]
            if isinstance(row, Fault):
                if hits and row.severity == "error":
                    raise DataError(
                        f"this row is broken: {row.code}: {row.message}",
                        where=f"{row.file}:{row.line}",
                        hint=row.hint or None,
                    )
                continue
            named = [spec for spec, name in names.items() if name.fits(row)]
            if hits or named:
                yield row
            # A line may give several rows; an id means one.
            seen.update(hits)
            for spec in named:
                del names[spec]
            if not names and all(place.line < line for place in here.values()):
                break
        for spec in seen:
            places.pop(spec, None)
    missing = [*places, *names]
    if missing:
        raise UsageError(
            f"there is no row {missing[0]!r}",
            hint="name it as file:line, split:line, or by its id",
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


def _line_of(row: Row) -> int:
    if isinstance(row, Fault):
        return row.line
    line = row.origin.rpartition(":")[2]
    return int(line) if line.isdigit() else 0
