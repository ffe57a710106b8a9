"""`--map field=column`: which column of a row is the instruction, the answer, a tag."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from mlx_itune.dataset.faults import RowFault
from mlx_itune.dataset.formats.fields import Row, as_text, kind_name
from mlx_itune.kit.errors import UsageError
from mlx_itune.kit.wording import did_you_mean, listing

# Fields that hold lists; all others hold text.
LISTS = frozenset({"messages", "conversations", "instances", "tools", "functions"})
TEXTS = frozenset(
    "instruction input output question answer prompt completion inputs targets text system "
    "response context".split()
)
# A tag is any other name, so only a near miss is taken for a typo.
_NEAR = 0.85


def check_columns(columns: Mapping[str, str]) -> None:
    """Raise UsageError for a mapping that cannot be meant: empty, or with a misspelt field."""
    if not columns:
        raise UsageError(
            "--map names no column", hint="--map instruction=question --map output=answer"
        )
    for field, column in columns.items():
        if not field or not column:
            raise UsageError(f"--map {field}={column} lacks a name", hint="write field=column")
        near = get_close_matches(field, sorted(TEXTS | LISTS), 1, _NEAR)
        if near and field not in TEXTS | LISTS:
            raise UsageError(
                f"--map {field}={column}: no field {field!r}", hint=f"did you mean {near[0]}?"
            )


def names_positions(columns: Mapping[str, str]) -> bool:
    """Whether every column is a number, which is how a table without a header is addressed."""
    return all(column.isdigit() for column in columns.values())


def mapped(row: Row, columns: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields that `columns` names with their values, and the rest of the row.

    Numbers become text. Raises RowFault where a column is missing.
    """
    fields: dict[str, Any] = {}
    for field, column in columns.items():
        value = _lookup(row, column)
        is_nested = isinstance(value, (list, dict))
        if is_nested and field in TEXTS and field != "prompt":
            raise RowFault("type", f"the column {column!r} is {kind_name(value)}, not a text")
        is_plain = value is None or is_nested or field in LISTS
        fields[field] = value if is_plain else as_text(value)
    taken = set(columns.values())
    return fields, {key: item for key, item in row.items() if key not in taken}


def _lookup(row: Row, column: str) -> Any:
    if column in row:
        return row[column]
    value: Any = row
    walked = ""
    for part in column.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            names = [walked + name for name in value] if isinstance(value, Mapping) else []
            meant = did_you_mean(column, names) or f"it has {listing(map(repr, names), most=8)}"
            raise RowFault("missing-column", f"no column {column!r}", meant if names else "")
        walked += f"{part}."
    return value
