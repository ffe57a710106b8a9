"""The rows that go wrong nowhere, read by their shape: the same keys mean the same format.

`detect.parse_rows` knows every format and every fault; what is read here is a short cut through it
for rows of plain texts, which are nearly all rows of nearly all files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.dataset.formats.chat import plain_turns
from mlx_itune.dataset.formats.fields import tags_of
from mlx_itune.dataset.formats.pairs import is_no_input
from mlx_itune.dataset.formats.tools import tools_of

_CHATS = (
    ("messages", "role", "content", frozenset({"messages", "tools", "functions"})),
    ("conversations", "from", "value", frozenset({"conversations", "tools", "functions"})),
)
_SHAPES_KEPT = 1000


class Pair(NamedTuple):
    """Which keys of a shape hold the question, its context if any, and the answer."""

    asked: str
    context: str | None
    answer: str
    tags: tuple[str, ...]


class Shapes:
    """Rows by their keys; `plan` says what a shape is, None for one that needs a closer look."""

    def __init__(self, plan: Callable[[tuple[str, ...]], Pair | None]) -> None:
        self._plan = plan
        self._known: dict[tuple[str, ...], Pair | None] = {}

    def read(self, row: dict[str, Any], origin: str) -> Conversation | None:
        """The conversation of a plain row; None for a row that needs a closer look."""
        for key, role_key, text_key, used in _CHATS:
            if key in row:
                if "system" in row or "system_prompt" in row:
                    return None
                turns = plain_turns(row[key], role_key, text_key)
                if turns is None:
                    return None
                if len(row) == 1:
                    return Conversation(turns, origin, checked=True)
                tools = tools_of(row) if "tools" in row or "functions" in row else ()
                return Conversation(turns, origin, tools, tags_of(row, used), checked=True)
        keys = (*row,)
        try:
            pair = self._known[keys]
        except KeyError:
            pair = self._plan(keys)
            if len(self._known) < _SHAPES_KEPT:
                self._known[keys] = pair
        return None if pair is None else self._pair(row, origin, pair)

    def _pair(self, row: dict[str, Any], origin: str, pair: Pair) -> Conversation | None:
        asked, answer = row[pair.asked], row[pair.answer]
        if (
            asked.__class__ is not str
            or answer.__class__ is not str
            or not asked
            or not answer
            or asked.isspace()
            or answer.isspace()
        ):
            return None
        context = None if pair.context is None else row[pair.context]
        if context:
            if context.__class__ is not str:
                return None
            if is_no_input(context):
                context = None
        elif context is not None and context != "":
            return None
        user = (
            Turn("user", f"{asked}\n\n{context}", input=context) if context else Turn("user", asked)
        )
        tags = {}
        for key in pair.tags:
            tag = row[key]
            if tag.__class__ is not str:
                return None
            tags[key] = tag
        return Conversation((user, Turn("assistant", answer)), origin, (), tags, checked=True)
