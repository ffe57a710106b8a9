"""Families that show, drop, insert or open reasoning blocks."""

from __future__ import annotations

from datetime import datetime

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
    json_text,
    said,
    system_and_rest,
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


def _qwen3(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    system, _ = system_and_rest(messages)
    out: Pieces = []
    if tools:
        # The system text ends in two new lines of the template's; the list opens without its own.
        out += ["<|im_start|>", "system\n", *([Said(system), "\n\n"] if system is not None else [])]
        listing = qwen_tools(tools)
        out += [listing[0].removeprefix("\n\n"), *listing[1:], "<|im_end|>", "\n"]
    elif system is not None:
        out += ["<|im_start|>", "system\n", Said(system), "<|im_end|>", "\n"]
    asked = _last_question(messages)
    for n, m in enumerate(messages):
        if m["role"] == "user":
            out += ["<|im_start|>", "user\n", said(m), "<|im_end|>", "\n"]
        elif m["role"] == "tool":
            out += qwen_result(messages, n)
        elif m["role"] == "assistant":
            reasoning, _ = _split_thought(m)
            shown = n > asked and (n == len(messages) - 1 or bool(reasoning))
            out += ["<|im_start|>", "assistant\n", *_qwen3_words(m, shown), "\n"]
    return out + (["<|im_start|>", "assistant\n"] if prompt else [])


def _qwen3_words(m: Message, shown: bool) -> Pieces:
    reasoning, answer = _split_thought(m)
    out: Pieces = []
    if shown:
        out += ["<think>", "\n", said(m, reasoning.strip("\n")), "\n", "</think>", "\n\n"]
        out += [said(m, answer.lstrip("\n"))]
    else:
        out += [said(m, answer)]
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
    out = _qwen3(messages, tools, prompt)
    return out + (["<think>", "\n\n", "</think>", "\n\n"] if prompt else [])


def _qwen3_off_reply(messages: Messages, n: int, tools: Tools) -> Pieces:
    if _split_thought(messages[n])[0].strip("\n"):
        raise Refused("reasoning after a prompt that closed it")
    return _qwen3_words(messages[n], shown=True)[6:]


def _qwen3_off_kept(messages: Messages, n: int, tools: Tools) -> bool:
    return n == len(messages) - 1


def _qwen3_thinking(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    return _qwen3(messages, tools, prompt) + (["<think>", "\n"] if prompt else [])


def _qwen3_thinking_reply(messages: Messages, n: int, tools: Tools) -> Pieces:
    return _qwen3_words(messages[n], shown=True)[2:]


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
        out += ["<｜tool▁call▁begin｜>", "function", "<｜tool▁sep｜>", Said(name), "\n```json\n"]
        out += [Said(json_text(arguments)), "\n```", "<｜tool▁call▁end｜>"]
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
    return out + (["<｜Assistant｜>", "<think>", "\n"] if prompt else [])


def _deepseek_r1_words(m: Message) -> Said:
    return said(m, m["content"].split("</think>")[-1])


def _opens_as_asked(m: Message) -> bool:
    """Whether the turn begins with what the prompt already holds: reasoning that never ends."""
    return m["content"].startswith("<think>\n") and "</think>" not in m["content"]


def _deepseek_r1_reply(messages: Messages, n: int, tools: Tools) -> Pieces:
    m = messages[n]
    words = m["content"].removeprefix("<think>\n") if _opens_as_asked(m) else _deepseek_r1_words(m)
    return [said(m, words), "<｜end▁of▁sentence｜>"]


def _deepseek_r1_kept(messages: Messages, n: int, tools: Tools) -> bool:
    return _opens_as_asked(messages[n])


# ---- SmolLM3 -----------------------------------------------------------------------------------


def _smollm3_mode(messages: Messages) -> str:
    system, _ = system_and_rest(messages)
    return "/no_think" if "/no_think" in (system or "") else "/think"


def _smollm3_open(messages: Messages) -> Pieces:
    return ["<think>", "\n\n", "</think>", "\n"] if _smollm3_mode(messages) != "/think" else []


def _smollm3(messages: Messages, tools: Tools, prompt: bool) -> Pieces:
    system, rest = system_and_rest(messages)
    mode = _smollm3_mode(messages)
    wanted = (system or "").replace("/no_think", "").replace("/think", "").rstrip()
    out: Pieces = ["<|im_start|>", "system\n"]
    if "/system_override" in (system or ""):
        out += [Said(wanted.replace("/system_override", "").rstrip())]
    else:
        today = datetime.now().strftime("%d %B %Y")
        out += ["## Metadata\n\nKnowledge Cutoff Date: June 2025\n", f"Today Date: {today}\n"]
        out += [f"Reasoning Mode: {mode}\n\n## Custom Instructions\n\n"]
        if wanted:
            out += [Said(wanted), "\n\n"]
        elif mode == "/think":
            out += ["You are SmolLM. First think, within ", "<think>", " and ", "</think>"]
            out += [", then answer.\n\n"]
        else:
            out += ["You are SmolLM.\n\n"]
        out += ["### Tools\n\n<tools>\n", *_smollm3_tools(tools), "</tools>\n\n"] if tools else []
    out += ["<|im_end|>", "\n"]
    for m in rest:
        if m["role"] == "assistant":
            out += ["<|im_start|>", "assistant\n", *_smollm3_open(messages)]
            out += [said(m, m["content"].lstrip("\n")), "<|im_end|>", "\n"]
        else:
            out += ["<|im_start|>", "user\n", said(m), "<|im_end|>", "\n"]
    return out + (["<|im_start|>", "assistant\n", *_smollm3_open(messages)] if prompt else [])


def _smollm3_tools(tools: Tools) -> Pieces:
    return [piece for tool in tools for piece in (Said(json_text(tool["function"])), "\n")]


def _smollm3_reply(messages: Messages, n: int, tools: Tools) -> Pieces:
    return [said(messages[n], messages[n]["content"].lstrip("\n")), "<|im_end|>"]


_QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN_MARKUP = (
    "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
_DEEPSEEK_TOKENS = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>")
_ROLES = ("<｜User｜>", "<｜Assistant｜>")
_THOUGHTS = ("<think>", "</think>")
_CALLS = (
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>", "<｜tool▁sep｜>", "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>",
    "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>",
)  # fmt: skip

FAMILIES = (
    Family(
        "qwen3",
        _qwen3,
        _qwen3_reply,
        _QWEN_TOKENS,
        eos="<|im_end|>",
        more_eos=("<|endoftext|>",),
        markup=_QWEN_MARKUP,
        kept=_qwen3_kept,
        tools=True,
        calls=3,
        thinks=True,
    ),
    Family(
        "qwen3_off",
        _qwen3_off,
        _qwen3_off_reply,
        _QWEN_TOKENS,
        eos="<|im_end|>",
        markup=_QWEN_MARKUP,
        kept=_qwen3_off_kept,
        tools=True,
        calls=2,
        thinks=True,
    ),
    Family(
        "qwen3_thinking",
        _qwen3_thinking,
        _qwen3_thinking_reply,
        _QWEN_TOKENS,
        eos="<|im_end|>",
        more_eos=("<|endoftext|>",),
        markup=_QWEN_MARKUP,
        kept=_qwen3_kept,
        tools=True,
        calls=2,
        thinks=True,
    ),
    Family(
        "deepseek_v3",
        _deepseek_v3,
        _deepseek_v3_reply,
        _DEEPSEEK_TOKENS,
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
        markup=(*_ROLES, *_CALLS),
        loose=_THOUGHTS,
        calls=3,
    ),
    Family(
        "deepseek_r1",
        _deepseek_r1,
        _deepseek_r1_reply,
        _DEEPSEEK_TOKENS,
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
        markup=(*_ROLES, *_THOUGHTS),
        loose=_CALLS,
        kept=_deepseek_r1_kept,
        thinks=True,
    ),
    Family(
        "smollm3",
        _smollm3,
        _smollm3_reply,
        _QWEN_TOKENS,
        eos="<|im_end|>",
        markup=("<think>", "</think>"),
        tools=True,
        thinks=True,
        words=("/no_think", "/think", "/system_override"),
    ),
)
