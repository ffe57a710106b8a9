"""Tool definitions and tool calls, in the shapes that they come in -> the one templates read."""

from __future__ import annotations

from typing import Any

from mlx_itune.dataset.faults import RowFault
from mlx_itune.dataset.formats.fields import Row, json_list, json_value, kind_name

_MAX_DEPTH = 100


def tools_of(row: Row) -> tuple[dict[str, Any], ...]:
    """The tools that a row offers: `tools`, or the older `functions`."""
    tools = row.get("tools")
    if tools:
        found = _objects(tools, "'tools'")
    elif functions := row.get("functions"):
        listed = _objects(functions, "'functions'")
        found = [{"type": "function", "function": function} for function in listed]
    else:
        return ()
    _refuse_deep(found, "'tools'")
    return tuple(found)


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
    kept = {key: function[key] for key in function if key not in ("type", "id", "index")}
    kept.pop("parameters", None)
    plain = {"type": "function", "function": {**kept, "arguments": arguments}}
    return {**plain, "id": call["id"]} if call.get("id") is not None else plain


def _objects(value: Any, what: str) -> list[dict[str, Any]]:
    listed = json_list(value, what)
    if not all(isinstance(item, dict) for item in listed):
        raise RowFault("type", f"{what} is not a list of objects")
    return listed


def _refuse_deep(value: list[Any] | dict[str, Any], what: str) -> None:
    """Nesting that no template can print."""
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        inner = (item.values() if isinstance(item, dict) else item for item in level)
        level = [item for items in inner for item in items if isinstance(item, (dict, list))]
        if not level:
            return
    raise RowFault("tool-calls", f"{what} are nested more than {_MAX_DEPTH} levels deep")
