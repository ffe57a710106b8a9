"""`--map field=column`: which column of a row is the instruction, the answer, a tag."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mlx_itune.dataset.faults import RowFault
from mlx_itune.dataset.formats.fields import Row, as_text, kind_name
from mlx_itune.kit.errors import UsageError, closest

# Fields that hold lists; all others hold text.
LISTS = frozenset({"messages", "conversations", "instances", "tools", "functions"})
TEXTS = frozenset(
    "instruction input output question answer prompt completion inputs targets text system "
    "response context".split()
)
_ASKED = frozenset("instruction question prompt input inputs query user human".split())
_ANSWERED = frozenset("output answer response completion target targets reply assistant".split())
# A tag is any other name, so only a near miss is taken for a typo.
_NEAR = 1


def check_columns(columns: Mapping[str, str]) -> None:
    """Raise UsageError for a mapping that cannot be meant: empty, or with a misspelt field."""
    if not columns:
        raise UsageError(
            "--map names no column", hint="--map instruction=question --map output=answer"
        )
    for field, column in columns.items():
        if not field or not column:
            raise UsageError(f"--map {field}={column} lacks a name", hint="write field=column")
        known = closest(field, TEXTS | LISTS)
        if field not in TEXTS | LISTS and known and _edits(field, known) <= _NEAR:
            raise UsageError(f"--map {field}={column}: no field {field!r}", hint=f"{known!r}?")


def names_positions(columns: Mapping[str, str] | None) -> bool:
    """Whether every column is a number, which is how a table without a header is addressed."""
    return columns is not None and all(column.isdigit() for column in columns.values())


def map_example(row: Row) -> str:
    """How --map could be given for a row: the columns that sound like question and answer, or else
    the last two."""
    asked, answered = ["COLUMN", "COLUMN", *row][-2:]
    asked = next((name for name in row if name.strip().lower() in _ASKED), asked)
    answered = next((name for name in row if name.strip().lower() in _ANSWERED), answered)
    quoted = (name if re.fullmatch(r"[\w.-]+", name) else f'"{name}"' for name in (asked, answered))
    return "--map instruction={} --map output={}".format(*quoted)


def mapped(row: Row, columns: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields that `columns` names with their values, and the rest of the row.

    Numbers become text. Raises RowFault where a column is missing.
    """
    fields: dict[str, Any] = {}
    taken: set[str] = set()
    for field, column in columns.items():
        value = _lookup(row, column)
        taken.add(column)
        if field not in LISTS and value is not None and not isinstance(value, str):
            if isinstance(value, (list, dict)) and field in TEXTS and field != "prompt":
                raise RowFault("type", f"the column {column!r} is {kind_name(value)}, not a text")
            if not isinstance(value, (list, dict)):
                value = as_text(value)
        fields[field] = value
    return fields, {key: item for key, item in row.items() if key not in taken}


def _lookup(row: Row, column: str) -> Any:
    if column in row:
        return row[column]
    value: Any = row
    walked: list[str] = []
    for part in column.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise _missing(column, ".".join(walked), value)
        walked.append(part)
    return value


def _missing(column: str, within: str, value: Any) -> RowFault:
    there = list(value) if isinstance(value, dict) else []
    names = [f"{within}.{name}" if within else name for name in there]
    near = closest(column, names)
    hint = f"did you mean {near!r}?" if near else f"it has {', '.join(map(repr, names[:8]))}"
    return RowFault("missing-column", f"no column {column!r}", hint if names else "")


def _edits(one: str, other: str) -> int:
    """How many letters have to be changed, added, removed or swapped: 0, 1, or 2 for more."""
    if one == other:
        return 0
    start = 0
    while start < min(len(one), len(other)) and one[start] == other[start]:
        start += 1
    rests = (one[start + 1 :], other[start:]), (one[start:], other[start + 1 :])
    swapped = one[start : start + 2] == other[start : start + 2][::-1]
    same = (one[start + 1 :] == other[start + 1 :]) or any(a == b for a, b in rests)
    return 1 if same or (swapped and one[start + 2 :] == other[start + 2 :]) else 2
