"""Families that show, drop, insert or open reasoning blocks."""

from __future__ import annotations

from functools import partial

from masks.families.tooled import qwen
from masks.family import (
    Family,
    Message,
    Messages,
    Refused,
    Tools,
    calls_of,
    is_last,
    json_text,
    last_question,
    up_to,
)

# ---- Qwen 3 ------------------------------------------------------------------------------------


def _split_thought(m: Message) -> tuple[str, str]:
    """(reasoning, answer) of an assistant's content."""
    before, found, _ = m["content"].partition("</think>")
    if not found:
        return "", m["content"]
    reasoning = before.rstrip("\n").split("<think>")[-1].strip("\n")
    return reasoning, m["content"].split("</think>")[-1].lstrip("\n")


def _qwen3(messages: Messages, n: int, opened: str = "") -> str:
    """The turn after a prompt that `opened` its reasoning block so far."""
    reasoning, answer = _split_thought(messages[n])
    block = f"<think>\n{reasoning}\n</think>\n\n"
    if not block.startswith(opened):
        raise Refused("reasoning after a prompt that closed it")
    answer = answer.lstrip("\n")
    return block[len(opened) :] + qwen(messages[n], answer)


def _qwen3_kept(messages: Messages, n: int, tools: Tools) -> bool:
    """The turn, and what its prompt shows of the turns before it, stay as they are."""
    asked, then = last_question(messages), last_question(messages[:n])
    shown = is_last(messages, n, tools) or bool(_split_thought(messages[n])[0])
    return n > asked and shown and then == asked


# ---- DeepSeek ----------------------------------------------------------------------------------


def _deepseek_v3(messages: Messages, n: int) -> str:
    calls = "\n".join(
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{json_text(arguments)}\n```"
        "<｜tool▁call▁end｜>"
        for name, arguments in calls_of(messages[n])
    )
    if calls:
        calls = f"<｜tool▁calls▁begin｜>{calls}<｜tool▁calls▁end｜>"
    return f"{messages[n]['content']}{calls}<｜end▁of▁sentence｜>"


def _opens_as_asked(content: str) -> bool:
    """Whether a turn begins with what the prompt already holds: reasoning that never ends."""
    return content.startswith("<think>\n") and "</think>" not in content


def _deepseek_r1(messages: Messages, n: int) -> str:
    content: str = messages[n]["content"]
    if _opens_as_asked(content):
        content = content.removeprefix("<think>\n")
    return content.split("</think>")[-1] + "<｜end▁of▁sentence｜>"


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
    _qwen("qwen3", _qwen3, more_eos=_QWEN_TOKENS[:1], kept=_qwen3_kept, calls=3),
    _qwen("qwen3_off", partial(_qwen3, opened="<think>\n\n</think>\n\n"), kept=is_last, calls=2),
    _qwen(
        "qwen3_thinking",
        partial(_qwen3, opened="<think>\n"),
        more_eos=_QWEN_TOKENS[:1],
        kept=_qwen3_kept,
        calls=2,
    ),
    _deepseek("deepseek_v3", _deepseek_v3, markup=(*_ROLES, *_CALLS), loose=_THOUGHTS, calls=3),
    _deepseek(
        "deepseek_r1",
        _deepseek_r1,
        markup=(*_ROLES, *_THOUGHTS),
        loose=_CALLS,
        kept=lambda messages, n, tools: _opens_as_asked(messages[n]["content"]),
        thinks=True,
    ),
    _qwen(
        "smollm3",
        up_to("<|im_end|>", trim=lambda text: text.lstrip("\n")),
        markup=_THOUGHTS,
        words=("/no_think", "/think", "/system_override"),
    ),
)
