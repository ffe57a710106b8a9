"""Mistral's families: the generation prompt is the end of the instruction, and tools move about."""

from __future__ import annotations

from collections.abc import Callable

from masks.family import (
    Family,
    Message,
    Messages,
    Pieces,
    Refused,
    Said,
    Tools,
    json_text,
    layout,
    must_alternate,
    said,
    system_and_rest,
    up_to,
)

_v1_turns = layout({"user": "[INST] "}, {"user": " [/INST]", "assistant": "</s> "}, "", start="<s>")


def _v1(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    must_alternate(messages)
    return _v1_turns(messages, tools, prompt)


def _tool_list(tools: Tools) -> Pieces:
    listed = [
        '{"type": "function", "function": {'
        + ", ".join(
            f'"{key}": "{value}"' if isinstance(value, str) else f'"{key}": {json_text(value)}'
            for key, value in tool["function"].items()
            if key != "return"
        )
        + "}}"
        for tool in tools
    ]
    return [Said(", ".join(listed))]


def _nine(key: str | None) -> str:
    if key is None or len(key) != 9:
        raise Refused("ids have nine characters")
    return key


def _calls(m: Message) -> Pieces:
    listed = []
    for call in m["tool_calls"]:
        text, key = json_text(call["function"]), _nine(call.get("id"))
        listed.append(f'{text[:-1]}, "id": "{key}"}}')
    return [Said(", ".join(listed))]


def _said_or_called(m: Message, space: str, trim: Callable[[str], str]) -> Pieces:
    if m.get("tool_calls"):
        return [f"[TOOL_CALLS]{space}[", *_calls(m), "]</s>"]
    return [space, said(m, trim(m["content"])), "</s>"]


def _turns(messages: Messages, tools: Tools, space: str, trim: Callable[[str], str]) -> Pieces:
    system, rest = system_and_rest(messages)
    must_alternate([m for m in rest if m["role"] != "tool" and not m.get("tool_calls")])
    users = [m for m in rest if m["role"] == "user"]
    out: Pieces = ["<s>"]
    for n, m in enumerate(rest):
        if m["role"] == "user":
            # The template compares turns by value: a repeated question gets the tools each time.
            if tools and m == users[-1]:
                out += [f"[AVAILABLE_TOOLS]{space}[", *_tool_list(tools), "][/AVAILABLE_TOOLS]"]
            out += [f"[INST]{space}"]
            if n == len(rest) - 1 and system is not None:
                out += [Said(system), "\n\n"]
            out += [said(m), "[/INST]"]
        elif m["role"] == "tool":
            key = _nine(m.get("tool_call_id"))
            out += [f'[TOOL_RESULTS]{space}{{"content": ', said(m), ', "call_id": "', Said(key)]
            out += ['"}[/TOOL_RESULTS]']
        else:
            out += _said_or_called(m, space, trim)
    return out


def _kept(messages: Messages, n: int, tools: Tools) -> bool:
    before = messages[n - 1]
    if messages[0]["role"] == "system" and before["role"] == "user":
        # The prompt holds the system text, the finished conversation does not.
        return False
    if not tools:
        return True
    users = [m for m in messages if m["role"] == "user"]
    asked = [m for m in messages[:n] if m["role"] == "user"]
    return bool(asked[-1] == users[-1])


_TOKENS = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
)  # fmt: skip


def _with_tools(name: str, space: str, trim: Callable[[str], str]) -> Family:
    """v3 and Nemo differ in one space around their tokens and in trimming replies."""
    return Family(
        name,
        lambda messages, tools, prompt: _turns(messages, tools, space, trim),
        lambda messages, n, tools: _said_or_called(messages[n], space, trim),
        _TOKENS,
        bos="<s>",
        eos="</s>",
        kept=_kept,
        tools=True,
        calls=3,
        call_ids=True,
    )


FAMILIES = (
    Family(
        "mistral_v1",
        _v1,
        up_to("</s>"),
        ("<unk>", "<s>", "</s>"),
        bos="<s>",
        eos="</s>",
        words=("[INST] ", " [/INST]"),
        system=False,
    ),
    _with_tools("mistral_v3", " ", str.strip),
    _with_tools("mistral_nemo", "", str),
)
