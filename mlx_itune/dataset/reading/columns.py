"""The columns of a table: rows of cells -> records, under the names that the first row gives them.
The first row names the columns, unless it looks like data: then they are called "1", "2", "3"...; a
first column of questions and a second of answers, as in FLAN's TSV files, is named so."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mlx_itune.dataset.conversation import Fault, RowFault
from mlx_itune.dataset.how import Account
from mlx_itune.dataset.reading.stream import Record

_QUESTION_SHARE = 0.9
_MOST_TITLES = 8
_NAME = re.compile(r"[^\W\d][\w .\-/()]{0,63}")

# A first row with one of these is a header, whatever else is in it.
_KNOWN = frozenset(
    "messages conversations instruction input output response question answer prompt completion "
    "inputs targets text system context rationale".split()
)
_QUESTIONS = ["question", "answer", "rationale"]


class Cells(NamedTuple):
    """A row of a table, the line it begins on, and why it is refused if it is."""

    line: int
    cells: list[str] | None
    fault: RowFault | None = None


def named_rows(
    rows: Iterable[Cells],
    name: str,
    header: bool | None,
    told: Account,
    sample: Sequence[Sequence[str]] | None = None,
    *,
    is_sheet: bool = False,
) -> Iterator[Record | Fault]:
    """A Record or Fault per row after the header. `header`: whether the first row is one; None lets
    its looks and those of the `sample` decide. `is_sheet`: cells at the end of a row may be
    missing."""
    columns: list[str] | None = None
    if header is not False:
        rows = _below_title(iter(rows), name, told)
    for line, cells, fault in rows:
        if columns is None and cells is not None:
            # What is not UTF-8 looks like a letter; only the looks count then.
            looks = [cell.encode("utf-8", "surrogateescape").decode("latin-1") for cell in cells]
            columns, is_header = _columns(looks if fault else cells, header, sample or [cells])
            twice = next((column for column in columns if columns.count(column) > 1), None)
            if is_header and fault is not None:
                lost = f"{fault.message}, and no row can be read without the names of the columns"
                fault = RowFault(fault.code, lost, fault.hint)
            elif twice is not None:
                fault = RowFault("header", f"two columns are named {twice!r}", "rename one")
            if is_header and fault is not None:
                yield fault.at(name, line)
                return
            if is_header:
                continue
        if fault is None and columns and cells:
            if is_sheet:
                cells += [""] * (len(columns) - len(cells))
            if len(cells) == len(columns):
                # A column without a name and a cell without a text are nothing.
                named = zip(columns, cells, strict=True)
                yield Record({k: v for k, v in named if v or not k.isdigit()}, line)
                continue
            count = f"{len(cells)} cells, where the first row has {len(columns)}"
            quotes = "put quotes around cells that hold the delimiter"
            hint = "name the column or clear the cell" if is_sheet else quotes
            fault = RowFault("columns", count, hint)
        if fault is not None:
            yield fault.at(name, line)


def _below_title(rows: Iterator[Cells], name: str, told: Account) -> Iterator[Cells]:
    """The rows from the header on, where above it there is only a title, or a few lines of them."""
    first = list(itertools.islice(rows, _MOST_TITLES))
    filled = [[cell for cell in row.cells or () if cell.strip()] for row in first]
    start = next((at for at, cells in enumerate(filled) if len(cells) != 1), 0)
    if start and _is_header(filled[start]):
        place = "line 1 is" if start == 1 else f"lines 1 to {start} are"
        told.note(f"{Path(name).name}: {place} taken for a title above the header")
        first = first[start:]
    yield from first
    yield from rows


def _columns(
    cells: Sequence[str], header: bool | None, sample: Sequence[Sequence[str]]
) -> tuple[list[str], bool]:
    """The names of the columns, and whether the first row, `cells`, is where they come from."""
    positions = [str(number) for number in range(1, len(cells) + 1)]
    if header or (header is None and _is_header(cells)) or list(cells) == positions:
        # A column without a name (an index that a program wrote) has its number.
        names = [cell.strip() or position for cell, position in zip(cells, positions, strict=True)]
        return names, True
    asks = header is None and _asks(sample)
    return _QUESTIONS[: len(cells)] if asks else positions, False


def _is_header(cells: Sequence[str]) -> bool:
    """Whether a first row names columns: known names, or short words and each once."""
    names = [name for cell in cells if (name := cell.strip())]
    if _KNOWN & {name.lower() for name in names}:
        return True
    return bool(names) and len({*names}) == len(names) and all(map(_NAME.fullmatch, names))


def _asks(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first column of a table without a header is questions, and others answer."""
    if not rows or not 2 <= len(rows[0]) <= len(_QUESTIONS):
        return False
    asked = sum(row[0].rstrip().endswith("?") for row in rows)
    answers = sum(len(row) > 1 and row[1].rstrip().endswith("?") for row in rows)
    return asked >= _QUESTION_SHARE * len(rows) and not answers
