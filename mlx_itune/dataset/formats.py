"""One JSON object of any accepted format -> Conversation.

| format | keys |
|---|---|
| OpenAI | `messages` [{role, content, tool_calls?, weight?, name?}], `tools`? |
| ShareGPT | `conversations` [{from, value}] (or role, content), `system`?, `tools`? |
| Alpaca | `instruction`, `input`?, `output`, `system`? |
| question/answer | `question`, `answer`, `system`? |
| prompt/completion | `prompt`, `completion`, `system`? |

The format is found per row. String values under other keys become the conversation's tags.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from mlx_itune.dataset.conversation import Conversation, Turn, find_problem

Row = dict[str, Any]

_ROLE_OF = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
}

# Spellings of "there is no input" that Alpaca's generator and its descendants wrote.
_NO_INPUT = frozenset({"", "<noinput>", "<no input>", "no input", "noinput", "n/a", "none"})


class RowFault(Exception):
    """Why a row is refused: a stable code and one line."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def parse_row(row: Row, origin: str) -> Conversation:
    """The conversation in a row. Raises RowFault."""
    parse = next((parse for key, parse in _PARSERS.items() if key in row), None)
    if parse is None:
        keys = ", ".join(map(repr, list(row)[:6])) or "none"
        raise RowFault("unknown-format", f"no key of a known format (found {keys})")
    turns, used = parse(row)
    tools = _tools(row)
    problem = find_problem(turns)
    if problem:
        raise RowFault(*problem)
    if not any(turn.role == "assistant" for turn in turns):
        raise RowFault("no-reply", "no assistant turn, so there is nothing to learn")
    return Conversation(turns, origin, tools, _tags(row, {*used, "tools"}))


Parsed = tuple[tuple[Turn, ...], set[str]]


def _openai(row: Row) -> Parsed:
    return _turn_list(row, "messages", "role", "content"), {"messages"}


def _sharegpt(row: Row) -> Parsed:
    turns = _turn_list(row, "conversations", "from", "value")
    return (*_system(row), *turns), {"conversations", "system"}


def _alpaca(row: Row) -> Parsed:
    instruction = _text(row, "instruction")
    context = row.get("input")
    if context is not None and not isinstance(context, str):
        raise RowFault("type", f"'input' is {_kind(context)}, not a string")
    user = Turn("user", instruction)
    if context is not None and context.strip().lower() not in _NO_INPUT:
        user = Turn("user", f"{instruction}\n\n{context}", input=context)
    used = {"instruction", "input", "output", "system"}
    return (*_system(row), user, Turn("assistant", _text(row, "output"))), used


def _pair(asked: str, answered: str) -> Callable[[Row], Parsed]:
    def parse(row: Row) -> Parsed:
        turns = (Turn("user", _text(row, asked)), Turn("assistant", _text(row, answered)))
        return (*_system(row), *turns), {asked, answered, "system"}

    return parse


_PARSERS: dict[str, Callable[[Row], Parsed]] = {
    "messages": _openai,
    "conversations": _sharegpt,
    "instruction": _alpaca,
    "question": _pair("question", "answer"),
    "prompt": _pair("prompt", "completion"),
}


def _turn_list(row: Row, key: str, role_key: str, text_key: str) -> tuple[Turn, ...]:
    items = row[key]
    if not isinstance(items, list):
        raise RowFault("type", f"{key!r} is {_kind(items)}, not a list")
    turns = []
    for number, item in enumerate(items, 1):
        place = f"{key}[{number}]"
        if not isinstance(item, dict):
            raise RowFault("type", f"{place} is {_kind(item)}, not an object")
        # Both spellings occur under both names in the wild.
        role = item.get(role_key, item.get("role", item.get("from")))
        text = item.get(text_key, item.get("content", item.get("value")))
        turn = _turn(item, place, role, text)
        if turn.role == "system" and not turn.content.strip():
            continue
        turns.append(turn)
    return tuple(turns)


def _turn(item: Row, place: str, role: Any, text: Any) -> Turn:
    if not isinstance(role, str):
        raise RowFault("type", f"{place}: the role is {_kind(role)}, not a string")
    if role.lower() not in _ROLE_OF:
        raise RowFault("unknown-role", f"{place}: unknown role {role!r}")
    calls = _tool_calls(item, place)
    weight, name = item.get("weight"), item.get("name")
    if weight is not None and (isinstance(weight, bool) or not isinstance(weight, (int, float))):
        raise RowFault("type", f"{place}: 'weight' is {_kind(weight)}, not a number")
    if name is not None and not isinstance(name, str):
        raise RowFault("type", f"{place}: 'name' is {_kind(name)}, not a string")
    content = "" if text is None and calls else _content(text, place)
    return Turn(_ROLE_OF[role.lower()], content, weight, calls, name)


def _content(value: Any, place: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise RowFault("type", f"{place}: the text is {_kind(value)}, not a string")
    parts = []
    for part in value:
        if not (isinstance(part, dict) and isinstance(part.get("text"), str)):
            kind = part.get("type") if isinstance(part, dict) else _kind(part)
            raise RowFault("content-type", f"{place}: a content part is {kind!r}, not text")
        parts.append(part["text"])
    return "".join(parts)


def _tool_calls(item: Row, place: str) -> tuple[Row, ...]:
    calls = item.get("tool_calls") or []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RowFault("tool-calls", f"{place}: 'tool_calls' is not a list of objects")
    return tuple(_tool_call(call, place) for call in calls)


def _tool_call(call: Row, place: str) -> Row:
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowFault("tool-calls", f"{place}: a tool call names no function")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        # OpenAI writes arguments as JSON text; chat templates want the object.
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            raise RowFault("tool-calls", f"{place}: tool arguments are not JSON") from None
    if not isinstance(arguments, dict):
        raise RowFault("tool-calls", f"{place}: tool arguments are {_kind(arguments)}")
    plain = {"type": "function", "function": {**function, "arguments": arguments}}
    return {**plain, "id": call["id"]} if "id" in call else plain


def _tools(row: Row) -> tuple[Row, ...]:
    tools = row.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowFault("type", "'tools' is not a list of objects")
    return tuple(tools)


def _system(row: Row) -> tuple[Turn, ...]:
    text = row.get("system")
    if text is not None and not isinstance(text, str):
        raise RowFault("type", f"'system' is {_kind(text)}, not a string")
    return (Turn("system", text),) if text and text.strip() else ()


def _text(row: Row, key: str) -> str:
    if key not in row:
        raise RowFault("missing-key", f"no key {key!r}")
    value = row[key]
    if not isinstance(value, str):
        raise RowFault("type", f"{key!r} is {_kind(value)}, not a string")
    if not value.strip():
        raise RowFault("empty", f"{key!r} has no text")
    return value


def _tags(row: Row, used: Iterable[str]) -> dict[str, str]:
    tags = {key: value for key, value in row.items() if key not in used and isinstance(value, str)}
    extra = row.get("metadata")
    if isinstance(extra, dict):
        tags |= {key: value for key, value in extra.items() if isinstance(value, str)}
    return tags


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "a boolean", str: "a string", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, dict) else "a number")
