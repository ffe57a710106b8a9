"""What a template family is to the oracle: its text, its replies and its traits, spelled by hand.

Nothing here or in `families/` reads Jinja or the renderer. A text is a list of pieces; a piece that
came from the conversation is `Said`, everything else was written by the template.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Message = Mapping[str, Any]
Messages = Sequence[Message]
Tools = Sequence[Mapping[str, Any]]
Pieces = list[str]

TEMPLATES = Path(__file__).parent / "templates"


class Said(str):
    """Characters from the conversation. `reply`: from an assistant's turn."""

    reply: bool

    def __new__(cls, text: str, *, reply: bool = False) -> Said:
        self = super().__new__(cls, text)
        self.reply = reply
        return self


Text = Callable[[Messages, Tools, bool], Pieces]
Reply = Callable[[Messages, int, Tools], Pieces]


class Refused(Exception):
    """The template, or common sense, has no place for these turns."""


def _always(messages: Messages, n: int, tools: Tools) -> bool:
    return True


@dataclass(frozen=True)
class Family:
    """One template family.

    `pieces(messages, tools, prompt)` is the text with or without a generation prompt;
    `reply(messages, n, tools)` is what a model has to write for turn `n` after the prompt of the
    turns before it; `kept(messages, n, tools)` says whether turn `n` stands in the text of the
    whole conversation exactly as in its own prompt + reply. `open_ended(messages, n)`: the template
    writes no end token there, so the tokenizer's own is appended.
    """

    name: str
    pieces: Text
    reply: Reply
    special: tuple[str, ...]
    eos: str
    bos: str | None = None
    # Tokens of their own that are not special: what the template writes, and what it does not.
    markup: tuple[str, ...] = ()
    loose: tuple[str, ...] = ()
    more_eos: tuple[str, ...] = ()
    kept: Callable[[Messages, int, Tools], bool] = _always
    open_ended: Callable[[Messages, int], bool] = lambda messages, n: False
    rstrip: bool = False
    words: tuple[str, ...] = ()
    tool_use_template: str | None = None
    built_in: str | None = None
    # What conversations of this family may hold.
    system: bool = True
    tools: bool = False
    calls: int = 0
    call_ids: bool = False
    thinks: bool = False
    inputs: bool = False

    @property
    def jinja(self) -> str | dict[str, str]:
        """The chat template, or the templates by name."""
        text = (TEMPLATES / f"{self.name}.jinja").read_text(encoding="utf-8")
        if self.tool_use_template is None:
            return text
        other = (TEMPLATES / f"{self.tool_use_template}.jinja").read_text(encoding="utf-8")
        return {"default": text, "tool_use": other}

    @property
    def controls(self) -> tuple[str, ...]:
        """Every string that is a token of its own."""
        return tuple(dict.fromkeys((*self.special, *self.markup, *self.loose)))


def said(message: Message, text: str | None = None) -> Said:
    """The content of a message (or `text`, made from it) as conversation characters.

    Calls are not content: the markup around them may not come from inside their arguments.
    """
    return Said(message["content"] if text is None else text, reply=message["role"] == "assistant")


def layout(
    before: str | Mapping[str, str],
    after: str | Mapping[str, str],
    prompt: str,
    *,
    start: str = "",
    opening: str | None = None,
    closing: str = "",
    trim: Callable[[str], str] = str,
) -> Text:
    """A text in which each turn stands between two of the template's own, by role ("{}" is it).

    opening: what stands for a system turn that is missing. closing: what ends a finished text.
    """
    roles = ("system", "user", "assistant")
    first = {r: before.format(r) if isinstance(before, str) else before.get(r, "") for r in roles}
    last = {r: after.format(r) if isinstance(after, str) else after.get(r, "") for r in roles}

    def pieces(messages: Messages, tools: Tools, asks: bool) -> Pieces:
        out: Pieces = [start]
        if opening is not None and messages[0]["role"] != "system":
            out += [first["system"], opening, last["system"]]
        for m in messages:
            out += [first[m["role"]], said(m, trim(m["content"])), last[m["role"]]]
        return [*out, prompt if asks else closing]

    return pieces


def up_to(end: str, *, start: str = "", trim: Callable[[str], str] = str) -> Reply:
    """A reply that is its words and the end of the turn."""
    return lambda messages, n, tools: [start, said(messages[n], trim(messages[n]["content"])), end]


def is_last(messages: Messages, n: int, tools: Tools) -> bool:
    """Whether no turn follows turn `n`."""
    return n == len(messages) - 1


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON as transformers' `tojson` writes it."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def calls_of(message: Message) -> list[tuple[str, Any]]:
    """The (name, arguments) of each tool call."""
    calls = message.get("tool_calls") or ()
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


def system_and_rest(messages: Messages) -> tuple[str | None, Messages]:
    """The opening system turn's text, and the turns after it."""
    if messages[0]["role"] == "system":
        return messages[0]["content"], messages[1:]
    return None, messages


def must_alternate(messages: Messages) -> None:
    """Raise Refused unless user and other turns take turns."""
    for n, message in enumerate(messages):
        if (message["role"] == "user") != (n % 2 == 0):
            raise Refused("roles must alternate")
