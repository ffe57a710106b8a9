"""JSON documents of any length: arrays of rows, objects around one, rows one after the other.

A broken row is one fault. Reading goes on where the next one begins: at the place that looks
exactly like the start of the rows before, by its line break and indentation or its first key.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

from mlx_itune.dataset.faults import Fault, RowFault
from mlx_itune.dataset.reading.stream import ByteStream, Record, refuse_too_long
from mlx_itune.dataset.reading.strict_json import (
    StrictDecoder,
    as_row,
    bom_fault,
    decoded,
    syntax_fault,
)

# Keys of rows: an object that has one of them is a row, not a wrapper around rows.
_ROW_KEYS = frozenset(
    "messages conversations conversation instances instruction question prompt inputs input output "
    "text".split()
)
# An object up to this size is looked at whole before it is taken for a wrapper.
_SINGLE_ROW_BYTES = 8 << 20
# An error this near to the end of what was read may be a token that goes on.
_TOKEN_CHARS = 16
_MOST_FIRST_KEYS = 8
_ROWS_TO_LEARN = 3
# What is passed over after a broken row is told from here on.
_MUCH_BYTES = 1 << 14
_FIRST_KEY = re.compile(r'\{[ \t\r\n]*("(?:[^"\\]|\\.){0,200}")')
_AT_END = re.compile(r"[ \t\r\n]*\Z")
_LIST_OF_OBJECTS = re.compile(r"\[[ \t\r\n]*\{")
# What follows the end of an array at the top, and of a list in an object.
_AFTER_ARRAY = re.compile(r"[ \t\r\n]*(?:[\[{]|\Z)")
_AFTER_LIST = re.compile(r'[ \t\r\n]*(?:,[ \t\r\n]*"|\}[ \t\r\n]*\Z)')
_OBJECT_AT_MARGIN = re.compile(r"\n(?=\{)")


class _Row(NamedTuple):
    """A row or why it is none, and its line. `is_passed`: the window stands after it."""

    found: dict[str, Any] | RowFault
    line: int
    is_passed: bool = True


_Found = Generator[_Row | Fault, None, bool]


def read_document(stream: ByteStream, name: str) -> Generator[Record | Fault, None, int]:
    """A Record or Fault per row, wherever it stands; returns the number of lines.

    Several rows on one line are told apart by their number in the file.
    """
    document = _Document(stream, name)
    rows = _placed(document.rows(), name)
    if stream.has_bom:
        # The first row is the one the mark spoils; what follows is judged as usual.
        next(rows, None)
        yield bom_fault().at(name, 1)
    yield from rows
    return document.line


def _placed(found: Iterator[_Row | Fault], name: str) -> Iterator[Record | Fault]:
    held: _Row | None = None
    number = last_line = 0

    def place(row: _Row, next_line: int) -> Record | Fault:
        shares = row.line in (last_line, next_line)
        at = (row.line, number if shares else None)
        if isinstance(row.found, RowFault):
            return row.found.at(name, *at)
        return Record(row.found, *at)

    for item in found:
        if held is not None:
            yield place(held, item.line)
            last_line = held.line
        if isinstance(item, Fault):
            yield item
            held = None
        else:
            number, held = number + 1, item
    if held is not None:
        yield place(held, 0)


class _Document:
    def __init__(self, stream: ByteStream, name: str) -> None:
        self._window = Window(stream)
        self._name = name
        self._decoder = StrictDecoder()
        self._in_array = False
        # The first keys of the rows so far, as they are written, and the keys common to all; what
        # the first few of an array have before them.
        self._first_keys: dict[str, str] = {}
        self._common: set[str] | None = None
        self._margin = ""
        self._to_learn = _ROWS_TO_LEARN

    @property
    def line(self) -> int:
        """The line that has been reached."""
        return self._window.line

    def rows(self) -> Iterator[_Row | Fault]:
        """The rows of every array and object at the top."""
        window = self._window
        ended, is_whole = "", True
        while is_whole and (char := window.skip_space()):
            if char == "[":
                ended, is_whole = "array", (yield from self._array(_AFTER_ARRAY))
            elif char == "{":
                ended, is_whole = "object", (yield from self._object())
            else:
                yield self._fault(RowFault("json", f"text follows the end of the {ended}"))
                return

    def _array(self, after: re.Pattern[str]) -> _Found:
        """The rows of the array that the window stands at; whether it came to its `]`.

        `after`: what must follow that, if there was damage, so that it is believed.
        """
        window = self._window
        window.pos += 1
        self._in_array, self._to_learn = True, _ROWS_TO_LEARN
        after_row = is_damaged = False
        while char := window.skip_space():
            if char == "]" and (not is_damaged or window.at(after, 1)):
                window.pos += 1
                self._in_array = False
                return True
            if char == "," and after_row:
                window.pos += 1
                after_row = False
                continue
            if char in ",]" or (after_row and char != "{"):
                expected = "',' or ']'" if after_row else "a row"
                row = self._skip(
                    RowFault("json", f"{char!r} where {expected} should be{self._at()}")
                )
            else:
                row = self._row()
                if after_row and not isinstance(row.found, RowFault):
                    reason = RowFault("json", "expected ',' or ']' before this row", "add a comma")
                    row = row._replace(found=reason)
            yield row
            after_row = row.is_passed
            is_damaged = is_damaged or not row.is_passed
            if not (row.is_passed or window.held):
                return False
        yield self._fault(RowFault("json", "the array has no end: ']' is missing"))
        return False

    def _object(self) -> _Found:
        """The row that an object at the top is, or the rows of the list in it."""
        window = self._window
        try:
            value, end, refused = self._decode(_SINGLE_ROW_BYTES)
        except RowFault:
            key = window.at(_FIRST_KEY)
            is_row = key is not None and key[1].strip('"') in _ROW_KEYS
        else:
            is_row = any(value.get(key) is not None for key in _ROW_KEYS)
            if not is_row and not any(map(_holds_rows, value.values())):
                if not value or [] in value.values():
                    reason = "a JSON object that is no row and holds no list of rows"
                    hint = "write one row per line, or an array of rows"
                    refused = refused or RowFault("no-rows", reason, hint)
                yield self._take(value, end, refused)
                return True
        if not is_row:
            return (yield from self._wrapped())
        yield self._row()
        return True

    def _wrapped(self) -> _Found:
        """The rows of the list in an object that is no row; whether it came to its end.

        A second list is one fault: which of them is meant is not for a reader to guess.
        """
        window = self._window
        line = window.line
        window.pos += 1
        read_from: str | None = None
        try:
            while window.skip_space() != "}":
                key = self._value() if window.skip_space() == '"' else None
                if key is None or window.skip_space() != ":":
                    raise RowFault("json", f"expected a key in double quotes and ':'{self._at()}")
                window.pos += 1
                if window.skip_space() == "[" and window.at(_LIST_OF_OBJECTS):
                    if read_from is not None:
                        lost = f"the list under {key!r} was not read: the rows of this file are"
                        hint = "put each list in a file of its own"
                        raise RowFault("second-list", f"{lost} those under {read_from!r}", hint)
                    read_from = key
                    if not (yield from self._array(_AFTER_LIST)):
                        return False
                else:
                    self._value()
                if window.skip_space() == ",":
                    window.pos += 1
                elif window.skip_space() != "}":
                    raise RowFault("json", f"expected ',' or '}}'{self._at()}")
        except RowFault as fault:
            if read_from is None:
                yield self._skip(fault)._replace(line=line)
                return True
            yield self._fault(fault)
            return False
        window.pos += 1
        return True

    def _value(self) -> Any:
        """The value at the window's place, which moves behind it. Raises RowFault."""
        value, end, refused = self._decode()
        if refused is not None:
            raise refused
        self._window.pos = end
        return value

    def _row(self) -> _Row:
        try:
            value, end, refused = self._decode()
        except RowFault as reason:
            return self._skip(reason)
        return self._take(value, end, refused)

    def _take(self, value: Any, end: int, refused: RowFault | None) -> _Row:
        """The row up to `end`, which the window moves behind."""
        window = self._window
        line, began = window.line, window.byte
        margin = self._margin_here() if self._to_learn else self._margin
        text = window.text[window.pos : end]
        window.pos = end
        try:
            refuse_too_long(size(text))
            if not text.isascii():
                decoded(text.encode("utf-8", "surrogateescape"), began, one_line=False)
            row = as_row(value, refused)
        except RowFault as fault:
            return _Row(fault, line)
        self._margin, self._to_learn = margin, max(0, self._to_learn - 1)
        if row.keys() != self._common:
            self._common = {*row} if self._common is None else self._common & row.keys()
        first = next(iter(row), None)
        is_new = first not in self._first_keys and len(self._first_keys) < _MOST_FIRST_KEYS
        if is_new and (key := _FIRST_KEY.match(text)):
            self._first_keys[str(first)] = re.escape(key[1])
        return _Row(row, line)

    def _decode(self, most: int | None = None) -> tuple[Any, int, RowFault | None]:
        """The value at the window's place, its end, and why it is refused if it is.

        Raises RowFault for what has no end, or is longer than `most`.
        """
        window = self._window
        while True:
            try:
                value, end, refused = self._decoder.value_at(window.text, window.pos)
                # A row that ends with the file may have swallowed others: the array's end is its.
                is_last = window.ended and _AT_END.match(window.text, end)
                swallows = is_last and self._next_row() is not None
                if (end < len(window.text) or window.ended) and not swallows:
                    return value, end, refused
            except json.JSONDecodeError as error:
                near_end = error.pos >= len(window.text) - _TOKEN_CHARS
                if window.ended or not (near_end or error.msg.startswith("Unterminated string")):
                    byte = window.byte + size(window.text[window.pos : error.pos])
                    raise syntax_fault(error, f"byte {byte + 1}") from None
            refuse_too_long(window.held)
            if most is not None and window.held > most:
                raise RowFault("row-size", "the object is too long to be looked at whole")
            if self._next_row() is not None:
                reason = f"the row that begins{self._at()} has no end before the next"
                raise RowFault("json", reason, "a quote or a bracket is missing")
            window.more()

    def _next_row(self) -> int | None:
        """Where a whole row begins for certain after the one here, as far as the window goes."""
        return self._next_start(*self._starts(), is_whole=True) if self._in_array else None

    def _skip(self, reason: RowFault) -> _Row:
        """On to the next row; the reason says what is lost, if it is much or all the rest."""
        window = self._window
        line, began = window.line, window.byte
        pattern, is_certain = self._starts()
        place = "next"
        while (start := self._next_start(pattern, is_certain, is_whole=False)) is None:
            window.pos = max(window.pos, len(window.text) - LEAD_CHARS)
            if not window.more():
                start, place = len(window.text), "last"
                break
        window.pos = start
        lost = window.byte - began
        if place == "last" or lost > _MUCH_BYTES:
            message = f"{reason.message}; the {place} {lost:,} bytes could not be read"
            reason = RowFault(reason.code, message, reason.hint)
        return _Row(reason, line, is_passed=False)

    def _starts(self) -> tuple[re.Pattern[str], bool]:
        """What a row after the one at the window's place begins with, and whether only rows do."""
        if not self._in_array:
            return _OBJECT_AT_MARGIN, True
        margin = self._margin_here() if self._to_learn else self._margin
        if margin:
            return re.compile(re.escape(margin) + r"(?=\{)"), True
        own = _FIRST_KEY.match(self._window.text, self._window.pos)
        keys = [*self._first_keys.values()] or ([re.escape(own[1])] if own else ['"'])
        return re.compile(rf",[ \t\r\n]*(?=\{{[ \t\r\n]*(?:{'|'.join(keys)}))"), False

    def _margin_here(self) -> str:
        """The line break and indentation here, if they tell a row from what is within one.

        No string holds a bare line break, and what is within a row is further to the right.
        """
        text, pos = self._window.text, self._window.pos
        before = text[max(0, pos - LEAD_CHARS) : pos]
        lead = before[len(before.rstrip(" \t\r\n")) :]
        margin = lead[lead.rfind("\n") :] if "\n" in lead else ""
        return "" if margin == "\n" and text[pos + 1 : pos + 2] in "\r\n" else margin

    def _next_start(
        self, pattern: re.Pattern[str], is_certain: bool, *, is_whole: bool
    ) -> int | None:
        """Where the next row begins, as far as the window goes. `is_whole`: it has to end too.

        Where that is not certain, it has most of the keys of the rows before, or is broken.
        """
        text, at = self._window.text, self._window.pos
        while match := pattern.search(text, at):
            at = match.end()
            try:
                keys = {} if is_certain else self._decoder.value_at(text, at)[0]
            except (json.JSONDecodeError, RowFault):
                if not is_whole:
                    return at
                continue
            common = self._common or set()
            if is_certain or not common or 2 * len(common.intersection(keys)) > len(common):
                return at
        return None

    def _fault(self, reason: RowFault) -> Fault:
        return reason.at(self._name, self._window.line)

    def _at(self) -> str:
        return f" at byte {self._window.byte + 1} of the file"


def _holds_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


# What is kept before the place that is read, for what a row begins with.
LEAD_CHARS = 256
_STEP_BYTES = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]*")


class Window:
    """The text of a stream around the index `pos`, as far as it has been asked for.

    Bytes that are not UTF-8 are lone surrogates in it.
    """

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text = ""
        self.pos = 0
        self.ended = False
        # The line and byte of an index that has been passed.
        self._line, self._byte, self._counted = 1, stream.start, 0

    def more(self) -> bool:
        """Read as much again as is held; False at the end. What is far before `pos` is dropped."""
        self._count()
        keep = max(0, self.pos - LEAD_CHARS)
        pieces = [self.text[keep:]]
        kept = len(pieces[0])
        wanted = max(_STEP_BYTES, self.held)
        while wanted > 0 and (chunk := self._stream.read()):
            pieces.append(self._decoder.decode(chunk))
            wanted -= len(chunk)
        if wanted > 0:
            self.ended = True
            pieces.append(self._decoder.decode(b"", final=True))
        self.text = "".join(pieces)
        self.pos -= keep
        self._counted = self.pos
        return not self.ended or len(self.text) > kept

    @property
    def held(self) -> int:
        """The characters from `pos` on."""
        return len(self.text) - self.pos

    @property
    def line(self) -> int:
        """The line of the file that `pos` is on."""
        self._count()
        return self._line

    @property
    def byte(self) -> int:
        """The byte of the file, from 0, that `pos` is at."""
        self._count()
        return self._byte

    def skip_space(self) -> str:
        """Move to the next character that is not white space; nothing at the end."""
        while True:
            match = _SPACE.match(self.text, self.pos)
            self.pos = match.end() if match else self.pos
            if self.pos < len(self.text):
                return self.text[self.pos]
            if self.ended or not self.more():
                return ""

    def at(self, pattern: re.Pattern[str], skip: int = 0) -> re.Match[str] | None:
        """The match of a pattern that looks at less than LEAD_CHARS, here or a little further."""
        if self.held < LEAD_CHARS + skip and not self.ended:
            self.more()
        return pattern.match(self.text, self.pos + skip)

    def _count(self) -> None:
        if self._counted < self.pos:
            passed = self.text[self._counted : self.pos]
            self._line += passed.count("\n")
            self._byte += size(passed)
            self._counted = self.pos


def size(text: str) -> int:
    """The bytes of a piece of a window's text."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))
