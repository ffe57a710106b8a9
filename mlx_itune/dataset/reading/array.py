"""A JSON array of any length: one row per element, in a window of a few megabytes.

A broken element is one fault. Reading goes on where the next one certainly begins: after the
element's own brackets where they match, else at the next place that looks exactly like the start of
the rows before (the same line break and indentation, or the same first key).
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any

import orjson

from mlx_itune.dataset.faults import Fault, RowFault
from mlx_itune.dataset.reading.batch import lines_of, rows_at
from mlx_itune.dataset.reading.json_text import is_exact, strict
from mlx_itune.dataset.reading.record import Record, not_an_object, row_too_long
from mlx_itune.dataset.reading.stream import MAX_ROW_BYTES
from mlx_itune.dataset.reading.window import Scan, Window

_FIRST_KEY = re.compile(rb'\{[ \t\r\n]*"(?:[^"\\]|\\.){0,200}"')
_REASON_BYTES = 1 << 20
_LEAD_BYTES = 256
_WORTH_WHILE = 8
_FAR_BYTES = 1 << 12

Rows = Generator[Record | Fault, None, bool]


def read_array(window: Window, name: str) -> Rows:
    """The rows of the array whose `[` the window stands at; True if it came to its `]`."""
    window.pos += 1
    return (yield from _Elements(window, name).rows())


class _Elements:
    def __init__(self, window: Window, name: str) -> None:
        self._window = window
        self._name = name
        self._lead = b""
        self._good: bytes = b""
        self._passed = True
        self._nowhere = b"", 0
        self._compared = 0
        self._longest = 0
        self._was_whole = True
        self._singly = 0
        self._next_pause = 1

    def rows(self) -> Rows:
        window = self._window
        after_row = False
        while True:
            byte = self._next_byte()
            if byte == b"]":
                window.pos += 1
                return True
            if not byte:
                yield self._fault(RowFault("json", "the array has no end: ']' is missing"))
                return False
            if byte == b"," and after_row:
                window.pos += 1
                after_row = False
                continue
            if byte in (b",", b"}", b":"):
                yield self._fault(
                    RowFault("json", f"{byte.decode()!r} where a row should be{self._place()}")
                )
                window.pos += 1
                after_row = byte != b","
                continue
            if self._singly:
                self._singly -= 1
            elif byte == b"{" and not after_row:
                values, starts, end = rows_at(window.data, window.pos)
                self._pause(len(values))
                if values:
                    yield from map(Record, values, lines_of(window.data, starts, window.line))
                    self._good = window.data[starts[-1] : end]
                    window.pos = end
                    after_row = True
                    continue
            record = self._whole_row() if byte == b"{" else None
            self._was_whole = record is not None
            if record is None:
                line = window.line
                found = self._row_or_reason()
                if isinstance(found, RowFault):
                    yield found.at(self._name, line)
                    if window.ended and window.pos >= len(window.data):
                        return False
                    # Either a row has been passed, or the window stands at the next one.
                    after_row = self._passed
                    continue
                record = Record(found, line)
            if after_row:
                reason = RowFault("json", "expected ',' or ']' before this row", "add a comma")
                yield reason.at(self._name, record.line)
            else:
                yield record
            after_row = True

    def _pause(self, found: int) -> None:
        """Where batches come out short, rows are read singly for a while: longer each time."""
        if found >= _WORTH_WHILE:
            self._next_pause = 1
        else:
            self._singly = self._next_pause
            self._next_pause = min(2 * self._next_pause, 256)

    def _next_byte(self) -> bytes:
        """The next byte that is no space; what stood before it is kept as the row's lead."""
        window = self._window
        if len(window.data) - window.pos < _LEAD_BYTES:
            window.more()
        before = window.pos
        byte = window.skip_space()
        if window.pos >= before:
            self._lead = window.data[before : window.pos]
        return byte

    def _whole_row(self) -> Record | None:
        """The object at the window's place, if it can be read the fast way.

        Braces in strings are not told from others; a wrong end does not parse, and an object that
        parses ends nowhere else.
        """
        window = self._window
        end = self._balanced_end()
        if end is None or end - window.pos > MAX_ROW_BYTES:
            return None
        raw = window.data[window.pos : end]
        try:
            value = orjson.loads(raw)
            if not is_exact(raw, value):
                return None
        except (orjson.JSONDecodeError, orjson.JSONEncodeError, RecursionError):
            return None
        record = Record(value, window.line)
        window.pos = end
        self._good = raw
        self._longest = max(self._longest, len(raw))
        return record

    def _balanced_end(self) -> int | None:
        window = self._window
        at, depth = window.pos, 0
        # An odd brace in a text makes this go on for ever: `_scan` finds the end of such rows.
        limit = 2 * self._longest + (_FAR_BYTES if self._was_whole else _LEAD_BYTES)
        while at - window.pos < limit:
            data = window.data
            found = data.find(b"}", at)
            if found < 0:
                depth += data.count(b"{", at)
                at = len(data) - window.pos
                if not window.more():
                    return None
                continue
            depth += data.count(b"{", at, found) - 1
            at = found + 1
            if depth <= 0:
                return at
        return None

    def _row_or_reason(self) -> dict[str, Any] | RowFault:
        """The row at the window's place, read with care, or why it is none.

        Afterwards the window stands after the row, or at the next, or at the end of the file.
        """
        window = self._window
        scan, start = self._scan()
        self._passed = True
        if scan.end is not None:
            raw = window.data[window.pos : scan.end]
            try:
                if len(raw) > MAX_ROW_BYTES:
                    raise row_too_long()
                value = strict(raw, window.offset, one_line=False)
                if not isinstance(value, dict):
                    raise not_an_object()
                window.pos = scan.end
                self._longest = max(self._longest, len(raw))
                return value
            except RowFault as fault:
                after = window.data[scan.end : scan.end + _LEAD_BYTES].lstrip()[:1]
                if fault.code != "json" or start is None or after in (b",", b"]"):
                    window.pos = scan.end
                    return fault
                reason = fault
        else:
            reason = self._reason(start)
        self._passed = False
        if start is None:
            return self._skip(reason)
        self._stand_at(start)
        return reason

    def _scan(self) -> tuple[Scan, int | None]:
        """The end of the value here, looked for no further than where the next row starts."""
        window = self._window
        scan = Scan(window.pos)
        searched = window.pos + 1
        while True:
            start = self._next_start(searched)
            stop = len(window.data) if start is None else start
            if scan.run(window.data, stop, is_all=window.ended) or start is not None:
                return scan, start
            held = len(window.data) - window.pos
            if held > MAX_ROW_BYTES or window.ended:
                return scan, None
            searched = max(searched, len(window.data) - _LEAD_BYTES)
            before = window.pos
            dropped = before if window.more() else 0
            searched -= dropped
            scan.moved(dropped)

    def _next_start(self, at: int) -> int | None:
        """Where the next row begins for certain, at or after `at`, as far as the window goes."""
        data = self._window.data
        base = self._window.offset - self._window.pos
        if b"\n" in self._lead:
            # No string holds a bare line break, so this cannot be inside one.
            needle = re.escape(b"," + self._lead) + rb"(?=\{)"
        else:
            model = self._good or data[self._window.pos : self._window.pos + _LEAD_BYTES]
            first_key = _FIRST_KEY.match(model)
            if first_key is None:
                return None
            needle = rb",[ \t\r\n]*(?=" + re.escape(first_key[0]) + rb")"
        if self._nowhere[0] == needle:
            at = max(at, self._nowhere[1] - base)
        pattern = re.compile(needle)
        match = pattern.search(data, at)
        while match is not None:
            start = match.end()
            if b"\n" in self._lead:
                return start
            match = pattern.search(data, start)
            if self._is_row(start, len(data) if match is None else match.start()):
                return start
            at = start
        # Asked for row after broken row, the same bytes are not searched again.
        self._nowhere = needle, base + max(at, len(data) - _LEAD_BYTES)
        return None

    def _is_row(self, at: int, next_at: int) -> bool:
        """Whether a whole object begins here, with the keys of the rows before if there are any.

        Where the next one might begin is as far as it may go, as long as there are so many broken
        ones that looking further has taken more than its share.
        """
        window = self._window
        scan = Scan(at)
        share = _REASON_BYTES + 4 * window.offset - self._compared
        stop = min(len(window.data), max(next_at, at + min(share, _REASON_BYTES)))
        is_found = scan.run(window.data, stop)
        self._compared += (scan.end or stop) - at
        if not is_found or not scan.end:
            return False
        try:
            value = orjson.loads(window.data[at : scan.end])
        except orjson.JSONDecodeError:
            return False
        return not self._good or value.keys() == orjson.loads(self._good).keys()

    def _reason(self, start: int | None) -> RowFault:
        window = self._window
        if len(window.data) - window.pos > MAX_ROW_BYTES and start is None:
            return row_too_long()
        stop = min(window.pos + _REASON_BYTES, len(window.data) if start is None else start)
        try:
            strict(window.data[window.pos : stop], window.offset, one_line=False)
        except RowFault as fault:
            return fault
        return RowFault("json", f"the row has no end{self._place()}")

    def _skip(self, reason: RowFault) -> RowFault:
        """On to the next row; where there is none to be found, the reason says what is lost."""
        window = self._window
        lost_from = window.offset
        window.pos += 1
        while (start := self._next_start(window.pos)) is None:
            window.pos = max(window.pos, len(window.data) - _LEAD_BYTES)
            if not window.more():
                window.pos = len(window.data)
                lost = window.offset - lost_from
                message = f"{reason.message}; the last {lost:,} bytes could not be read"
                return RowFault(reason.code, message, reason.hint)
        self._stand_at(start)
        return reason

    def _stand_at(self, start: int) -> None:
        """At the row that begins there, or at its lead, to be met again like any row's."""
        self._window.pos = start - (len(self._lead) if b"\n" in self._lead else 0)

    def _fault(self, reason: RowFault) -> Fault:
        return reason.at(self._name, self._window.line)

    def _place(self) -> str:
        return f" at byte {self._window.offset + 1} of the file"
