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
from mlx_itune.dataset.reading.stream import MAX_ROW_BYTES, ByteStream, Record, refuse_too_long
from mlx_itune.dataset.reading.strict_json import decoded

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
    dialect = _TSV if kind == "tsv" else _dialect(sample)
    lines = _Lines(stream)
    columns: list[str] | None = None
    for line, cells, fault in _rows(lines, dialect):
        if columns is None and cells is not None:
            unquoted = {**dialect, "quoting": csv.QUOTE_NONE}
            rows = _parsed(sample, **dialect) or _parsed(sample, **unquoted)
            # What is not UTF-8 looks like a letter; only the looks count then.
            names = [cell.encode("utf-8", "surrogateescape").decode("latin-1") for cell in cells]
            found = columns_of(names if fault else cells, header, rows)
            if isinstance(found, RowFault):
                yield found.at(name, line)
                return line
            columns, is_header = found
            lines.width = len(columns)
            if is_header and fault is not None:
                lost = f"{fault.message}, and no row can be read without the names of the columns"
                yield RowFault(fault.code, lost, fault.hint).at(name, line)
                return line
            if is_header:
                continue
        if fault is None and columns and cells and len(cells) != len(columns):
            count = f"{len(cells)} cells, where the first row has {len(columns)}"
            fault = RowFault("columns", count, "put quotes around cells that hold the delimiter")
        if fault is not None:
            yield fault.at(name, line)
        elif columns and cells:
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
    """The lines of a file for the csv module, which remembers those of the current row.

    Bytes that are not UTF-8 are lone surrogates in them; `row` has them as they are.
    """

    def __init__(self, stream: ByteStream) -> None:
        self._lines = stream.lines()
        self._again: deque[tuple[int, int, bytes]] = deque()
        self._size = 0
        self.row: list[tuple[int, int, bytes]] = []
        self.last = 0
        self.width = 0
        self.has_strange = False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        number, at, raw = self._again.popleft() if self._again else next(self._lines)
        raw = raw.removesuffix(b"\r")
        self.row.append((number, at, raw))
        self.last = max(self.last, number)
        self._size += len(raw)
        refuse_too_long(self._size)
        try:
            text = raw.decode("utf-8")
            self.has_strange = self.has_strange or "\0" in text
        except UnicodeDecodeError:
            text = raw.decode("utf-8", "surrogateescape")
            self.has_strange = True
        return text + "\n"

    def begin_row(self) -> None:
        """The lines taken from now on belong to a new row."""
        self.row, self._size = [], 0

    def keep_first(self) -> None:
        """Give the lines of the current row out again, save its first."""
        self._again.extendleft(reversed(self.row[1:]))
        del self.row[1:]

    def strange(self) -> RowFault | None:
        """What is wrong with the bytes of the current row."""
        for _, at, raw in self.row if self.has_strange else ():
            try:
                decoded(raw, at)
            except RowFault as fault:
                return fault
        return None


def _rows(
    lines: _Lines, dialect: dict[str, Any]
) -> Iterator[tuple[int, list[str] | None, RowFault | None]]:
    """(first line, cells, why it is refused) of each row.

    After a quote that never closes, reading goes on with the line after the one it is on.
    """
    reader = csv.reader(lines, strict=True, **dialect)
    while True:
        lines.begin_row()
        cells: list[str] | None = None
        fault: RowFault | None = None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except RowFault as found:
            fault = found
        except csv.Error as error:
            fault = RowFault("csv", _plain(str(error)), "check the quotes of this row")
        line, _, raw = lines.row[0]
        has_span = cells is not None and len(lines.row) > 1 and len(cells) != lines.width
        if dialect == _TSV and (fault is not None or has_span):
            # The quotes are text: a TSV line is what its tabs make of it.
            lines.keep_first()
            cells, fault = raw.decode("utf-8", "surrogateescape").split("\t"), None
        elif fault is not None:
            lines.keep_first()
        if cells != []:
            yield line, cells, lines.strange() or fault


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


def _dialect(sample: Sequence[str]) -> dict[str, Any]:
    """The delimiter under which the sample makes the most even table."""
    dialects = ({"delimiter": delimiter} for delimiter in _DELIMITERS)
    return max(dialects, key=lambda dialect: _evenness(sample, dialect))


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
