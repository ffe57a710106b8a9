"""The values of a row: a text, a JSON list or null, each with the fault for what it is not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import orjson

from mlx_itune.dataset.conversation import Turn
from mlx_itune.dataset.faults import RowFault

Row = Mapping[str, Any]


class Parsed(NamedTuple):
    """What a format made of a row: its turns and the keys that they took up."""

    turns: tuple[Turn, ...]
    used: frozenset[str]


def kind_name(value: Any) -> str:
    """A JSON type in words: "a list", "null"."""
    names = {type(None): "null", bool: "a boolean", str: "a string", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, dict) else "a number")


def text_of(row: Row, key: str) -> str:
    """The text under `key`, which has to be there and say something."""
    if key not in row:
        raise RowFault("missing-key", f"no key {key!r}")
    value = row[key]
    if not isinstance(value, str):
        raise RowFault("type", f"{key!r} is {kind_name(value)}, not a string", _type_hint(value))
    if not value or value.isspace():
        raise RowFault("empty", f"{key!r} has no text")
    return value


def optional_text(row: Row, key: str) -> str | None:
    """The text under `key`; None where there is none, or only white space."""
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise RowFault("type", f"{key!r} is {kind_name(value)}, not a string", _type_hint(value))
    return value if value and not value.isspace() else None


def json_list(value: Any, what: str) -> list[Any]:
    """A list, given as one or, as tables do, as its JSON text."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        value = json_value(value, what)
    if not isinstance(value, list):
        raise RowFault("type", f"{what} is {kind_name(value)}, not a list")
    return value


def json_value(text: str, what: str) -> Any:
    """The value of JSON text within a string. Raises RowFault."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise RowFault("json", f"{what} is a string that is not JSON") from None


def system_turn(row: Row, turns: tuple[Turn, ...]) -> Parsed:
    """`turns` with the system turn of the row's `system` or `system_prompt` column before them.

    A system turn of the conversation's own stands. A column that says something else is left over
    and so becomes a tag, where it can be found.
    """
    used = set()
    for key in ("system", "system_prompt"):
        text = optional_text(row, key)
        if text is None:
            used.add(key)
        elif not turns or turns[0].role != "system":
            turns = (Turn("system", text), *turns)
            used.add(key)
        elif turns[0].content.strip() == text.strip():
            used.add(key)
    return Parsed(turns, frozenset(used))


def tags_of(row: Row, used: Iterable[str]) -> dict[str, str]:
    """What the format did not use, as text; nulls are left out, `metadata` is spread."""
    tags: dict[str, str] = {}
    for key, value in row.items():
        if value.__class__ is str:
            if key not in used:
                tags[key] = value
        elif value is not None and key not in used and key != "metadata":
            tags[key] = as_text(value)
    extra = row.get("metadata")
    if extra is not None and extra.__class__ is not str:
        if isinstance(extra, dict):
            tags |= {key: as_text(value) for key, value in extra.items() if value is not None}
        else:
            tags["metadata"] = as_text(extra)
    return tags


def as_text(value: Any) -> str:
    """A value as a tag has it: a text as it is, anything else as JSON."""
    if isinstance(value, str):
        return value
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return json.dumps(value, ensure_ascii=False, default=str)


def _type_hint(value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "write it in quotes, or name the column with --map"
    return ""


def _refuse_constant(text: str) -> Any:
    raise ValueError(text)
