"""Conversation: one row of any format, frozen and validated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlx_itune.kit.errors import DataError

ROLES = ("system", "user", "assistant", "tool")

# What may stand before a turn; None is the start of the conversation.
_MAY_FOLLOW: dict[str, tuple[str | None, ...]] = {
    "system": (None,),
    "user": (None, "system", "assistant", "tool"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


@dataclass(frozen=True)
class Turn:
    """One message. `weight` says how much an assistant turn is learned (None: the run decides).

    `input` is set on Alpaca's user turns that carry context: the part of `content` after the
    instruction and a blank line, which the `alpaca` template lays out as a section of its own.
    """

    role: str
    content: str
    weight: float | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    name: str | None = None
    input: str | None = None

    def message(self) -> dict[str, Any]:
        """The turn as chat templates read it."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            message["tool_calls"] = [dict(call) for call in self.tool_calls]
        if self.name is not None:
            message["name"] = self.name
        if self.input is not None:
            message["instruction"] = self.content.removesuffix(f"\n\n{self.input}")
            message["input"] = self.input
        return message


@dataclass(frozen=True)
class Conversation:
    """Turns in a legal order. `origin` is "file:line"; `tags` keeps string metadata of the row.

    Raises DataError at construction: unknown role, wrong order, an empty turn, a bad weight.
    """

    turns: tuple[Turn, ...]
    origin: str
    tools: tuple[dict[str, Any], ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problem = find_problem(self.turns)
        if problem is not None:
            raise DataError(problem[1], where=self.origin)

    def messages(self) -> list[dict[str, Any]]:
        """The turns as chat templates read them."""
        return [turn.message() for turn in self.turns]


def find_problem(turns: tuple[Turn, ...]) -> tuple[str, str] | None:
    """The first broken rule as (code, message), or None for a legal conversation."""
    if not turns:
        return "no-turns", "the conversation has no turns"
    previous: str | None = None
    for number, turn in enumerate(turns, 1):
        place = f"turn {number} ({turn.role!r})"
        if turn.role not in ROLES:
            return "unknown-role", f"{place}: the role must be one of {', '.join(ROLES)}"
        if previous not in _MAY_FOLLOW[turn.role]:
            after = f"cannot follow {previous!r}" if previous else "cannot be the first turn"
            return "role-order", f"{place} {after}"
        if turn.tool_calls and turn.role != "assistant":
            return "tool-calls", f"{place}: only an assistant turn can call tools"
        # A tool may well return nothing; everybody else has to say something.
        if not turn.content.strip() and not turn.tool_calls and turn.role != "tool":
            return "empty", f"{place} has no text"
        if turn.weight is not None and not 0 <= turn.weight < float("inf"):
            return "weight", f"{place}: weight {turn.weight} is not a finite number >= 0"
        previous = turn.role
    return None
