"""CSV and TSV: strict, streamed, and with the line on which each row starts. A byte order mark is
what Excel writes and is read over. Quoted cells may span lines; in a line of a TSV in which quotes
turn out not to be quoting, they are text."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

from mlx_itune.dataset.conversation import Fault, RowFault
from mlx_itune.dataset.how import Account
from mlx_itune.dataset.reading.columns import Cells, named_rows
from mlx_itune.dataset.reading.stream import (
    MAX_ROW_BYTES,
    ByteStream,
    Record,
    decoded,
    refuse_too_long,
)

_DELIMITERS = ",;\t|"
_SAMPLE_LINES = 200
_SEPARATOR = re.compile('"?sep=(.)"?\n', re.IGNORECASE)
_CONTROL = re.compile("[\0\r]")
# The csv module's reasons, in words about the file.
_REASONS = {
    "unexpected end": "a quote is opened and never closed",
    "new-line character": "a carriage return in a cell without quotes",
    "expected after": "text after a closing quote",
}


def read_delimited(
    stream: ByteStream, name: str, kind: str, told: Account, *, header: bool | None = None
) -> Generator[Record | Fault, None, int]:
    """A Record or Fault per row; returns the number of lines. `header`: whether the first line
    names the columns; None lets its looks decide."""
    csv.field_size_limit(MAX_ROW_BYTES)
    texts = _first_lines(stream)
    said = _SEPARATOR.fullmatch(texts[0]) if texts else None
    delimiter = "\t" if kind == "tsv" else _delimiter(texts)
    if said is not None:
        # What Excel is told in the first line.
        delimiter, texts = said[1], texts[1:]
    sample = _parsed(texts, delimiter) or _parsed(texts, delimiter, quoting=csv.QUOTE_NONE)
    lines = _Lines(stream)
    if said is not None:
        next(lines)
    yield from named_rows(_rows(lines, delimiter), name, header, told, sample)
    return lines.last


class _Line(NamedTuple):
    number: int
    at: int
    raw: bytes
    text: str
    fault: RowFault | None


class _Lines:
    """The lines of a file for the csv module, which remembers those of the current row. Bytes that
    are not UTF-8 are lone surrogates in them."""

    def __init__(self, stream: ByteStream) -> None:
        self._lines = stream.lines()
        self._again: deque[tuple[int, int, bytes]] = deque()
        self.row: list[_Line] = []
        self.last = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        number, at, raw = self._again.popleft() if self._again else next(self._lines)
        raw = raw.removesuffix(b"\r")
        fault: RowFault | None = None
        try:
            refuse_too_long(len(raw))
            text = decoded(raw, at)
        except RowFault as reason:
            fault, text = reason, raw.decode("utf-8", "surrogateescape")
        self.row.append(_Line(number, at, raw, text, fault))
        self.last = max(self.last, number)
        refuse_too_long(at + len(raw) - self.row[0].at)
        return text + "\n"

    def keep_first(self) -> None:
        self._again.extendleft(line[:3] for line in reversed(self.row[1:]))
        del self.row[1:]


def _rows(lines: _Lines, delimiter: str) -> Iterator[Cells]:
    """The rows, with the first line of each. After a quote that never closes, reading goes on with
    the line after the one it is on."""
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    width: int | None = None
    while True:
        lines.row = []
        cells: list[str] | None = None
        fault: RowFault | None = None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except RowFault as found:
            fault = found
        except csv.Error as error:
            said = str(error)
            reason = next((text for start, text in _REASONS.items() if start in said), said)
            fault = RowFault("csv", reason, "check the quotes of this row")
        is_tsv = delimiter == "\t"
        spans = cells is not None and len(lines.row) > 1 and len(cells) != width
        if fault is not None or (is_tsv and spans):
            lines.keep_first()
            if is_tsv:
                # The quotes are text: a TSV line is what its tabs make of it.
                cells, fault = lines.row[0].text.split("\t"), None
        if cells != []:
            width = len(cells) if cells and width is None else width
            strange = next((line.fault for line in lines.row if line.fault), fault)
            yield Cells(lines.row[0].number, cells, strange)


def _first_lines(stream: ByteStream) -> list[str]:
    lines = stream.head.split(b"\n", _SAMPLE_LINES)
    if len(lines) > _SAMPLE_LINES or not stream.is_whole:
        lines.pop()
    texts = (line.removesuffix(b"\r").decode("utf-8", "replace") for line in lines)
    return [_CONTROL.sub(" ", text) + "\n" for text in texts if text]


def _parsed(texts: Sequence[str], delimiter: str, **dialect: Any) -> list[list[str]]:
    """The rows of some lines, or none if they are broken; one cut off by their end is left out."""
    rows: list[list[str]] = []
    try:
        rows.extend(csv.reader(iter(texts), strict=True, delimiter=delimiter, **dialect))
    except csv.Error as error:
        if not str(error).startswith("unexpected end"):
            return []
    return [row for row in rows if row]


def _delimiter(texts: Sequence[str]) -> str:

    def evenness(delimiter: str) -> tuple[float, int]:
        try:
            widths = [len(row) for row in csv.reader(iter(texts), delimiter=delimiter) if row]
        except csv.Error:
            widths = []
        # Not the first row's: that may be a title.
        usual = max(set(widths), key=widths.count, default=0)
        return (widths.count(usual) / len(widths), usual) if usual > 1 else (0, 0)

    return max(_DELIMITERS, key=evenness)
