"""Rows of an array many at a time: found by their braces, parsed, and vouched for together."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import orjson

from mlx_itune.dataset.reading.json_text import are_exact

_BATCH_BYTES = 1 << 16
_COMMA = re.compile(rb"[ \t\r\n]*,[ \t\r\n]*(?=\{)")


def rows_at(data: bytes, start: int) -> tuple[list[dict[str, Any]], list[int], int]:
    """The objects from the `{` at `start` on, as far as nothing is out of the ordinary.

    Returns them, where each begins and where the last one ends. Braces within strings are counted
    too: where they are not even, the objects after them are left for a closer look.
    """
    stop = min(len(data), start + _BATCH_BYTES)
    text = np.frombuffer(data, np.uint8, stop - start, start)
    opening = text == 0x7B
    braces = np.flatnonzero(opening | (text == 0x7D))
    depth = np.cumsum(np.where(opening[braces], 1, -1))
    ends = (braces[depth == 0] + (start + 1)).tolist()
    values: list[dict[str, Any]] = []
    starts: list[int] = []
    at, last = start, start
    try:
        for end in ends:
            values.append(orjson.loads(data[at:end]))
            starts.append(at)
            last = end
            comma = _COMMA.match(data, end)
            if comma is None:
                break
            at = comma.end()
    except orjson.JSONDecodeError:
        pass
    try:
        if values and are_exact(data[start:last], values):
            return values, starts, last
    except orjson.JSONEncodeError:
        pass
    return [], [], start


def lines_of(data: bytes, starts: list[int], line: int) -> list[int]:
    """The lines that the starts are on, where `line` is that of the first."""
    first, last = starts[0], starts[-1]
    if data.find(b"\n", first, last) < 0:
        return [line] * len(starts)
    breaks = np.flatnonzero(np.frombuffer(data, np.uint8, last - first, first) == 0x0A)
    found: list[int] = (np.searchsorted(breaks, np.array(starts) - first) + line).tolist()
    return found
