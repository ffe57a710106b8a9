"""JSON lines: one row per line, whatever is wrong with the line before."""

from __future__ import annotations

from collections.abc import Generator
from itertools import count
from typing import Any

import numpy as np
import orjson

from mlx_itune.dataset.faults import Fault, RowFault
from mlx_itune.dataset.reading.stream import (
    BLANK,
    ByteStream,
    Record,
    refuse_too_long,
)
from mlx_itune.dataset.reading.strict_json import StrictDecoder, bom_fault

_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_TOO_LONG = b"0" * 20
_ESCAPES = (b"\\u0000", b"\\u003a", b"\\u003A")


def read_lines(stream: ByteStream, name: str) -> Generator[Record | Fault, None, int]:
    """A Record or Fault per line that is not blank; returns the number of lines."""
    strict = StrictDecoder()
    number = 0
    if stream.has_bom:
        yield bom_fault().at(name, 1)
    for at, block in stream.blocks():
        lines = block.split(b"\n")
        is_spoiled = stream.has_bom and not number
        if not is_spoiled and (values := _fast(block, lines)):
            yield from map(Record, values, count(number + 1))
            number += len(lines)
            continue
        for raw in lines:
            number += 1
            if raw.strip(BLANK) and not is_spoiled:
                try:
                    refuse_too_long(len(raw))
                    yield Record(strict.row(raw, at), number)
                except RowFault as fault:
                    yield fault.at(name, number)
            is_spoiled = False
            at += len(raw) + 1
    return max(number, int(stream.has_bom))


def _fast(block: bytes, lines: list[bytes]) -> list[dict[str, Any]] | None:
    """The rows of a block of lines, if orjson's are certain to be the strict decoder's.

    orjson lets a key occur twice: then the rows, written out again, have fewer colons, unless an
    escaped one makes up for it. It makes a float of an integer of 20 digits or more, takes an
    escaped NUL, and will not write what is nested too deeply.
    """
    try:
        values = [*map(orjson.loads, lines)]
        again = orjson.dumps(values)
    except (orjson.JSONDecodeError, orjson.JSONEncodeError, RecursionError):
        return None
    is_exact = (
        {*map(type, values)} == {dict}
        and _colons(block) == _colons(again)
        and not (b"\\u00" in block and any(escape in block for escape in _ESCAPES))
        and _TOO_LONG not in block.translate(_DIGITS)
    )
    return values if is_exact else None


def _colons(text: bytes) -> int:
    # Several times faster than bytes.count, where there are many.
    return int(np.count_nonzero(np.frombuffer(text, np.uint8) == ord(":")))
