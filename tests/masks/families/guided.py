"""Families that add guides, channels and end marks which a finished conversation does not show."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from masks.family import (
    Family,
    Message,
    Messages,
    Pieces,
    Refused,
    Said,
    Tools,
    calls_of,
    json_text,
    layout,
    must_alternate,
    said,
    system_and_rest,
    up_to,
)

# ---- Command-R ---------------------------------------------------------------------------------

_TURN, _USER, _CHATBOT, _SYSTEM = (
    "<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>",
)  # fmt: skip
_END = "<|END_OF_TURN_TOKEN|>"
_ACTION_GUIDE = (
    "Write 'Action:' followed by a json-formatted list of actions.\n```json\n[\n    {\n"
    '        "tool_name": NAME,\n        "parameters": PARAMETERS\n    }\n]```'
)


def _command_r(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    system, rest = system_and_rest(messages)
    out: Pieces = ["<BOS_TOKEN>"]
    if tools:
        preamble = "Help people with their questions." if system is None else Said(system)
        out += [_TURN, _SYSTEM, "# Safety Preamble\nDo no harm.\n\n# User Preamble\n", preamble]
        out += ["\n\n## Available Tools\nHere is a list of tools:\n\n", *_signatures(tools), _END]
    else:
        out += [] if system is None else [_TURN, _SYSTEM, Said(system), _END]
        must_alternate(rest)
    for m in rest:
        if m["role"] == "tool":
            result = said(m, m["content"].strip())
            out += [_TURN, _SYSTEM, "<results>\n", result, "</results>", _END]
        elif m["role"] == "user":
            out += [_TURN, _USER, said(m, m["content"].strip()), _END]
        else:
            out += [_TURN, _CHATBOT, *_command_r_words(m)]
    out += [_TURN, _SYSTEM, _ACTION_GUIDE, _END] if tools else []
    return out + ([_TURN, _CHATBOT] if prompt else [])


def _command_r_words(m: Message) -> Pieces:
    text = said(m, m["content"].strip())
    if not m.get("tool_calls"):
        return [text, _END]
    listed = []
    for name, arguments in calls_of(m):
        given = _indented(json_text(arguments, indent=4)) if arguments else "{}"
        listed.append(
            f'    {{\n        "tool_name": "{name}",\n        "parameters": {given}\n    }}'
        )
    return [text, "\nAction:\n```json\n[\n", Said(",\n".join(listed)), "\n]```\n"]


def _indented(text: str) -> str:
    # Jinja cuts at every kind of line end, inside the strings of the JSON too.
    first, *rest = text.splitlines()
    return "\n".join((first, *(" " * 8 + line if line else line for line in rest)))


def _signatures(tools: Tools) -> Pieces:
    out: Pieces = []
    for n, tool in enumerate(tools):
        function = tool["function"]
        names = ", ".join(f"{name}: Any" for name in function["parameters"]["properties"])
        out += ["\n\n"] if n else []
        out += ["```python\n", Said(f"def {function['name']}({names}) -> List[Dict]:")]
        out += ['\n    """', Said(function["description"]), '\n    """\n    pass\n```']
    return out


def _command_r_reply(messages: Messages, n: int, tools: Tools) -> Pieces:
    words = _command_r_words(messages[n])
    if messages[n].get("tool_calls"):
        # The template forgets to end these turns; the end token takes the last new line's place.
        words[-1] = words[-1].rstrip()
    return words


_command_r7b_turns = layout(
    {
        "system": _TURN + _SYSTEM,
        "user": _TURN + _USER,
        "assistant": f"{_TURN}{_CHATBOT}<|START_RESPONSE|>",
    },
    {"system": _END, "user": _END, "assistant": f"<|END_RESPONSE|>{_END}"},
    f"{_TURN}{_CHATBOT}<|START_RESPONSE|>",
    start="<BOS_TOKEN>",
    opening="",
    trim=str.strip,
)


def _command_r7b(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    must_alternate(system_and_rest(messages)[1])
    out = _command_r7b_turns(messages, tools, prompt)
    if messages[0]["role"] == "system":
        out[2] = said(messages[0])  # the one text that stays as it is
    return out


# ---- gpt-oss (harmony) -------------------------------------------------------------------------

_TYPES = {"string": "string", "integer": "number", "number": "number", "boolean": "boolean"}


def _namespace(tools: Tools) -> Pieces:
    lines: Pieces = ["## functions\n\nnamespace functions {\n\n"]
    for tool in tools:
        function: dict[str, Any] = tool["function"]
        required = function["parameters"].get("required", [])
        text = f"// {function['description']}\ntype {function['name']} = (_: {{\n"
        for name, spec in function["parameters"]["properties"].items():
            mark = "" if name in required else "?"
            text += f"{name}{mark}: {_TYPES.get(spec.get('type'), 'any')},\n"
        lines += [Said(text), "}) => any;\n\n"]
    return [*lines, "} // namespace functions"]


def _harmony(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    system, rest = system_and_rest(messages)
    today = datetime.now().strftime("%Y-%m-%d")
    out: Pieces = ["<|start|>system<|message|>You are a large language model.\n"]
    out += [f"Knowledge cutoff: 2024-06\nCurrent date: {today}\n\nReasoning: medium\n\n"]
    out += ["# Valid channels: analysis, commentary, final."]
    guide = "\nCalls to these tools must go to the commentary channel: 'functions'."
    out += [guide if tools else "", "<|end|>"]
    if system or tools:
        out += ["<|start|>developer<|message|>"]
        out += ["# Instructions\n\n", Said(system), "\n\n"] if system else []
        out += ["# Tools\n\n", *_namespace(tools)] if tools else []
        out += ["<|end|>"]
    answers = [n for n, m in enumerate(rest) if _is_answer(m)]
    called: str | None = None
    for n, m in enumerate(rest):
        if m["role"] == "user":
            out += ["<|start|>user<|message|>", said(m), "<|end|>"]
        elif m["role"] == "tool":
            if called is None:
                raise Refused("a result without a call")
            out += ["<|start|>functions.", Said(called), " to=assistant<|channel|>commentary"]
            out += ["<|message|>", Said(json_text(m["content"])), "<|end|>"]
        else:
            ends = n == len(rest) - 1 and not prompt
            thinks = not any(later > n for later in answers)
            out += ["<|start|>assistant", *_harmony_words(m, ends=ends, thinks=thinks)]
            if m.get("tool_calls"):
                called = calls_of(m)[0][0]
            elif not ends:
                called = None
    return out + (["<|start|>assistant"] if prompt else [])


def _is_answer(m: Message) -> bool:
    return m["role"] == "assistant" and not m.get("tool_calls")


def _harmony_words(m: Message, *, ends: bool, thinks: bool) -> Pieces:
    if not m.get("tool_calls"):
        return ["<|channel|>final<|message|>", said(m), "<|return|>" if ends else "<|end|>"]
    name, arguments = calls_of(m)[0]
    out: Pieces = []
    if m["content"] and thinks:
        out += ["<|channel|>analysis<|message|>", said(m), "<|end|><|start|>assistant"]
    out += [" to=functions.", Said(name), "<|channel|>commentary json<|message|>"]
    return [*out, Said(json_text(arguments)), "<|call|>"]


def _harmony_reply(messages: Messages, n: int, tools: Tools) -> Pieces:
    if len(messages[n].get("tool_calls") or ()) > 1:
        raise Refused("the template writes the first call only")
    return _harmony_words(messages[n], ends=True, thinks=True)


def _harmony_kept(messages: Messages, n: int, tools: Tools) -> bool:
    answers = [k for k, m in enumerate(messages) if _is_answer(m)]
    if n in answers and n < len(messages) - 1:
        # A model ends its answer with another token than the one history shows.
        return False
    if not any(k >= n for k in answers):
        return True
    # An answer takes away what was thought since the one before.
    since = max((k for k in answers if k < n), default=-1)
    return not any(m.get("tool_calls") and m["content"] for m in messages[since + 1 : n + 1])


_COMMAND_R_TOKENS = ("<BOS_TOKEN>", "<EOS_TOKEN>", _TURN, _USER, _CHATBOT, _SYSTEM, _END)
_HARMONY_TOKENS = tuple(
    "<|startoftext|> <|endoftext|> <|return|> <|constrain|> <|channel|> <|start|> <|end|> "
    "<|message|> <|call|>".split()
)

FAMILIES = (
    Family(
        "command_r",
        _command_r,
        _command_r_reply,
        _COMMAND_R_TOKENS,
        bos="<BOS_TOKEN>",
        eos=_END,
        # With tools, every prompt ends in a guide that finished turns do not show.
        kept=lambda messages, n, tools: not tools,
        open_ended=lambda messages, n: bool(messages[n].get("tool_calls")),
        tool_use_template="command_r_tools",
        tools=True,
        calls=3,
    ),
    Family(
        "command_r7b",
        _command_r7b,
        # A response's own end is not yet the end of the turn.
        up_to(f"<|END_RESPONSE|>{_END}", trim=str.strip),
        (*_COMMAND_R_TOKENS, "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
        bos="<BOS_TOKEN>",
        eos=_END,
    ),
    Family(
        "gpt_oss",
        _harmony,
        _harmony_reply,
        _HARMONY_TOKENS,
        bos="<|startoftext|>",
        eos="<|return|>",
        more_eos=("<|call|>", "<|endoftext|>"),
        kept=_harmony_kept,
        tools=True,
        calls=1,
    ),
)
