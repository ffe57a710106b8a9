"""One raw row with its line, and the faults that every reader knows."""

from __future__ import annotations

from typing import Any, NamedTuple

from mlx_itune.dataset.faults import RowFault
from mlx_itune.dataset.reading.stream import MAX_ROW_BYTES


class Record(NamedTuple):
    """A row as it stands in its file; `line` counts from 1."""

    value: dict[str, Any]
    line: int


def bom_fault() -> RowFault:
    """JSON may not begin with a byte order mark; the row that does is refused."""
    return RowFault(
        "bom", "the file starts with a byte order mark", "save it as UTF-8 without a BOM"
    )


def row_too_long() -> RowFault:
    """A row that would not fit in memory with its neighbours."""
    return RowFault(
        "row-size",
        f"the row is longer than {MAX_ROW_BYTES >> 20} MiB",
        "split it, or look for a missing line break or bracket",
    )


def not_an_object() -> RowFault:
    """A row of the wrong JSON type."""
    return RowFault("not-an-object", "a row must be a JSON object")
