"""Which column head stands over a place of a table written as text (CSV, TSV, Markdown)."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable

# The place in the text where the cell begins, and the words of its column head.
Head = tuple[int, str]

_DELIMITERS = ("|", "\t", ";", ",")
_RULE = re.compile(r"[\s|:\-+=]+")
_MAX_LINES = 5000


def _cuts(line: str, delimiter: str) -> list[int]:
    """Where the delimiter stands outside double quotes."""
    if '"' not in line:
        return [at for at, char in enumerate(line) if char == delimiter]
    cuts, quoted = [], False
    for at, char in enumerate(line):
        if char == '"':
            quoted = not quoted
        elif char == delimiter and not quoted:
            cuts.append(at)
    return cuts


def _heads(line: str, delimiter: str) -> list[str] | None:
    cells = [cell.strip(" \"'*`_") for cell in line.split(delimiter)]
    filled = [cell for cell in cells if cell]
    if len(filled) < 2 or any(len(cell) > 32 or len(cell.split()) > 5 for cell in filled):
        return None
    return None if any(re.search(r"\d|[.!?:]$", cell) for cell in filled) else cells


def column_heads(low: str) -> Callable[[int], Head | None] | None:
    """A function from a position to its cell's head, or None where the text holds no table."""
    if "\n" not in low:
        return None
    delimiters = [delimiter for delimiter in _DELIMITERS if low.count(delimiter) > 1]
    if not delimiters:
        return None
    lines = low.split("\n", _MAX_LINES)
    if len(lines) > _MAX_LINES:
        lines.pop()
    starts: list[int] = []
    rows: dict[int, tuple[list[str], str]] = {}
    position = 0
    current: tuple[list[str], str] | None = None
    for number, line in enumerate(lines):
        starts.append(position)
        position += len(line) + 1
        if current is not None and line.count(current[1]) >= len(current[0]) - 1:
            rows[number] = current
            continue
        current = None
        for delimiter in delimiters:
            count = line.count(delimiter)
            if not count or len(line) > 400 or number + 1 == len(lines):
                continue
            following = lines[number + 1]
            if following.count(delimiter) >= count:
                heads = _heads(line, delimiter)
                if heads is not None and (
                    _RULE.fullmatch(following) or re.search(r"\d", following)
                ):
                    current = (heads, delimiter)
                    break
    if not rows:
        return None

    def head_at(place: int) -> Head | None:
        number = bisect_right(starts, place) - 1
        found = rows.get(number)
        if found is None:
            return None
        heads, delimiter = found
        cuts = [cut for cut in _cuts(lines[number], delimiter) if cut < place - starts[number]]
        begin = starts[number] + (cuts[-1] + 1 if cuts else 0)
        # The last value may hold the delimiter itself: "June 3, 1970".
        return begin, heads[min(len(cuts), len(heads) - 1)].replace("_", " ")

    return head_at
