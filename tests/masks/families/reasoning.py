"""Families that show, drop, insert or open reasoning blocks."""

from __future__ import annotations

from functools import partial
from typing import Any

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


QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_MARKUP = (
    "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
ROLES = ("<｜User｜>", "<｜Assistant｜>")
_THOUGHTS = ("<think>", "</think>")
CALLS = (
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>", "<｜tool▁sep｜>", "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>",
    "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>",
)  # fmt: skip

_qwen = partial(
    Family, special=QWEN_TOKENS, eos="<|im_end|>", markup=QWEN_MARKUP, tools=True, thinks=True
)
DEEPSEEK: dict[str, Any] = {
    "special": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"),
    "bos": "<｜begin▁of▁sentence｜>",
    "eos": "<｜end▁of▁sentence｜>",
}

FAMILIES = (
    _qwen("qwen3", _qwen3, more_eos=QWEN_TOKENS[:1], kept=_qwen3_kept, calls=3),
    _qwen("qwen3_off", partial(_qwen3, opened="<think>\n\n</think>\n\n"), kept=is_last, calls=2),
    _qwen(
        "qwen3_thinking",
        partial(_qwen3, opened="<think>\n"),
        more_eos=QWEN_TOKENS[:1],
        kept=_qwen3_kept,
        calls=2,
    ),
    Family(
        "deepseek_v3", _deepseek_v3, markup=(*ROLES, *CALLS), loose=_THOUGHTS, calls=3, **DEEPSEEK
    ),
    _qwen(
        "smollm3",
        up_to("<|im_end|>", trim=lambda text: text.lstrip("\n")),
        markup=_THOUGHTS,
        words=("/no_think", "/think", "/system_override"),
    ),
)
