"""JSON documents of any length: arrays of rows, objects around one, rows one after the other. A
broken row is one fault. Reading goes on where the next one begins: at the place that looks exactly
like the start of the rows before, by its line break and indentation or its first key."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Generator, Iterator
from itertools import chain, pairwise
from typing import Any

from mlx_itune.dataset.conversation import Fault, RowFault
from mlx_itune.dataset.reading.stream import (
    BOM_FAULT,
    ByteStream,
    Record,
    StrictDecoder,
    as_row,
    decoded,
    refuse_too_long,
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
# What is kept before the place that is read, for what a row begins with.
_LEAD_CHARS = 256
_STEP_BYTES = 1 << 16

_SPACE = re.compile(r"[ \t\r\n]*")
_FIRST_KEY = re.compile(r'\{[ \t\r\n]*("(?:[^"\\]|\\.){0,200}")')
_NEXT_OBJECT = re.compile(r",[ \t\r\n]*(?=\{)")
_LIST_OF_OBJECTS = re.compile(r"\[[ \t\r\n]*\{")
# What follows the end of an array at the top, and of a list in an object.
_AFTER_ARRAY = re.compile(r"[ \t\r\n]*(?:[\[{]|\Z)")
_AFTER_LIST = re.compile(r'[ \t\r\n]*(?:,[ \t\r\n]*"|\}[ \t\r\n]*\Z)')

# The line of a row, and the row or why it is none.
_Row = tuple[int, dict[str, Any] | RowFault]


def read_document(stream: ByteStream, name: str) -> Generator[Record | Fault, None, int]:
    """A Record or Fault per row, wherever it stands; returns the number of lines. Several rows on
    one line are told apart by their number in the file."""
    document = _Document(stream)
    rows = _placed(document.rows(), name)
    if stream.has_bom:
        # The first row is the one the mark spoils; what follows is judged as usual.
        next(rows, None)
        yield BOM_FAULT.at(name, 1)
    yield from rows
    return document.window.line


def _placed(rows: Iterator[_Row], name: str) -> Iterator[Record | Fault]:
    last_line = 0
    pairs = pairwise(chain(rows, [(0, dict[str, Any]())]))
    for number, ((line, found), (next_line, _)) in enumerate(pairs, 1):
        row = number if line in (last_line, next_line) else None
        last_line = line
        if isinstance(found, RowFault):
            yield found.at(name, line, row)
        else:
            yield Record(found, line, row)


class _Document:
    def __init__(self, stream: ByteStream) -> None:
        self.window = Window(stream)
        self._decoder = StrictDecoder()
        self._in_array = False
        # What tells a row: the line break and indentation before the first few of an array, if
        # they do; the first keys of all so far, as they are written, and the keys common to all.
        self._margin, self._to_learn = "\n", 0
        self._first_keys: set[str] = set()
        self._common: set[str] | None = None

    def rows(self) -> Iterator[_Row]:
        window = self.window
        ended, is_whole = "", True
        while is_whole and (char := window.skip_space()):
            if char == "[":
                ended, is_whole = "array", (yield from self._array(_AFTER_ARRAY))
            elif char == "{":
                ended, is_whole = "object", (yield from self._object())
            else:
                yield window.line, RowFault("json", f"text follows the end of the {ended}")
                return

    def _array(self, after: re.Pattern[str]) -> Generator[_Row, None, bool]:
        """The rows of the array that the window stands at; whether it came to its `]`. `after`:
        what must follow that so that it is believed, if there was damage or a row follows."""
        window = self.window
        window.pos += 1
        self._in_array, self._margin, self._to_learn = True, "", _ROWS_TO_LEARN
        after_row = is_damaged = False
        while char := window.skip_space():
            if char == "]" and (window.at(after, 1) or not (is_damaged or self._next_row())):
                window.pos += 1
                self._in_array, self._margin = False, "\n"
                return True
            if char == "," and after_row:
                window.pos += 1
                after_row = False
                continue
            line = window.line
            if char == "{" and self._to_learn:
                self._look()
            try:
                if char in ",]" or (after_row and char != "{"):
                    expected = "',' or ']'" if after_row else "a row"
                    raise RowFault("json", f"{char!r} where {expected} should be{self._at()}")
                found = self._decode()
            except RowFault as reason:
                yield line, self._skip(reason)
                if not window.held:
                    return False
                after_row, is_damaged = False, True
            else:
                row = self._take(*found)
                if after_row and isinstance(row, dict):
                    row = RowFault("json", "expected ',' or ']' before this row", "add a comma")
                yield line, row
                after_row = True
        yield window.line, RowFault("json", "the array has no end: ']' is missing")
        return False

    def _object(self) -> Generator[_Row, None, bool]:
        window, line = self.window, self.window.line
        key = window.at(_FIRST_KEY)
        is_row = key is not None and key[1].strip('"') in _ROW_KEYS
        try:
            value, end, refused = self._decode(None if is_row else _SINGLE_ROW_BYTES)
        except RowFault as reason:
            if is_row:
                yield line, self._skip(reason)
                return True
            return (yield from self._wrapped())
        is_row = any(value.get(key) is not None for key in _ROW_KEYS)
        lists = [item for item in value.values() if isinstance(item, list)]
        if not is_row and any(items and isinstance(items[0], dict) for items in lists):
            return (yield from self._wrapped())
        if not is_row and (not value or [] in lists):
            lost = "a JSON object that is no row and holds no list of rows"
            hint = "write one row per line, or an array of rows"
            refused = refused or RowFault("no-rows", lost, hint)
        yield line, self._take(value, end, refused)
        return True

    def _wrapped(self) -> Generator[_Row, None, bool]:
        """The rows of the list in an object that is no row; whether it came to its end. A second
        list is one fault: which of them is meant is not for a reader to guess."""
        window, line = self.window, self.window.line
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
                yield line, self._skip(fault)
                return True
            yield window.line, fault
            return False
        window.pos += 1
        return True

    def _value(self) -> Any:
        """The value at the window's place, which moves behind it. Raises RowFault."""
        value, self.window.pos, refused = self._decode()
        if refused is not None:
            raise refused
        return value

    def _take(self, value: Any, end: int, refused: RowFault | None) -> dict[str, Any] | RowFault:
        """The row up to `end`, which the window moves behind, or why it is none."""
        window = self.window
        began = window.byte
        text = window.text[window.pos : end]
        window.pos = end
        try:
            refuse_too_long(size(text))
            if not text.isascii():
                decoded(text.encode("utf-8", "surrogateescape"), began, one_line=False)
            row = as_row(value, refused)
        except RowFault as fault:
            return fault
        self._to_learn = max(0, self._to_learn - 1)
        if row.keys() != self._common:
            self._common = {*row} if self._common is None else self._common & row.keys()
            if len(self._first_keys) < _MOST_FIRST_KEYS and (key := _FIRST_KEY.match(text)):
                self._first_keys.add(key[1])
        return row

    def _decode(self, most: int | None = None) -> tuple[Any, int, RowFault | None]:
        """The value at the window's place, its end, and why it is refused if it is. Raises RowFault
        for what has no end, or is longer than `most`."""
        window = self.window
        while True:
            try:
                value, end, refused = self._decoder.value_at(window.text, window.pos)
                is_last = window.ended and not window.text[end:].strip(" \t\r\n")
                # A row that ends with the file may have swallowed others: the array's end is its.
                swallows = is_last and self._next_whole_row() is not None
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
            if self._next_whole_row() is not None:
                reason = f"the row that begins{self._at()} has no end before the next"
                raise RowFault("json", reason, "a quote or a bracket is missing")
            window.more()

    def _skip(self, reason: RowFault) -> RowFault:
        """On to the next row; the reason says what is lost, if it is much or all the rest."""
        window = self.window
        began = window.byte
        place = "next"
        while (start := self._next_row()) is None:
            window.pos = max(window.pos, len(window.text) - _LEAD_CHARS)
            if not window.more():
                start, place = len(window.text), "last"
                break
        window.pos = start
        window.count()
        lost = window.byte - began
        if place == "next" and lost <= _MUCH_BYTES:
            return reason
        message = f"{reason.message}; the {place} {lost:,} bytes could not be read"
        return RowFault(reason.code, message, reason.hint)

    def _next_whole_row(self) -> int | None:
        """Where a whole row begins for certain after the one here, as far as the window goes."""
        return self._next_row(is_whole=True) if self._in_array else None

    def _next_row(self, *, is_whole: bool = False) -> int | None:
        """Where the next row begins, as far as the window goes. `is_whole`: it has to end too.
        Where no margin tells, it has the first key of a row before and most of the keys that all
        have, or is broken."""
        text, at = self.window.text, self.window.pos
        if self._margin:
            at = text.find(self._margin + "{", at)
            return None if at < 0 else at + len(self._margin)
        common = self._common or set()
        while match := _NEXT_OBJECT.search(text, at):
            at = match.end()
            key = _FIRST_KEY.match(text, at)
            if self._first_keys and not (key and key[1] in self._first_keys):
                continue
            try:
                keys = self._decoder.value_at(text, at)[0]
            except (json.JSONDecodeError, RowFault):
                if not is_whole:
                    return at
                continue
            if not common or 2 * len(common.intersection(keys)) > len(common):
                return at
        return None

    def _look(self) -> None:
        """What the row here begins with, for the next one to be found. No string holds a bare line
        break, and what is within a row is further to the right."""
        window = self.window
        if not self._first_keys and (key := window.at(_FIRST_KEY)):
            self._first_keys.add(key[1])
        text, pos = window.text, window.pos
        before = text[max(0, pos - _LEAD_CHARS) : pos]
        space = before[len(before.rstrip(" \t\r\n")) :]
        self._margin = space[space.rfind("\n") :] if "\n" in space else ""
        if self._margin == "\n" and text[pos + 1 : pos + 2] in "\r\n":
            self._margin = ""

    def _at(self) -> str:
        return f" at byte {self.window.byte + 1} of the file"


class Window:
    """The text of a stream around the index `pos`, as far as it has been asked for. Bytes that are
    not UTF-8 are lone surrogates in it."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text = ""
        self.pos = 0
        self.ended = False
        # The line of the file, from 1, and its byte, from 0, that was counted to.
        self.line, self.byte, self._counted = 1, stream.start, 0

    def more(self) -> bool:
        """Read as much again as is held; False at the end. What is far before `pos` is dropped."""
        self.count()
        keep = max(0, self.pos - _LEAD_CHARS)
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

    def skip_space(self) -> str:
        """Move to the next character that is not white space; nothing at the end."""
        while True:
            self.pos = _SPACE.match(self.text, self.pos).end()  # type: ignore[union-attr]
            if self.pos < len(self.text) or self.ended or not self.more():
                self.count()
                return self.text[self.pos : self.pos + 1]

    def at(self, pattern: re.Pattern[str], skip: int = 0) -> re.Match[str] | None:
        """The match of a pattern that looks at less than _LEAD_CHARS, here or a little further."""
        if self.held < _LEAD_CHARS + skip and not self.ended:
            self.more()
        return pattern.match(self.text, self.pos + skip)

    def count(self) -> None:
        """Let `line` and `byte` be those of `pos`."""
        passed = self.text[self._counted : self.pos]
        self.line += passed.count("\n")
        self.byte += size(passed)
        self._counted = self.pos


def size(text: str) -> int:
    """The bytes of a piece of a window's text."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))
