"""Families that show, drop, insert or open reasoning blocks."""

from __future__ import annotations

from datetime import datetime
from functools import partial

from masks.families.tooled import qwen_calls, qwen_result, qwen_tools
from masks.family import (
    Family,
    Message,
    Messages,
    Pieces,
    Refused,
    Said,
    Tools,
    calls_of,
    is_last,
    json_text,
    said,
    system_and_rest,
    up_to,
)

# ---- Qwen 3 ------------------------------------------------------------------------------------


def _split_thought(m: Message) -> tuple[str, str]:
    """(reasoning, answer) of an assistant's content."""
    text = m["content"]
    if "</think>" not in text:
        return "", text
    pieces = text.split("</think>")
    reasoning = pieces[0].rstrip("\n").split("<think>")[-1].lstrip("\n")
    return reasoning, pieces[-1].lstrip("\n")


def _last_question(messages: Messages) -> int:
    """Where the exchange that still runs began."""
    # A user who spells a tool's result is still a user: the template never sees it as one.
    return max((n for n, m in enumerate(messages) if m["role"] == "user"), default=-1)


def _qwen3(messages: Messages, tools: Tools, prompt: bool, opened: str = "") -> Pieces:
    system, _ = system_and_rest(messages)
    out: Pieces = []
    if tools or system is not None:
        # The system text ends in two new lines of the template's before the list.
        out += ["<|im_start|>system\n", *([Said(system)] if system is not None else [])]
        out += ["\n\n"] if tools and system is not None else []
        out += [*(qwen_tools(tools) if tools else []), "<|im_end|>\n"]
    asked = _last_question(messages)
    for n, m in enumerate(messages):
        if m["role"] == "user":
            out += ["<|im_start|>user\n", said(m), "<|im_end|>\n"]
        elif m["role"] == "tool":
            out += qwen_result(messages, n)
        elif m["role"] == "assistant":
            reasoning, _ = _split_thought(m)
            shown = n > asked and (n == len(messages) - 1 or bool(reasoning))
            out += ["<|im_start|>assistant\n", *_qwen3_words(m, shown), "\n"]
    return out + (["<|im_start|>assistant\n", opened] if prompt else [])


def _qwen3_words(m: Message, shown: bool, opened: int = 0) -> Pieces:
    """The turn; so many pieces of its reasoning block stand in the prompt already."""
    reasoning, answer = _split_thought(m)
    block: Pieces = ["<think>\n", said(m, reasoning.strip("\n")), "\n</think>\n\n"]
    out: Pieces = block[opened:] if shown else []
    out += [said(m, answer.lstrip("\n") if shown else answer)]
    return [*out, *qwen_calls(m, glue=bool(answer)), "<|im_end|>"]


def _qwen3_reply(messages: Messages, n: int, tools: Tools) -> Pieces:
    return _qwen3_words(messages[n], shown=True)


def _qwen3_kept(messages: Messages, n: int, tools: Tools) -> bool:
    """The turn, and what its prompt shows of the turns before it, stay as they are."""
    asked, then = _last_question(messages), _last_question(messages[:n])
    if n <= asked:
        return False
    if n < len(messages) - 1 and not _split_thought(messages[n])[0]:
        return False
    return then == asked


def _qwen3_off(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    return _qwen3(messages, tools, prompt, "<think>\n\n</think>\n\n")


def _qwen3_off_reply(messages: Messages, n: int, tools: Tools) -> Pieces:
    if _split_thought(messages[n])[0].strip("\n"):
        raise Refused("reasoning after a prompt that closed it")
    return _qwen3_words(messages[n], shown=True, opened=3)


def _qwen3_thinking(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    return _qwen3(messages, tools, prompt, "<think>\n")


def _qwen3_thinking_reply(messages: Messages, n: int, tools: Tools) -> Pieces:
    return _qwen3_words(messages[n], shown=True, opened=1)


# ---- DeepSeek ----------------------------------------------------------------------------------


def _deepseek_v3(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    system, rest = system_and_rest(messages)
    out: Pieces = ["<｜begin▁of▁sentence｜>", Said(system or "")]
    results = False
    for n, m in enumerate(rest):
        if m["role"] == "user":
            results = False
            out += ["<｜User｜>", said(m), "<｜Assistant｜>"]
        elif m["role"] == "tool":
            first = rest[n - 1]["role"] != "tool"
            out += ["<｜tool▁outputs▁begin｜>"] if first else ["\n"]
            out += ["<｜tool▁output▁begin｜>", said(m), "<｜tool▁output▁end｜>"]
            results = True
        else:
            out += ["<｜tool▁outputs▁end｜>"] if results else []
            results = False
            out += _deepseek_v3_reply(rest, n, tools)
    return out + (["<｜tool▁outputs▁end｜>"] if results else [])


def _deepseek_v3_reply(messages: Messages, n: int, tools: Tools) -> Pieces:
    m = messages[n]
    out: Pieces = [said(m)]
    for k, (name, arguments) in enumerate(calls_of(m)):
        out += ["\n"] if k else ["<｜tool▁calls▁begin｜>"]
        out += ["<｜tool▁call▁begin｜>function<｜tool▁sep｜>", Said(name), "\n```json\n"]
        out += [Said(json_text(arguments)), "\n```<｜tool▁call▁end｜>"]
    out += ["<｜tool▁calls▁end｜>"] if calls_of(m) else []
    return [*out, "<｜end▁of▁sentence｜>"]


def _deepseek_r1(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    system, rest = system_and_rest(messages)
    out: Pieces = ["<｜begin▁of▁sentence｜>", Said(system or "")]
    for m in rest:
        if m["role"] == "user":
            out += ["<｜User｜>", said(m)]
        else:
            out += ["<｜Assistant｜>", _deepseek_r1_words(m), "<｜end▁of▁sentence｜>"]
    return out + (["<｜Assistant｜><think>\n"] if prompt else [])


def _deepseek_r1_words(m: Message) -> Said:
    return said(m, m["content"].split("</think>")[-1])


def _opens_as_asked(m: Message) -> bool:
    """Whether the turn begins with what the prompt already holds: reasoning that never ends."""
    return m["content"].startswith("<think>\n") and "</think>" not in m["content"]


def _deepseek_r1_reply(messages: Messages, n: int, tools: Tools) -> Pieces:
    m = messages[n]
    words = m["content"].removeprefix("<think>\n") if _opens_as_asked(m) else _deepseek_r1_words(m)
    return [said(m, words), "<｜end▁of▁sentence｜>"]


# ---- SmolLM3 -----------------------------------------------------------------------------------


def _smollm3_mode(messages: Messages) -> str:
    system, _ = system_and_rest(messages)
    return "/no_think" if "/no_think" in (system or "") else "/think"


def _smollm3(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    system, rest = system_and_rest(messages)
    mode = _smollm3_mode(messages)
    opening = "<|im_start|>assistant\n" + ("" if mode == "/think" else "<think>\n\n</think>\n")
    wanted = (system or "").replace("/no_think", "").replace("/think", "").rstrip()
    out: Pieces = ["<|im_start|>system\n"]
    if "/system_override" in (system or ""):
        out += [Said(wanted.replace("/system_override", "").rstrip())]
    else:
        today = datetime.now().strftime("%d %B %Y")
        out += [f"## Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: {today}\n"]
        out += [f"Reasoning Mode: {mode}\n\n## Custom Instructions\n\n"]
        if wanted:
            out += [Said(wanted), "\n\n"]
        elif mode == "/think":
            out += ["You are SmolLM. First think, within <think> and </think>, then answer.\n\n"]
        else:
            out += ["You are SmolLM.\n\n"]
        listed = [piece for tool in tools for piece in (Said(json_text(tool["function"])), "\n")]
        out += ["### Tools\n\n<tools>\n", *listed, "</tools>\n\n"] if tools else []
    out += ["<|im_end|>\n"]
    for m in rest:
        if m["role"] == "assistant":
            out += [opening, said(m, m["content"].lstrip("\n")), "<|im_end|>\n"]
        else:
            out += ["<|im_start|>user\n", said(m), "<|im_end|>\n"]
    return out + ([opening] if prompt else [])


_QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN_MARKUP = (
    "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
_ROLES = ("<｜User｜>", "<｜Assistant｜>")
_THOUGHTS = ("<think>", "</think>")
_CALLS = (
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>", "<｜tool▁sep｜>", "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>",
    "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>",
)  # fmt: skip

_qwen = partial(
    Family, special=_QWEN_TOKENS, eos="<|im_end|>", markup=_QWEN_MARKUP, tools=True, thinks=True
)
_deepseek = partial(
    Family,
    special=("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"),
    bos="<｜begin▁of▁sentence｜>",
    eos="<｜end▁of▁sentence｜>",
)

FAMILIES = (
    _qwen("qwen3", _qwen3, _qwen3_reply, more_eos=_QWEN_TOKENS[:1], kept=_qwen3_kept, calls=3),
    _qwen("qwen3_off", _qwen3_off, _qwen3_off_reply, kept=is_last, calls=2),
    _qwen(
        "qwen3_thinking",
        _qwen3_thinking,
        _qwen3_thinking_reply,
        more_eos=_QWEN_TOKENS[:1],
        kept=_qwen3_kept,
        calls=2,
    ),
    _deepseek(
        "deepseek_v3",
        _deepseek_v3,
        _deepseek_v3_reply,
        markup=(*_ROLES, *_CALLS),
        loose=_THOUGHTS,
        calls=3,
    ),
    _deepseek(
        "deepseek_r1",
        _deepseek_r1,
        _deepseek_r1_reply,
        markup=(*_ROLES, *_THOUGHTS),
        loose=_CALLS,
        kept=lambda messages, n, tools: _opens_as_asked(messages[n]),
        thinks=True,
    ),
    _qwen(
        "smollm3",
        _smollm3,
        up_to("<|im_end|>", trim=lambda text: text.lstrip("\n")),
        markup=_THOUGHTS,
        words=("/no_think", "/think", "/system_override"),
    ),
)
