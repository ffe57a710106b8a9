"""Steps on the order of turns: what stands before the first question, after the last answer, and
between. Each takes a conversation and gives the new one with what was done, or why it is dropped.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from mlx_itune.dataset.cleaning.outcome import KEPT, Dropped, Outcome, changed
from mlx_itune.dataset.conversation import Conversation, Turn


def trim_leading(row: Conversation) -> Outcome:
    """Leave out what comes before the first user turn, the system turn aside."""
    system, rest = _parted(row)
    first = next((n for n, turn in enumerate(rest) if turn.role == "user"), len(rest))
    if not first:
        return KEPT
    if first == len(rest):
        return Dropped("nobody asks anything")
    return _with(
        row, (*system, *rest[first:]), f"{_turns(first)} before the first question left out"
    )


def trim_trailing(row: Conversation) -> Outcome:
    """Leave out what comes after the last assistant turn."""
    last = max((n for n, turn in enumerate(row.turns) if turn.role == "assistant"), default=-1)
    left = len(row.turns) - 1 - last
    if not left:
        return KEPT
    if last < 0:
        return Dropped("nobody answers")
    return _with(row, row.turns[: last + 1], f"{_turns(left)} after the last answer left out")


def merge_turns(row: Conversation) -> Outcome:
    """Join neighbouring turns of one role, with a blank line between."""
    merged: list[Turn] = []
    for turn in row.turns:
        before = merged[-1] if merged else None
        if before is None or before.role != turn.role or turn.role == "tool" or turn.tool_calls:
            merged.append(turn)
        elif not before.tool_calls:
            text = "\n\n".join(part for part in (before.content, turn.content) if part.strip())
            merged[-1] = replace(before, content=text, input=None)
        else:
            merged.append(turn)
    count = len(row.turns) - len(merged)
    return (
        _with(row, tuple(merged), f"{_turns(count)} joined with the one before") if count else KEPT
    )


def drop_irregular(row: Conversation) -> Outcome:
    """Drop a row in which user and assistant do not take turns, tool calls aside."""
    _, rest = _parted(row)
    spoken = [turn.role for turn in rest if turn.role in ("user", "assistant")]
    has_tools = any(turn.role == "tool" or turn.tool_calls for turn in rest)
    if not has_tools:
        for number, (one, two) in enumerate(pairwise(spoken), 2):
            if one == two:
                return Dropped(f"turn {number} is {two!r} again")
    if any(turn.role == "system" for turn in rest):
        return Dropped("a system turn stands inside the conversation")
    return KEPT


def drop_empty_answers(row: Conversation) -> Outcome:
    """Drop a row with an assistant turn, or a user turn, that says nothing."""
    for number, turn in enumerate(row.turns, 1):
        if turn.role in ("assistant", "user") and not turn.content.strip() and not turn.tool_calls:
            return Dropped(f"turn {number} ({turn.role}) is empty")
    if not any(turn.role == "assistant" for turn in row.turns):
        return Dropped("nobody answers")
    return KEPT


def _parted(row: Conversation) -> tuple[tuple[Turn, ...], tuple[Turn, ...]]:
    leads = bool(row.turns) and row.turns[0].role == "system"
    return row.turns[: int(leads)], row.turns[int(leads) :]


def _with(row: Conversation, turns: tuple[Turn, ...], detail: str) -> Outcome:
    return changed(Conversation(turns, row.origin, row.tools, row.tags, checked=True), detail)


def _turns(count: int) -> str:
    return f"{count} turn" if count == 1 else f"{count} turns"
