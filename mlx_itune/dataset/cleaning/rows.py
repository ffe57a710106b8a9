"""Rows on their way through the steps, what a step makes of one, and broken ones to be mended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from mlx_itune.dataset.conversation import (
    Conversation,
    Fault,
    RowFault,
    Turn,
    fault_at,
    find_problem,
    is_text,
)
from mlx_itune.dataset.formats.chat import turns_of
from mlx_itune.dataset.formats.fields import Parsed, tags_of, tools_of, with_system
from mlx_itune.dataset.how import Reading
from mlx_itune.kit.wording import count

# Faults that steps on turns can mend.
_MENDABLE = frozenset({"role-order", "empty", "no-reply", "no-turns", "type", "missing-key"})
_LISTS = (("messages", "content"), ("conversations", "value"))
_PAIRS = (
    ("instruction", "output"), ("prompt", "completion"), ("question", "answer"), ("input", "output")
)  # fmt: skip


class Outcome(NamedTuple):
    """What becomes of a row (None: it is left out), and why."""

    row: Conversation | None
    detail: str


# None leaves the row as it is.
RowStep = Callable[[Conversation], Outcome | None]


@dataclass(frozen=True)
class Row:
    """A row: the split it goes to, as it was read, as it is now, and (step, detail) of changes."""

    split: str
    before: Conversation
    now: Conversation
    notes: tuple[tuple[str, str], ...] = ()


def with_turns(row: Conversation, turns: Sequence[Turn], detail: str) -> Outcome:
    """A row with other turns, legal or not yet."""
    return Outcome(replace(row, turns=tuple(turns), checked=True), detail)


def map_texts(row: Conversation, change: Callable[[Turn, str], str], what: str) -> Outcome | None:
    """Change the contents of turns."""
    turns = [with_text(turn, partial(change, turn)) for turn in row.turns]
    number = sum(new != old for new, old in zip(turns, row.turns, strict=True))
    return with_turns(row, turns, f"{what} in {count(number, 'turn')}") if number else None


def with_text(turn: Turn, change: Callable[[str], str]) -> Turn:
    """Change the content and the reasoning of a turn; Alpaca's input stays the content's end."""
    if turn.reasoning is not None and (thought := change(turn.reasoning)) != turn.reasoning:
        turn = replace(turn, reasoning=thought)
    given = turn.input
    if given is None or not turn.content.endswith(f"\n\n{given}"):
        new = change(turn.content)
        return turn if new == turn.content else replace(turn, content=new, input=None)
    asked, given = change(turn.content.removesuffix(f"\n\n{given}")), change(given)
    return replace(turn, content=f"{asked}\n\n{given}", input=given)


def refusal_of(row: Conversation) -> Fault | None:
    """Why a row could not be trained on; None when it could."""
    problem = find_problem(row.turns, is_text=is_text(row.tags))
    if problem is None and not any(turn.role == "assistant" for turn in row.turns):
        problem = "no-reply", "no assistant turn, so there is nothing to learn"
    return fault_at(row.origin, *problem) if problem else None


def as_it_is(
    value: Mapping[str, Any], origin: str, fault: RowFault, how: Reading
) -> Conversation | None:
    """A row whose turns are out of order or empty, for steps to mend; None for any other fault."""
    if fault.code not in _MENDABLE:
        return None
    try:
        turns, used = _parsed(value, how)
        tools = tools_of(value)
    except RowFault:
        return None
    tags = tags_of(value, used | {"tools", "functions"})
    how.told.row(tags)
    return Conversation(turns, origin, tools, tags, checked=True)


def _parsed(value: Mapping[str, Any], how: Reading) -> Parsed:
    for key, text in _LISTS:
        if isinstance(value.get(key), list):
            said = ({text: "", **_without_null(item)} for item in value[key])
            return with_system(value, turns_of({key: list(said)}, key, how), {key}, how.told)
    for asked, answered in _PAIRS:
        question, answer = value.get(asked), value.get(answered)
        if isinstance(question, str) and isinstance(answer, (str, type(None))):
            context = value.get("input") if asked == "instruction" else None
            if isinstance(context, str) and context:
                question = f"{question}\n\n{context}"
            turns = Turn("user", question), Turn("assistant", answer or "")
            return with_system(value, turns, {asked, answered, "input"}, how.told)
    raise RowFault("no-turns", "no turns")


def _without_null(item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise RowFault("type", "a turn that is no object")
    return {key: part for key, part in item.items() if part is not None}
