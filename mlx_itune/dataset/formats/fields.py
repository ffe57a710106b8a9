"""The values of a row: a text, a list, tools and their calls, each with the fault for what it is
not."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from mlx_itune.dataset.conversation import RowFault, Turn
from mlx_itune.dataset.how import Account
from mlx_itune.kit.json_files import depth_of

Row = Mapping[str, Any]
# Turns, and the keys of the row that they took up.
Parsed = tuple[tuple[Turn, ...], set[str]]

_ASKED = frozenset("instruction question prompt input inputs query user human".split())
_ANSWERED = frozenset(
    "output answer response completion target targets generation chosen reply assistant label "
    "category class intent solution".split()
)
_MAX_CALL_CHARS = 1 << 14
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


def text_of(row: Row, key: str, told: Account) -> str:
    """The text under `key`, which has to be there and say something; other values become text."""
    value = value_of(row, key)
    if not isinstance(value, str):
        value = plain_text(value, repr(key), told)
    if not value or value.isspace():
        raise RowFault("empty", f"{key!r} has no text")
    return str(value)


def plain_text(value: Any, what: str, told: Account) -> str:
    """A value that is no text, as a text: a plain number, true or false, compact JSON."""
    if value is None:
        raise RowFault("type", f"{what} is null, not a string")
    if isinstance(value, (list, dict)):
        told.take(f"{what}: {kind_name(value)}, as compact JSON")
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    told.take(f"{what}: {kind_name(value)}, as text")
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        # What tables make of a whole number where another cell is empty.
        return str(int(value))
    return json.dumps(value)


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


def with_system(row: Row, turns: tuple[Turn, ...], used: set[str], told: Account) -> Parsed:
    """`turns` after the system turn of the row's `system` or `system_prompt`; a turn of their own
    stands, and what says something else becomes a tag."""
    for key in ("system", "system_prompt"):
        value = row.get(key)
        is_said = value is not None and value != "" and not str(value).isspace()
        text = text_of(row, key, told) if is_said else None
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


def guess(rows: Sequence[Row]) -> tuple[str, str] | None:
    """Of a table with columns of any names the one that asks, the longest free text, and the one
    that answers: JSON, a column called so, the same few short texts again and again, or another
    free text."""
    kept = [row for row in rows if row.keys() == rows[0].keys()]
    texts = {key: [str(row[key]).strip() for row in kept] for key in (kept[0] if kept else ())}
    size = {key: sum(map(len, column)) for key, column in texts.items()}
    free = [key for key, column in texts.items() if sum(map(_is_prose, column)) * 2 > len(kept)]
    asked = max(free, key=lambda key: size[key], default=None)

    def answers(key: str) -> tuple[bool, bool, bool, int]:
        column = texts[key]
        is_json = all(text[:1] in ("{", "[") for text in column)
        names = any(word in _ANSWERED for word in re.findall("[a-z]+", key.lower()))
        repeats = len({*column}) < len(column) or len(column) == 1
        return is_json, names, repeats and bool(re.search("[a-z]", "".join(column))), -size[key]

    others = (key for key in texts if key != asked and size[key] and "reject" not in key.lower())
    answered = max(others, key=answers, default=None)
    if not asked or not answered:
        return None
    # A number of the row or its date answers nothing.
    return (asked, answered) if any(answers(answered)[:3]) or answered in free else None


def _is_prose(text: str) -> bool:
    return text[:1] not in ("{", "[") and text.count(" ") > 1


def map_example(row: Row) -> str:
    """How --map could be given for a row: its columns that sound like question and answer, or else
    the last two."""
    if lists := [key for key in row if isinstance(row[key], list) and row[key][1:]]:
        return f"for instance --map messages={lists[0]}"
    names = (name for name in row if "reject" not in name.lower())
    asked, answered = guess([row]) or ["COLUMN", "COLUMN", *names][-2:]
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
    # Gemini's have a list of them in one.
    groups = (
        item.get("functionDeclarations") or item.get("function_declarations") for item in listed
    )
    if nested := [function for group in groups if isinstance(group, list) for function in group]:
        key, listed = "functions", nested
    if key == "functions":
        listed = [{"type": "function", "function": function} for function in listed]
    _refuse_deep(listed, "'tools'")
    return tuple(listed)


def calls_of(item: dict[str, Any], place: str) -> tuple[dict[str, Any], ...]:
    """The tool calls of a message: `tool_calls`, or the older `function_call`."""
    calls = item.get("tool_calls") or []
    if not calls and (legacy := item.get("function_call")):
        calls = [legacy]
    if not calls and (written := item.get("function_calls")):
        return calls_in_text(written, place)
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RowFault("tool-calls", f"{place}: 'tool_calls' is not a list of objects")
    return tuple(_call(call, place) for call in calls)


def calls_in_text(text: Any, place: str) -> tuple[dict[str, Any], ...]:
    """The calls of a turn "from": "function_call", which are JSON, or as Python writes them, in its
    text."""
    value = _python_calls(text) if isinstance(text, str) else text
    if value is None:
        value = json_value(text, f"{place}: the call")
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, dict) for call in calls):
        raise RowFault("tool-calls", f"{place}: a function call that is no JSON object")
    return tuple(_call(call, place) for call in calls)


def _python_calls(text: str) -> list[dict[str, Any]] | None:
    """Of f(x=1), a line each or in a list, the names and arguments; None for any other text."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            body = ast.parse(text.strip()).body if len(text) < _MAX_CALL_CHARS else []
        found = [line.value for line in body if isinstance(line, ast.Expr)]
        if len(found) == 1 and isinstance(found[0], ast.List):
            found = found[0].elts
        calls = [call for call in found if isinstance(call, ast.Call) and not call.args]
        if not calls or len(calls) < max(len(found), len(body)):
            return None
        return [
            {
                "name": ast.unparse(call.func),
                "arguments": {
                    str(word.arg): ast.literal_eval(word.value) for word in call.keywords
                },
            }
            for call in calls
        ]
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


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
