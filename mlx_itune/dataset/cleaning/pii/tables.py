"""Which column head stands over a place of a table written as text (CSV, TSV, Markdown)."""

from __future__ import annotations

import re
from functools import cached_property

_QUOTED = re.compile(r'"[^"\n]*"')
_RULE = re.compile(r"[\s|:\-+=]+")
_NO_HEAD = re.compile(r"\d|[.!?:]$")
_DELIMITERS = "|\t;,"
_MOST_LINES, _LONGEST_HEADS, _LONGEST_LINE = 5000, 400, 4000


class Columns:
    """The tables of a text in lower case, looked for only when somebody asks."""

    def __init__(self, low: str) -> None:
        self._low = low

    @cached_property
    def _rows(self) -> dict[int, tuple[list[str], str]]:
        """Column heads and delimiter, by where the row's line starts."""
        rows: dict[int, tuple[list[str], str]] = {}
        if "\n" not in self._low or not any(self._low.count(mark) > 1 for mark in _DELIMITERS):
            return rows
        lines = self._low.split("\n", _MOST_LINES)[:_MOST_LINES]
        table: tuple[list[str], str] | None = None
        start = 0
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            if table and line.count(table[1]) >= len(table[0]) - 1:
                if len(line) <= _LONGEST_LINE:
                    rows[start] = table
            else:
                found = (_heads(line, following, mark) for mark in _DELIMITERS)
                table = next(filter(None, found), None) if len(line) <= _LONGEST_HEADS else None
            start += len(line) + 1
        return rows

    @property
    def heads(self) -> set[str]:
        """Every column head."""
        return {head for heads, _ in self._rows.values() for head in heads}

    def cell(self, place: int) -> tuple[int, str]:
        """Where the cell begins that a place is in, and its column's head; (0, "") elsewhere."""
        if not self._rows:
            return 0, ""
        start = self._low.rfind("\n", 0, place) + 1
        if start not in self._rows:
            return 0, ""
        heads, mark = self._rows[start]
        lead = self._low[start:place]
        if '"' in lead:
            lead = _QUOTED.sub(lambda quoted: "_" * len(quoted[0]), lead)
            opened = lead.find('"')
            lead = lead if opened < 0 else lead[: opened + 1]
        # The last value may hold the delimiter itself: "June 3, 1970".
        return start + lead.rfind(mark) + 1, heads[min(lead.count(mark), len(heads) - 1)]


def _heads(line: str, following: str, mark: str) -> tuple[list[str], str] | None:
    """The heads in a line, if it reads like the first one of a table."""
    count = line.count(mark)
    if not count or following.count(mark) < count:
        return None
    if not (_RULE.fullmatch(following) or re.search(r"\d", following)):
        return None
    cells = [cell.strip(" \"'*`_").replace("_", " ") for cell in line.split(mark)]
    filled = [cell for cell in cells if cell]
    if len(filled) < 2 or any(len(cell) > 32 or len(cell.split()) > 5 for cell in filled):
        return None
    return None if any(map(_NO_HEAD.search, filled)) else (cells, mark)
