"""A JSON file that is one object: a list of rows under a key ({"data": [...]}), or a single row."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import orjson

from mlx_itune.dataset.faults import Fault, RowFault
from mlx_itune.dataset.reading.array import read_array
from mlx_itune.dataset.reading.json_text import strict
from mlx_itune.dataset.reading.record import Record
from mlx_itune.dataset.reading.stream import MAX_ROW_BYTES
from mlx_itune.dataset.reading.window import Scan, Window

# Keys of rows: an object that has one of them is a row, not a wrapper around rows.
_ROW_KEYS = frozenset(
    "messages conversations conversation instances instruction question prompt inputs input output "
    "text".split()
)
# A file up to this size is looked at whole before its only object is taken for a wrapper.
_SINGLE_ROW_BYTES = 8 << 20


def read_object(window: Window, name: str) -> Generator[Record | Fault, None, bool]:
    """The row that the object at the window's place is, or the rows of the list that it holds.

    A second list of rows is one fault: which of them is meant is not for a reader to guess.
    Returns whether the object came to its end.
    """
    if _is_row(window):
        line, raw = window.line, window.data[window.pos :]
        try:
            yield Record(strict(raw, window.offset, one_line=False), line)
        except RowFault as fault:
            yield fault.at(name, line)
        window.pos = len(window.data)
        return True
    line = window.line
    window.pos += 1
    read_from: str | None = None
    try:
        while window.skip_space() != b"}":
            key = _key(window)
            if window.skip_space() == b"[" and _holds_objects(window):
                if read_from is not None:
                    raise _second_list(key, read_from)
                read_from = key
                if not (yield from read_array(window, name)):
                    return False
            else:
                _value(window)
            if window.skip_space() == b",":
                window.pos += 1
            elif window.skip_space() != b"}":
                raise _syntax(window, "expected ',' or '}'")
        if read_from is None:
            raise RowFault(
                "no-rows",
                "a JSON object that is no row and holds no list of rows",
                "write one row per line, or an array of rows",
            )
    except RowFault as fault:
        yield fault.at(name, line if read_from is None else window.line)
        return False
    window.pos += 1
    return True


def _is_row(window: Window) -> bool:
    while len(window.data) - window.pos <= _SINGLE_ROW_BYTES and window.more():
        pass
    if not window.ended:
        return False
    try:
        value = orjson.loads(window.data[window.pos :])
    except orjson.JSONDecodeError:
        return False
    return any(value.get(key) is not None for key in _ROW_KEYS)


def _key(window: Window) -> str:
    key = _value(window) if window.skip_space() == b'"' else None
    if not isinstance(key, str) or window.skip_space() != b":":
        raise _syntax(window, "expected a key in double quotes and ':'")
    window.pos += 1
    return key


def _value(window: Window) -> Any:
    """The value at the window's place, which moves behind it."""
    scan = Scan(window.pos)
    while not scan.run(window.data, len(window.data), is_all=window.ended):
        if window.ended or len(window.data) - window.pos > MAX_ROW_BYTES:
            break
        before = window.pos
        scan.moved(before if window.more() else 0)
    if scan.end is None or scan.end == window.pos:
        raise _syntax(window, "a value that has no end")
    value = strict(window.data[window.pos : scan.end], window.offset, one_line=False)
    window.pos = scan.end
    return value


def _holds_objects(window: Window) -> bool:
    """Whether the list at the window's place begins with an object."""
    if len(window.data) - window.pos < 4096:
        window.more()
    return window.data[window.pos + 1 : window.pos + 4096].lstrip()[:1] == b"{"


def _second_list(key: str, read_from: str) -> RowFault:
    return RowFault(
        "second-list",
        f"the list under {key!r} was not read: the rows of this file are those under {read_from!r}",
        "put each list in a file of its own",
    )


def _syntax(window: Window, reason: str) -> RowFault:
    return RowFault("json", f"{reason} at byte {window.offset + 1} of the file")
