"""CSV and TSV: strict, streamed, and with the line on which each row starts.

The first line names the columns, unless it looks like data: then they are called "1", "2", "3"...;
a first column of questions and a second of answers, as in FLAN's TSV files, is named so. A byte
order mark is what Excel writes and is read over. Quoted cells may span lines; in a line of a TSV in
which quotes turn out not to be quoting, they are text.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from mlx_itune.dataset.faults import Fault, RowFault
from mlx_itune.dataset.reading.json_text import decoded
from mlx_itune.dataset.reading.lines import split_lines
from mlx_itune.dataset.reading.record import Record, row_too_long
from mlx_itune.dataset.reading.stream import MAX_ROW_BYTES, ByteStream

_DELIMITERS = ",;\t|"
_TSV: dict[str, Any] = {"delimiter": "\t"}
_SAMPLE_LINES = 200
_QUESTION_SHARE = 0.9
_CONTROL = re.compile("[\0\r]")
_NAME = re.compile(r"[^\W\d][\w .\-/()]{0,63}")

# A first row with one of these is a header, whatever else is in it.
KNOWN_COLUMNS = frozenset(
    "messages conversations instruction input output response question answer prompt completion "
    "inputs targets text system context rationale".split()
)
QUESTIONS = ("question", "answer", "rationale")


def read_delimited(
    stream: ByteStream, name: str, kind: str, *, header: bool | None = None
) -> Generator[Record | Fault, None, int]:
    """A Record or Fault per row; returns the number of lines.

    `header`: whether the first line names the columns; None lets its looks decide.
    """
    csv.field_size_limit(MAX_ROW_BYTES)
    sample = _sample(stream)
    dialect = _dialect(sample, kind)
    lines = _Lines(_physical(stream))
    columns: list[str] | None = None
    for line, cells in _rows(lines, dialect):
        if isinstance(cells, RowFault):
            yield cells.at(name, line)
            continue
        if columns is None:
            unquoted = {**dialect, "quoting": csv.QUOTE_NONE}
            rows = _parsed(sample, **dialect) or _parsed(sample, **unquoted)
            found = columns_of(cells, header, rows)
            if isinstance(found, RowFault):
                yield found.at(name, line)
                return lines.last
            columns, is_header = found
            lines.width = len(columns)
            if is_header:
                continue
        if len(cells) != len(columns):
            yield Fault(
                name,
                line,
                "columns",
                f"{len(cells)} cells, where the first row has {len(columns)}",
                "put quotes around cells that hold the delimiter",
            )
        else:
            yield Record(dict(zip(columns, cells, strict=True)), line)
    return lines.last


def columns_of(
    cells: Sequence[str], header: bool | None, sample: Sequence[Sequence[str]] | None
) -> tuple[list[str], bool] | RowFault:
    """The names of the columns, and whether the first row, `cells`, is where they come from.

    `sample`: rows to look at where it is not and the columns need names.
    """
    positions = [str(number) for number in range(1, len(cells) + 1)]
    if header or (header is None and _is_header(cells)) or list(cells) == positions:
        # A column without a name (an index that a program wrote) has its number.
        names = [cell.strip() or position for cell, position in zip(cells, positions, strict=True)]
        if len({*names}) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            return RowFault("header", f"two columns are named {twice!r}", "rename one")
        return names, True
    if header is None and _asks(sample):
        return list(QUESTIONS[: len(cells)]), False
    return positions, False


class _Lines:
    """The lines of a file for the csv module, which remembers those of the current row."""

    def __init__(self, lines: Iterator[tuple[int, int, bytes]]) -> None:
        self._lines = lines
        self._again: deque[tuple[int, int, bytes]] = deque()
        self._taken: list[tuple[int, int, bytes]] = []
        self._size = 0
        self.last = 0
        self.width = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        taken = self._again.popleft() if self._again else next(self._lines)
        self._taken.append(taken)
        number, at, raw = taken
        self.last = max(self.last, number)
        self._size += len(raw)
        if self._size > MAX_ROW_BYTES:
            raise row_too_long()
        return decoded(raw, at) + "\n"

    def begin_row(self) -> None:
        """The lines taken from now on belong to a new row."""
        self._taken, self._size = [], 0

    def row(self) -> list[tuple[int, int, bytes]]:
        """The lines of the current row: their numbers, first bytes and bytes."""
        return self._taken

    def retry_after_first(self) -> None:
        """Give the lines of the current row out again, save its first."""
        self._again.extendleft(reversed(self._taken[1:]))


def _rows(lines: _Lines, dialect: dict[str, Any]) -> Iterator[tuple[int, list[str] | RowFault]]:
    """Rows of cells, or why a row is none, each with its first line.

    After a quote that never closes, reading goes on with the line after the one it is on.
    """
    reader = csv.reader(lines, strict=True, **dialect)
    is_tsv = dialect == _TSV
    while True:
        lines.begin_row()
        found: list[str] | RowFault
        try:
            found = next(reader)
        except StopIteration:
            return
        except RowFault as fault:
            found = fault
        except csv.Error as error:
            too_long = str(error).startswith("field larger")
            reason = RowFault("csv", _plain(str(error)), "check the quotes of this row")
            found = row_too_long() if too_long else reason
        line, _, raw = lines.row()[0]
        if is_tsv and (
            (isinstance(found, RowFault) and found.code in ("csv", "row-size"))
            or (len(lines.row()) > 1 and len(found) != lines.width)  # type: ignore[arg-type]
        ):
            # The quotes are text: a TSV line is what its tabs make of it.
            lines.retry_after_first()
            found = raw.decode("utf-8").split("\t")
        elif isinstance(found, RowFault):
            lines.retry_after_first()
        if found:
            yield line, found


def _physical(stream: ByteStream) -> Iterator[tuple[int, int, bytes]]:
    number = 0
    for at, lines in split_lines(stream):
        for raw in lines:
            number += 1
            yield number, at, raw.removesuffix(b"\r")
            at += len(raw) + 1


def _plain(reason: str) -> str:
    """The csv module's reasons, in words about the file."""
    if reason.startswith("unexpected end"):
        return "a quote is opened and never closed"
    if "new-line character" in reason:
        return "a carriage return in a cell without quotes"
    if "expected after" in reason:
        return "text after a closing quote"
    return reason


def _sample(stream: ByteStream) -> list[str]:
    lines = stream.head.split(b"\n", _SAMPLE_LINES)
    if len(lines) > _SAMPLE_LINES or not stream.is_whole:
        lines.pop()
    texts = (line.removesuffix(b"\r").decode("utf-8", "replace") for line in lines)
    return [_CONTROL.sub(" ", text) + "\n" for text in texts if text]


def _parsed(sample: Sequence[str], **dialect: Any) -> list[list[str]] | None:
    """The rows of the sample, or None if they are broken; a row cut off by its end is left out."""
    rows: list[list[str]] = []
    try:
        for row in csv.reader(iter(sample), strict=True, **dialect):
            rows.append(row)
    except csv.Error as error:
        if not str(error).startswith("unexpected end"):
            return None
    return [row for row in rows if row]


def _dialect(sample: Sequence[str], kind: str) -> dict[str, Any]:
    """The delimiter and quoting under which the sample makes the most even table."""
    if kind == "tsv":
        return _TSV
    return max(
        ({"delimiter": delimiter} for delimiter in _DELIMITERS),
        key=lambda dialect: _evenness(sample, dialect),
    )


def _evenness(sample: Sequence[str], dialect: dict[str, Any]) -> tuple[float, int]:
    """The share of rows that have as many columns as the first, and how many; 0 for one column."""
    try:
        widths = [len(row) for row in csv.reader(iter(sample), **dialect) if row]
    except csv.Error:
        return 0, 0
    if not widths or widths[0] < 2:
        return 0, 0
    return widths.count(widths[0]) / len(widths), widths[0]


def _is_header(cells: Sequence[str]) -> bool:
    """Whether a first row names columns: known names, or short words and each once."""
    names = [cell.strip() for cell in cells]
    if KNOWN_COLUMNS & {name.lower() for name in names}:
        return True
    said = [name for name in names if name]
    return bool(said) and len({*said}) == len(said) and all(map(_NAME.fullmatch, said))


def _asks(rows: Sequence[Sequence[str]] | None) -> bool:
    """Whether the first column of a table without a header is questions, and others answer."""
    if not rows or not 2 <= len(rows[0]) <= len(QUESTIONS):
        return False
    asked = sum(row[0].rstrip().endswith("?") for row in rows)
    answers = sum(len(row) > 1 and row[1].rstrip().endswith("?") for row in rows)
    return asked >= _QUESTION_SHARE * len(rows) and not answers
