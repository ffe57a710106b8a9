"""The values of a row: a text, a list, tools and their calls, each with the fault for what it is
not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from mlx_itune.dataset.conversation import RowFault, Turn
from mlx_itune.kit.json_files import depth_of

Row = Mapping[str, Any]
# Turns, and the keys of the row that they took up.
Parsed = tuple[tuple[Turn, ...], set[str]]

_ASKED = frozenset("instruction question prompt input inputs query user human".split())
_ANSWERED = frozenset(
    "output answer response completion target targets generation chosen reply assistant".split()
)
# Nesting that templates can print.
_MAX_DEPTH = 100


def kind_name(value: Any) -> str:
    """A JSON type in words: "a list", "null"."""
    names = {type(None): "null", bool: "a boolean", str: "a string", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, dict) else "a number")


def value_of(row: Row, key: str) -> Any:
    """What stands under `key`, which has to be there."""
    if key not in row:
        raise RowFault("missing-key", f"no key {key!r}", map_example(row))
    return row[key]


def text_of(row: Row, key: str) -> str:
    """The text under `key`, which has to be there and say something."""
    value = value_of(row, key)
    if not isinstance(value, str):
        hint = "write it as text" if isinstance(value, (list, dict)) else ""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            hint = "write it in quotes, or name the column with --map"
        raise RowFault("type", f"{key!r} is {kind_name(value)}, not a string", hint)
    if not value or value.isspace():
        raise RowFault("empty", f"{key!r} has no text")
    return value


def json_list(value: Any, what: str) -> list[Any]:
    """A list, given as one or, as tables do, as its JSON text."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        value = json_value(value, what)
    if not isinstance(value, list):
        raise RowFault("type", f"{what} is {kind_name(value)}, not a list")
    return value


def json_value(text: str, what: str) -> Any:
    """The value of JSON text within a string. Raises RowFault."""

    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise RowFault("json", f"{what} is a string that is not JSON") from None


def with_system(row: Row, turns: tuple[Turn, ...], used: set[str]) -> Parsed:
    """`turns` after the system turn of the row's `system` or `system_prompt`; a turn of their own
    stands, and what says something else becomes a tag."""
    for key in ("system", "system_prompt"):
        value = row.get(key)
        is_said = value is not None and value != "" and not str(value).isspace()
        text = text_of(row, key) if is_said else None
        if text is not None and (not turns or turns[0].role != "system"):
            turns = (Turn("system", text), *turns)
        elif text is not None and turns[0].content.strip() != text.strip():
            continue
        used = {*used, key}
    return turns, used


def tags_of(row: Row, used: Iterable[str] = ()) -> dict[str, str]:
    """What the format did not use, as text; nulls are left out, `metadata` is spread."""
    left = {key: value for key, value in row.items() if value is not None and key not in used}
    extra = row.get("metadata")
    if isinstance(extra, dict):
        del left["metadata"]
        left |= {key: value for key, value in extra.items() if value is not None}
    return {key: as_text(value) for key, value in left.items()}


def as_text(value: Any) -> str:
    """A value as a tag has it: a text as it is, anything else as JSON."""
    if isinstance(value, str):
        return value
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return json.dumps(value, ensure_ascii=False, default=str)


def map_example(row: Row) -> str:
    """How --map could be given for a row: its columns that sound like question and answer, or else
    the last two."""
    asked, answered = ["COLUMN", "COLUMN", *row][-2:]
    asked = next((name for name in row if name.strip().lower() in _ASKED), asked)
    answered = next((name for name in row if name.strip().lower() in _ANSWERED), answered)
    quoted = (name if name.isidentifier() else f'"{name}"' for name in (asked, answered))
    return "for instance --map instruction={} --map output={}".format(*quoted)


def tools_of(row: Row) -> tuple[dict[str, Any], ...]:
    """The tools that a row offers: `tools`, or the older `functions`."""
    key = "tools" if row.get("tools") else "functions"
    if not row.get(key):
        return ()
    listed = json_list(row[key], repr(key))
    if not all(isinstance(item, dict) for item in listed):
        raise RowFault("type", f"{key!r} is not a list of objects")
    if key == "functions":
        listed = [{"type": "function", "function": function} for function in listed]
    _refuse_deep(listed, "'tools'")
    return tuple(listed)


def calls_of(item: dict[str, Any], place: str) -> tuple[dict[str, Any], ...]:
    """The tool calls of a message: `tool_calls`, or the older `function_call`."""
    calls = item.get("tool_calls") or []
    if not calls and (legacy := item.get("function_call")):
        calls = [legacy]
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RowFault("tool-calls", f"{place}: 'tool_calls' is not a list of objects")
    return tuple(_call(call, place) for call in calls)


def calls_in_text(text: Any, place: str) -> tuple[dict[str, Any], ...]:
    """The calls of a turn "from": "function_call", which are JSON in its text."""
    value = json_value(text, f"{place}: the call") if isinstance(text, str) else text
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, dict) for call in calls):
        raise RowFault("tool-calls", f"{place}: a function call that is no JSON object")
    return tuple(_call(call, place) for call in calls)


def _call(call: dict[str, Any], place: str) -> dict[str, Any]:
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowFault("tool-calls", f"{place}: a tool call names no function")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str) and arguments.strip():
        # OpenAI writes arguments as JSON text; chat templates want the object.
        try:
            arguments = json_value(arguments, "arguments")
        except RowFault:
            raise RowFault("tool-calls", f"{place}: tool arguments are not JSON") from None
    arguments = arguments or {}
    if not isinstance(arguments, dict):
        raise RowFault("tool-calls", f"{place}: tool arguments are {kind_name(arguments)}")
    _refuse_deep(arguments, f"{place}: the tool arguments")
    left_out = ("type", "id", "index", "parameters")
    kept = {key: value for key, value in function.items() if key not in left_out}
    plain = {"type": "function", "function": {**kept, "arguments": arguments}}
    return {**plain, "id": call["id"]} if call.get("id") is not None else plain


def _refuse_deep(value: Any, what: str) -> None:
    if depth_of(value) > _MAX_DEPTH:
        raise RowFault("tool-calls", f"{what} are nested more than {_MAX_DEPTH} levels deep")
