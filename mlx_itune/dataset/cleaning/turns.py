"""Steps on the turns of a row: what stands before the first question, after the last answer and
between; and rows that go for what they are: irregular, empty, short, in another script.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from itertools import pairwise

from mlx_itune.dataset.cleaning.outcome import Dropped, Outcome, RowStep, with_turns
from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.dataset.statistics.script import OTHER, letters_by_script
from mlx_itune.kit.wording import count


def trim_leading(row: Conversation) -> Outcome:
    """Leave out what comes before the first user turn, the system turn aside."""
    system, rest = _parted(row)
    first = next((n for n, turn in enumerate(rest) if turn.role == "user"), len(rest))
    if not first:
        return None
    if first == len(rest):
        return Dropped("nobody asks anything")
    left = f"{count(first, 'turn')} before the first question left out"
    return with_turns(row, (*system, *rest[first:]), left)


def trim_trailing(row: Conversation) -> Outcome:
    """Leave out what comes after the last assistant turn."""
    last = max((n for n, turn in enumerate(row.turns) if turn.role == "assistant"), default=-1)
    left = len(row.turns) - 1 - last
    if not left:
        return None
    if last < 0:
        return Dropped("nobody answers")
    said = f"{count(left, 'turn')} after the last answer left out"
    return with_turns(row, row.turns[: last + 1], said)


def merge_turns(row: Conversation) -> Outcome:
    """Join neighbouring turns of one role, with a blank line between."""
    merged: list[Turn] = []
    for turn in row.turns:
        before = merged[-1] if merged else None
        calls = turn.role == "tool" or turn.tool_calls or (before and before.tool_calls)
        if before is None or before.role != turn.role or calls:
            merged.append(turn)
        else:
            text = "\n\n".join(part for part in (before.content, turn.content) if part.strip())
            merged[-1] = replace(before, content=text, input=None)
    joined = len(row.turns) - len(merged)
    said = f"{count(joined, 'turn')} joined with the one before"
    return with_turns(row, merged, said) if joined else None


def drop_irregular(row: Conversation) -> Outcome:
    """Drop a row in which user and assistant do not take turns, tool calls aside."""
    _, rest = _parted(row)
    spoken = [turn.role for turn in rest if turn.role in ("user", "assistant")]
    if not any(turn.role == "tool" or turn.tool_calls for turn in rest):
        for number, (one, two) in enumerate(pairwise(spoken), 2):
            if one == two:
                return Dropped(f"turn {number} is {two!r} again")
    if any(turn.role == "system" for turn in rest):
        return Dropped("a system turn stands inside the conversation")
    return None


def drop_empty_answers(row: Conversation) -> Outcome:
    """Drop a row with an assistant turn, or a user turn, that says nothing."""
    for number, turn in enumerate(row.turns, 1):
        if turn.role in ("assistant", "user") and not turn.content.strip() and not turn.tool_calls:
            return Dropped(f"turn {number} ({turn.role}) is empty")
    if not any(turn.role == "assistant" for turn in row.turns):
        return Dropped("nobody answers")
    return None


def drop_short(least_chars: int) -> RowStep:
    """Drop conversations of fewer characters, the system turn aside."""

    def step(row: Conversation) -> Outcome:
        size = sum(len(turn.content.strip()) for turn in row.turns if turn.role != "system")
        if size >= least_chars or any(turn.tool_calls for turn in row.turns):
            return None
        return Dropped(f"{size} characters, fewer than {least_chars}")

    return step


def _parted(row: Conversation) -> tuple[tuple[Turn, ...], tuple[Turn, ...]]:
    leads = bool(row.turns) and row.turns[0].role == "system"
    return row.turns[: int(leads)], row.turns[int(leads) :]


# Options that stand for several writing systems.
_GROUPS = {
    "cjk": ("Han", "Kana", "Hangul"),
    "japanese": ("Han", "Kana"),
    "indic": (
        "Devanagari", "Bengali", "Gurmukhi", "Gujarati", "Oriya", "Tamil", "Telugu", "Kannada",
        "Malayalam", "Sinhala",
    ),
}  # fmt: skip
SCRIPTS = tuple(
    "arabic armenian cjk cyrillic georgian greek han hangul hebrew indic japanese kana latin thai"
    .split()
)  # fmt: skip


def keep_scripts(scripts: Collection[str], least: float) -> RowStep:
    """Drop rows of whose letters less than a share belongs to some scripts."""
    wanted = {name for option in scripts for name in _GROUPS.get(option, (option.capitalize(),))}

    def step(row: Conversation) -> Outcome:
        found = letters_by_script(turn.content for turn in row.turns)
        letters = sum(found.values())
        share = sum(found[name] for name in wanted) / letters if letters else 1.0
        if share >= least:
            return None
        most = found.most_common(1)[0][0]
        most = "another script" if most == OTHER else most.lower()
        return Dropped(f"{100 * share:.0f} % {'/'.join(sorted(scripts))}, mostly {most}")

    return step
