"""What a template family is to the oracle: its tokens, and by hand what a model has to say in it.

The text of a conversation is what transformers makes of the family's Jinja file. Nothing here reads
the renderer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mlx_itune.dataset.tokens.tokenizer import built_in

Message = Mapping[str, Any]
Messages = Sequence[Message]
Tools = Sequence[Mapping[str, Any]]

_TEMPLATES = Path(__file__).parent / "templates"


class Refused(Exception):
    """The template, or common sense, has no place for these turns."""


@dataclass(frozen=True)
class Family:
    """One template family.

    `reply(messages, n)` is what a model has to write for turn `n` after the prompt of the turns
    before it; `kept(messages, n, tools)` says whether turn `n` stands in the text of the whole
    conversation exactly as in its own prompt + reply (None: look there). `open_ended(message)`:
    the template writes no end token there, so the tokenizer's own is appended.
    """

    name: str
    reply: Callable[[Messages, int], str]
    special: tuple[str, ...]
    eos: str
    bos: str | None = None
    # Tokens of their own that are not special: what the template writes, and what it does not.
    markup: tuple[str, ...] = ()
    loose: tuple[str, ...] = ()
    more_eos: tuple[str, ...] = ()
    kept: Callable[[Messages, int, Tools], bool] | None = lambda messages, n, tools: True
    open_ended: Callable[[Message], bool] = lambda message: False
    rstrip: bool = False
    words: tuple[str, ...] = ()
    tool_use_template: str | None = None
    built_in: str | None = None
    template_name: str | None = None
    # What conversations of this family may hold.
    system: bool = True
    tools: bool = False
    calls: int = 0
    call_ids: bool = False
    thinks: bool = False
    inputs: bool = False
    reasons: bool = False
    thinks_after_tools: bool = True
    # How the template reads a turn, what it is told besides, and the mark after which a reply is
    # what the template writes for it.
    shape: Callable[[Message], Message] = lambda message: message
    options: tuple[tuple[str, Any], ...] = ()
    closes: str = ""

    @property
    def template(self) -> str | dict[str, str]:
        """The chat template, or the templates by name."""
        if self.built_in:
            return built_in(self.built_in, adds_bos=self.bos is not None, knows_im_end=True)
        text = _jinja(self.template_name or self.name)
        if self.tool_use_template is None:
            return text
        return {"default": text, "tool_use": _jinja(self.tool_use_template)}

    @property
    def controls(self) -> tuple[str, ...]:
        """Every string that is a token of its own."""
        return tuple(dict.fromkeys((*self.special, *self.markup, *self.loose)))


@cache
def _jinja(name: str) -> str:
    return (_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def up_to(
    end: str, *, start: str = "", trim: Callable[[str], str] = str
) -> Callable[[Messages, int], str]:
    """A reply that is its words and the end of the turn."""
    return lambda messages, n: start + trim(messages[n]["content"]) + end


def is_last(messages: Messages, n: int, tools: Tools) -> bool:
    """Whether no turn follows turn `n`."""
    return n == len(messages) - 1


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON as transformers' `tojson` writes it."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def thought_of(message: Message) -> str:
    """What an assistant thought; nothing if it did not."""
    return message.get("reasoning_content") or ""


def calls_of(message: Message) -> list[tuple[str, Any]]:
    """The (name, arguments) of each tool call."""
    calls = message.get("tool_calls") or ()
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


def last_question(messages: Messages) -> int:
    """Where the exchange that still runs began."""
    return max((n for n, m in enumerate(messages) if m["role"] == "user"), default=-1)
