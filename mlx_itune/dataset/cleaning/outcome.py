"""What a cleaning step says about one row: None leaves it as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.kit.wording import count


@dataclass(frozen=True)
class Changed:
    """The row goes on as `row`; `detail` says what was done to it."""

    row: Conversation
    detail: str


@dataclass(frozen=True)
class Dropped:
    """The row is left out; `detail` says why."""

    detail: str


Outcome = Changed | Dropped | None
RowStep = Callable[[Conversation], Outcome]


def with_turns(row: Conversation, turns: Sequence[Turn], detail: str) -> Changed:
    """A row with other turns, legal or not yet."""
    return Changed(
        Conversation(tuple(turns), row.origin, row.tools, row.tags, checked=True), detail
    )


def map_texts(row: Conversation, change: Callable[[Turn, str], str], what: str) -> Changed | None:
    """Change the contents of turns; Alpaca's input stays the end of its turn's content."""
    turns = [_changed_turn(turn, change) for turn in row.turns]
    number = sum(new is not old for new, old in zip(turns, row.turns, strict=True))
    return with_turns(row, turns, f"{what} in {count(number, 'turn')}") if number else None


def _changed_turn(turn: Turn, change: Callable[[Turn, str], str]) -> Turn:
    given = turn.input
    if given is None or not turn.content.endswith(f"\n\n{given}"):
        new = change(turn, turn.content)
        return turn if new == turn.content else replace(turn, content=new, input=None)
    asked = turn.content.removesuffix(f"\n\n{given}")
    new_asked, new_given = change(turn, asked), change(turn, given)
    if (new_asked, new_given) == (asked, given):
        return turn
    return replace(turn, content=f"{new_asked}\n\n{new_given}", input=new_given)
