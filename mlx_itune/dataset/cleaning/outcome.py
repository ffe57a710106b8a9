"""What a cleaning step says about one row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mlx_itune.dataset.conversation import Conversation, Turn


@dataclass(frozen=True)
class Kept:
    """The row stays as it is."""


@dataclass(frozen=True)
class Changed:
    """The row goes on as `row`; `detail` says what was done to it."""

    row: Conversation
    detail: str


@dataclass(frozen=True)
class Dropped:
    """The row is left out; `detail` says why."""

    detail: str


Outcome = Kept | Changed | Dropped
RowStep = Callable[[Conversation], Outcome]
KEPT = Kept()


def changed(row: Conversation, detail: str) -> Outcome:
    """A changed row."""
    return Changed(row, detail)


def map_texts(
    row: Conversation, change: Callable[[Turn, str], str], detail: Callable[[int], str]
) -> Outcome:
    """Change the contents of turns; Alpaca's input stays the end of its turn's content.

    `detail` is given the number of turns that changed.
    """
    turns: list[Turn] = []
    count = 0
    for turn in row.turns:
        new = _changed_turn(turn, change)
        count += new is not turn
        turns.append(new)
    if not count:
        return KEPT
    made = Conversation(tuple(turns), row.origin, row.tools, row.tags, checked=True)
    return Changed(made, detail(count))


def _changed_turn(turn: Turn, change: Callable[[Turn, str], str]) -> Turn:
    given = turn.input
    if given is not None and turn.content.endswith(f"\n\n{given}"):
        asked = turn.content.removesuffix(f"\n\n{given}")
        new_asked, new_given = change(turn, asked), change(turn, given)
        if (new_asked, new_given) == (asked, given):
            return turn
        return _with_content(turn, f"{new_asked}\n\n{new_given}", new_given)
    new = change(turn, turn.content)
    return turn if new == turn.content else _with_content(turn, new, None)


def _with_content(turn: Turn, content: str, given: str | None) -> Turn:
    return Turn(
        turn.role, content, turn.weight, turn.tool_calls, turn.name, given, turn.tool_call_id
    )
