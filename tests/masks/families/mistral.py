"""Mistral's families: the generation prompt is the end of the instruction, and tools move about."""

from __future__ import annotations

from masks.family import (
    Family,
    Message,
    Messages,
    Pieces,
    Refused,
    Said,
    Tools,
    json_text,
    must_alternate,
    said,
    system_and_rest,
)


def _v1(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    must_alternate(messages)
    out: Pieces = ["<s>"]
    for m in messages:
        if m["role"] == "user":
            out += ["[INST] ", said(m), " [/INST]"]
        elif m["role"] == "assistant":
            out += [said(m), "</s>", " "]
        else:
            raise Refused("only user and assistant")
    return out


def _v1_reply(messages: Messages, n: int, tools: Tools) -> Pieces:
    return [said(messages[n]), "</s>"]


def _check_turns(rest: Messages) -> None:
    talk = [m for m in rest if m["role"] != "tool" and not m.get("tool_calls")]
    must_alternate(talk)


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


def _turns(messages: Messages, tools: Tools, space: str, trimmed: bool) -> Pieces:
    """v3 and Nemo differ in one space around their tokens and in trimming replies."""
    system, rest = system_and_rest(messages)
    _check_turns(rest)
    users = [m for m in rest if m["role"] == "user"]
    out: Pieces = ["<s>"]
    for n, m in enumerate(rest):
        if m["role"] == "user":
            # The template compares turns by value: a repeated question gets the tools each time.
            if tools and m == users[-1]:
                out += ["[AVAILABLE_TOOLS]", space, "["]
                out += [*_tool_list(tools), "]", "[/AVAILABLE_TOOLS]"]
            out += ["[INST]", space]
            if n == len(rest) - 1 and system is not None:
                out += [Said(system), "\n\n"]
            out += [said(m), "[/INST]"]
        elif m["role"] == "tool":
            key = _nine(m.get("tool_call_id"))
            out += ["[TOOL_RESULTS]", space, '{"content": ', said(m), ', "call_id": "', Said(key)]
            out += ['"}', "[/TOOL_RESULTS]"]
        else:
            out += _said_or_called(m, space, trimmed)
    return out


def _said_or_called(m: Message, space: str, trimmed: bool) -> Pieces:
    if m.get("tool_calls"):
        return ["[TOOL_CALLS]", space, "[", *_calls(m), "]", "</s>"]
    text = m["content"].strip() if trimmed else m["content"]
    return [space, said(m, text), "</s>"]


def _v3(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    return _turns(messages, tools, " ", True)


def _v3_reply(messages: Messages, n: int, tools: Tools) -> Pieces:
    return _said_or_called(messages[n], " ", True)


def _nemo(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    return _turns(messages, tools, "", False)


def _nemo_reply(messages: Messages, n: int, tools: Tools) -> Pieces:
    return _said_or_called(messages[n], "", False)


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

FAMILIES = (
    Family(
        "mistral_v1",
        _v1,
        _v1_reply,
        ("<unk>", "<s>", "</s>"),
        bos="<s>",
        eos="</s>",
        words=("[INST] ", " [/INST]"),
        system=False,
    ),
    *(
        Family(
            name,
            pieces,
            reply,
            _TOKENS,
            bos="<s>",
            eos="</s>",
            kept=_kept,
            tools=True,
            calls=3,
            call_ids=True,
        )
        for name, pieces, reply in (
            ("mistral_v3", _v3, _v3_reply),
            ("mistral_nemo", _nemo, _nemo_reply),
        )
    ),
)
