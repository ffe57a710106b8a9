"""Lists of messages: OpenAI `messages`, ShareGPT and OpenHermes `conversations`."""

from __future__ import annotations

from typing import Any

from mlx_itune.dataset.conversation import Turn
from mlx_itune.dataset.faults import RowFault
from mlx_itune.dataset.formats.fields import Row, json_list, kind_name
from mlx_itune.dataset.formats.tools import calls_in_text, calls_of

ROLE_OF = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "ipython": "tool",
}
_CALLING = frozenset({"function_call", "tool_call"})
# Which role may follow a plain turn; conversation.find_problem has the rule for all turns.
_NEXT = {
    None: frozenset({"system", "user"}),
    "system": frozenset({"user"}),
    "user": frozenset({"assistant"}),
    "assistant": frozenset({"user"}),
}
_PLAIN_ROLE = {
    name: role for name, role in ROLE_OF.items() if role != "tool" and name not in _CALLING
}
_new = object.__new__


def plain_turns(items: Any, role_key: str, text_key: str) -> tuple[Turn, ...] | None:
    """The turns of a list in which there is nothing but roles and texts, in a legal order.

    None where anything is out of the ordinary: `turns_of` knows what it is. This is the way that
    nearly all rows go, so it is written for speed: Turns are filled without their constructor.
    """
    if items.__class__ is not list:
        return None
    turns = []
    allowed = _NEXT[None]
    try:
        for item in items:
            if len(item) != 2:
                return None
            role = _PLAIN_ROLE[item[role_key]]
            content = item[text_key]
            if (
                content.__class__ is not str
                or role not in allowed
                or not content
                or content.isspace()
            ):
                return None
            turn = _new(Turn)
            fields = turn.__dict__
            fields["role"] = role
            fields["content"] = content
            turns.append(turn)
            allowed = _NEXT[role]
    except (KeyError, TypeError):
        return None
    # The last reply is what there is to learn; a question after it does no harm.
    return tuple(turns) if len(turns) > 1 and (role == "assistant" or len(turns) > 2) else None


def turns_of(row: Row, key: str, role_key: str, text_key: str) -> tuple[Turn, ...]:
    """The turns of the list under `key`, with weights, names, tool calls and content parts."""
    items = json_list(row[key], repr(key))
    turns = []
    for number, item in enumerate(items, 1):
        place = f"{key}[{number}]"
        if not isinstance(item, dict):
            raise RowFault("type", f"{place} is {kind_name(item)}, not an object")
        # Both spellings occur under both names in the wild.
        role = _first(item, role_key, "role", "from")
        text = _first(item, text_key, "content", "value")
        turn = _turn(item, place, role, text)
        if turn.role == "system" and not turn.content.strip():
            continue
        turns.append(turn)
    return tuple(turns)


def _first(item: dict[str, Any], *keys: str) -> Any:
    return next((item[key] for key in keys if item.get(key) is not None), None)


def _turn(item: dict[str, Any], place: str, role: Any, text: Any) -> Turn:
    if not isinstance(role, str):
        raise RowFault("type", f"{place}: the role is {kind_name(role)}, not a string")
    name = role.strip().lower()
    if name not in ROLE_OF:
        raise RowFault(
            "unknown-role", f"{place}: unknown role {role!r}", f"one of {', '.join(ROLE_OF)}"
        )
    if name in _CALLING:
        calls, text = calls_in_text(text, place), None
    else:
        calls = calls_of(item, place)
    may_be_empty = bool(calls) or ROLE_OF[name] == "tool"
    content = "" if text is None and may_be_empty else _content(text, place)
    thought = item.get("reasoning_content")
    if isinstance(thought, str) and thought.strip() and ROLE_OF[name] == "assistant":
        # As the templates of reasoning models write it out.
        content = f"<think>\n{thought.strip()}\n</think>\n\n{content}"
    given = item.get("input")
    return Turn(
        ROLE_OF[name],
        content,
        _weight(item, place),
        calls,
        _string(item, "name", place),
        given if isinstance(given, str) and content.endswith(f"\n\n{given}") else None,
        _string(item, "tool_call_id", place),
    )


def _weight(item: dict[str, Any], place: str) -> float | None:
    weight = item.get("weight")
    if weight is not None and (isinstance(weight, bool) or not isinstance(weight, (int, float))):
        raise RowFault("type", f"{place}: 'weight' is {kind_name(weight)}, not a number")
    return weight


def _string(item: dict[str, Any], key: str, place: str) -> str | None:
    value = item.get(key)
    if value is not None and not isinstance(value, str):
        raise RowFault("type", f"{place}: {key!r} is {kind_name(value)}, not a string")
    return value


def _content(value: Any, place: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise RowFault("type", f"{place}: the text is {kind_name(value)}, not a string")
    parts = []
    for part in value:
        if isinstance(part, str):
            parts.append(part)
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            parts.append(part["text"])
        else:
            kind = part.get("type") if isinstance(part, dict) else kind_name(part)
            raise RowFault(
                "content-type",
                f"{place}: a content part is {kind!r}, not text",
                "only text can be learned",
            )
    return "".join(parts)
