"""Families with tools: where calls and results go, and what becomes of earlier ones."""

from __future__ import annotations

from datetime import datetime

from masks.families.marked import LLAMA3_TOKENS
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
    said,
    system_and_rest,
)

# ---- Llama 3.1 and 3.2 -------------------------------------------------------------------------

_TOOL_GUIDE = (
    "Given the following functions, please respond with a JSON for a function call "
    "with its proper arguments that best answers the given prompt.\n\n"
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and '
    "its value}.Do not use variables.\n\n"
)


def _header(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


def _llama3(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    system, rest = system_and_rest(messages)
    out: Pieces = ["<|begin_of_text|>", _header("system")]
    out += ["Environment: ipython\n"] if tools else []
    out += ["Cutting Knowledge Date: December 2023\n"]
    out += [f"Today Date: {datetime.now().strftime('%d %b %Y')}\n\n"]
    out += [Said((system or "").strip()), "<|eot_id|>"]
    if tools:
        out += [_header("user"), _TOOL_GUIDE]
        for tool in tools:
            out += [Said(json_text(tool, indent=4)), "\n\n"]
        out += [said(rest[0], rest[0]["content"].strip()), "<|eot_id|>"]
        rest = rest[1:]
    for m in rest:
        if m["role"] == "tool":
            out += [_header("ipython"), Said(json_text(m["content"])), "<|eot_id|>"]
        else:
            out += [_header(m["role"]), *_llama3_words(m)]
    return out + ([_header("assistant")] if prompt else [])


def _llama3_words(m: Message) -> Pieces:
    calls = calls_of(m)
    if not calls:
        return [said(m, m["content"].strip()), "<|eot_id|>"]
    if len(calls) > 1:
        raise Refused("one call at a time")
    name, arguments = calls[0]
    words = f'{{"name": "{name}", "parameters": {json_text(arguments)}}}'
    return [Said(words), "<|eot_id|>"]


# ---- Qwen 2.5 ----------------------------------------------------------------------------------

_QWEN_DEFAULT = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."


def qwen_tools(tools: Tools) -> Pieces:
    """The part of the system turn that lists the tools, up to its end."""
    out: Pieces = ["# Tools\n\nYou may call one or more functions.\n\n<tools>"]
    for tool in tools:
        out += ["\n", Said(json_text(tool))]
    out += ["\n</tools>\n\nReturn each call as JSON within <tool_call></tool_call>:\n"]
    return [*out, '<tool_call>\n{"name": NAME, "arguments": ARGUMENTS}\n</tool_call>']


def qwen_calls(m: Message, glue: bool) -> Pieces:
    """The calls of a turn; `glue`: a new line stands before the first one too."""
    out: Pieces = []
    for n, (name, arguments) in enumerate(calls_of(m)):
        words = f'{{"name": "{name}", "arguments": {json_text(arguments)}}}'
        out += ["\n" if n or glue else "", "<tool_call>\n", Said(words), "\n</tool_call>"]
    return out


def qwen_result(messages: Messages, n: int) -> Pieces:
    """A tool result; neighbours share one user turn."""
    first = n == 0 or messages[n - 1]["role"] != "tool"
    last = n == len(messages) - 1 or messages[n + 1]["role"] != "tool"
    out: Pieces = ["<|im_start|>user"] if first else []
    out += ["\n<tool_response>\n", said(messages[n]), "\n</tool_response>"]
    return out + (["<|im_end|>\n"] if last else [])


def _qwen25(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    system, rest = system_and_rest(messages)
    out: Pieces = ["<|im_start|>system\n", _QWEN_DEFAULT if system is None else Said(system)]
    out += [*(["\n\n", *qwen_tools(tools)] if tools else []), "<|im_end|>\n"]
    for n, m in enumerate(rest):
        if m["role"] == "tool":
            out += qwen_result(rest, n)
        elif m["role"] == "assistant":
            out += ["<|im_start|>assistant\n", *_qwen25_reply(rest, n, tools), "\n"]
        else:
            out += [f"<|im_start|>{m['role']}\n", said(m), "<|im_end|>\n"]
    return out + (["<|im_start|>assistant\n"] if prompt else [])


def _qwen25_reply(messages: Messages, n: int, tools: Tools) -> Pieces:
    m = messages[n]
    return [said(m), *qwen_calls(m, glue=bool(m["content"])), "<|im_end|>"]


FAMILIES = (
    Family(
        "llama3",
        _llama3,
        lambda messages, n, tools: _llama3_words(messages[n]),
        LLAMA3_TOKENS,
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        more_eos=("<|end_of_text|>", "<|eom_id|>"),
        tools=True,
        calls=1,
    ),
    Family(
        "qwen25",
        _qwen25,
        _qwen25_reply,
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
        more_eos=("<|endoftext|>",),
        markup=("<tool_call>", "</tool_call>"),
        tools=True,
        calls=3,
    ),
)
