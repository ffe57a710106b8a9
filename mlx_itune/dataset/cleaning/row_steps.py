"""Steps on one row: what turns say, which turns there are, and rows that go for what they are."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

from mlx_itune.dataset.checking.lints import Lint, excerpt
from mlx_itune.dataset.cleaning.html_text import is_html, to_markdown
from mlx_itune.dataset.cleaning.pii.redact import redact_conversation
from mlx_itune.dataset.cleaning.rows import Outcome, RowStep, map_texts, with_turns
from mlx_itune.dataset.conversation import Conversation, SystemPrompt, Turn
from mlx_itune.dataset.statistics.counters import OTHER, letters_by_script
from mlx_itune.kit.errors import UsageError
from mlx_itune.kit.wording import count

# A fence whose first line is what the page's header said: the language, a button, then the code.
_FENCE_BUTTON = re.compile(
    r"```[ \t]*\n?[ \t]*([A-Za-z0-9+#.-]{0,20}?)[ \t]?(?:Copy code)+[ \t]*\n?"
)
_BARE_BUTTON = re.compile(
    r"^[ \t]*[a-z0-9+#.-]{0,16}[ \t]?Copy code[ \t]*$\n?|Copy\d+ chars / \d+ words\n?", re.MULTILINE
)
_PAGE_COUNT = re.compile(r"\A\s*\d+ / \d+\s*\n+")
_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
# Not the joiners, which emoji and Indic scripts are written with.
_INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad]")
_LINE_END = re.compile(r"\r\n?|[\u2028\u2029\u0085]")
_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)

# Options that stand for several writing systems.
_INDIC = "Devanagari Bengali Gurmukhi Gujarati Oriya Tamil Telugu Kannada Malayalam Sinhala"
_GROUPS = {
    "cjk": ("Han", "Kana", "Hangul"), "japanese": ("Han", "Kana"), "indic": (*_INDIC.split(),),
}  # fmt: skip
SCRIPTS = (
    "arabic armenian cjk cyrillic georgian greek han hangul hebrew indic japanese kana latin thai"
).split()


def html_to_text(row: Conversation) -> Outcome | None:
    """Turn what is HTML into Markdown."""
    return map_texts(row, lambda _, text: to_markdown(text) if is_html(text) else text, "HTML")


def remove_copy_code(row: Conversation) -> Outcome | None:
    """Remove 'Copy code' buttons, 'Copy 12 chars' and 'n / m' page counts from answers."""

    def change(turn: Turn, text: str) -> str:
        if turn.role != "assistant":
            return text
        text = _PAGE_COUNT.sub("", text)
        if "Copy" not in text:
            return text
        return _BARE_BUTTON.sub("", _FENCE_BUTTON.sub(lambda found: f"```{found[1]}\n", text))

    return map_texts(row, change, "page noise")


def number_lists(row: Conversation) -> Outcome | None:
    """Count the items of lists in answers that are all numbered 1, as pages lost their numbers."""

    def change(turn: Turn, text: str) -> str:
        if turn.role != "assistant" or text.count("\n1. ") < 1:
            return text
        lines, number, in_code = text.split("\n"), 0, False
        for at, line in enumerate(lines):
            in_code ^= line.lstrip().startswith("```")
            if line.startswith("1. ") and not in_code:
                number += 1
                lines[at] = f"{number}. {line[3:]}"
            elif line.strip() and not line.startswith((" ", "\t", "```")) and not in_code:
                number = 0
        return "\n".join(lines)

    return map_texts(row, change, "numbers of lists")


def keep_first_round(row: Conversation) -> Outcome | None:
    """Keep the first question with what answers it."""
    asked = [number for number, turn in enumerate(row.turns) if turn.role == "user"]
    if len(asked) < 2:
        return None
    left = count(len(row.turns) - asked[1], "turn")
    return with_turns(row, row.turns[: asked[1]], f"{left} after the first round left out")


def normalise_whitespace(row: Conversation) -> Outcome | None:
    """Unicode NFC, one kind of space and line end, nothing invisible or trailing."""

    def change(_: Turn, text: str) -> str:
        text = _LINE_END.sub("\n", text)
        if not text.isascii():
            text = unicodedata.normalize("NFC", text)
            text = _INVISIBLE.sub("", _SPACES.sub(" ", text))
        return _TRAILING.sub("", text).strip("\n").rstrip()

    return map_texts(row, change, "spacing or spelling of characters")


def break_control_text(strings: Iterable[str]) -> RowStep:
    """Put a space into control strings inside contents, so that no tokenizer knows them."""
    longest_first = sorted(strings, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)))

    def step(row: Conversation) -> Outcome | None:
        found: Counter[str] = Counter()

        def broken(match: re.Match[str]) -> str:
            found[match.group()] += 1
            return f"{match.group()[0]} {match.group()[1:]}"

        outcome = map_texts(row, lambda _, text: pattern.sub(broken, text), "")
        return outcome and outcome._replace(detail=_counts(found, " x "))

    return step


def redact_personal_data(kinds: Collection[str] | None) -> RowStep:
    """Put typed placeholders in place of personal data."""

    def step(row: Conversation) -> Outcome | None:
        new, hits = redact_conversation(row, kinds)
        return Outcome(new, _counts(Counter(hit.kind for hit in hits), " ")) if hits else None

    return step


def _counts(found: Counter[str], times: str) -> str:
    return ", ".join(f"{number}{times}{what}" for what, number in found.items())


def put_system(prompt: SystemPrompt | None) -> RowStep:
    """Put a system prompt before rows. Raises UsageError where there is none."""
    if prompt is None:
        raise UsageError("the step 'system' needs a text", hint="give --system TEXT or @FILE")

    def step(row: Conversation) -> Outcome | None:
        new = prompt.on(row) if row.turns else row
        return None if new.turns == row.turns else Outcome(new, f"system prompt ({prompt.mode})")

    return step


def drop_linted(lints: Sequence[Lint]) -> RowStep:
    """Drop rows in which one of some lints finds something."""

    def step(row: Conversation) -> Outcome | None:
        for lint in lints:
            for number, turn in enumerate(row.turns, 1):
                if (found := lint.find(turn)) is not None:
                    where = f"in turn {number} ({turn.role})"
                    return Outcome(None, f"{lint.code}: {excerpt(found)} {where}")
        return None

    return step


def trim_leading(row: Conversation) -> Outcome | None:
    """Leave out what comes before the first user turn, the system turn aside."""
    system, rest = _parted(row)
    first = next((n for n, turn in enumerate(rest) if turn.role == "user"), len(rest))
    if not first:
        return None
    if first == len(rest):
        return Outcome(None, "nobody asks anything")
    left = f"{count(first, 'turn')} before the first question left out"
    return with_turns(row, (*system, *rest[first:]), left)


def trim_trailing(row: Conversation) -> Outcome | None:
    """Leave out what comes after the last assistant turn."""
    last = max((n for n, turn in enumerate(row.turns) if turn.role == "assistant"), default=-1)
    left = len(row.turns) - 1 - last
    if not left:
        return None
    if last < 0:
        return Outcome(None, "nobody answers")
    said = f"{count(left, 'turn')} after the last answer left out"
    return with_turns(row, row.turns[: last + 1], said)


def merge_turns(row: Conversation) -> Outcome | None:
    """Join neighbouring turns of one role, with a blank line between."""
    merged: list[Turn] = []
    for turn in row.turns:
        before = merged[-1] if merged else None
        calls = turn.role == "tool" or turn.tool_calls or (before and before.tool_calls)
        if before is None or before.role != turn.role or calls:
            merged.append(turn)
        else:
            text = "\n\n".join(part for part in (before.content, turn.content) if part.strip())
            thoughts = [t for t in (before.reasoning, turn.reasoning) if t is not None]
            reasoning = "\n\n".join(thoughts) if thoughts else None
            merged[-1] = replace(before, content=text, input=None, reasoning=reasoning)
    joined = len(row.turns) - len(merged)
    said = f"{count(joined, 'turn')} joined with the one before"
    return with_turns(row, merged, said) if joined else None


def drop_irregular(row: Conversation) -> Outcome | None:
    """Drop a row in which user and assistant do not take turns, tool calls aside."""
    _, rest = _parted(row)
    spoken = [turn.role for turn in rest if turn.role in ("user", "assistant")]
    if not any(turn.role == "tool" or turn.tool_calls for turn in rest):
        for number, (one, two) in enumerate(pairwise(spoken), 2):
            if one == two:
                return Outcome(None, f"turn {number} is {two!r} again")
    if any(turn.role == "system" for turn in rest):
        return Outcome(None, "a system turn stands inside the conversation")
    return None


def drop_empty_answers(row: Conversation) -> Outcome | None:
    """Drop a row with an assistant turn, or a user turn, that says nothing."""
    for number, turn in enumerate(row.turns, 1):
        if turn.role in ("assistant", "user") and not turn.content.strip() and not turn.tool_calls:
            return Outcome(None, f"turn {number} ({turn.role}) is empty")
    if not any(turn.role == "assistant" for turn in row.turns):
        return Outcome(None, "nobody answers")
    return None


def drop_short(least_chars: int) -> RowStep:
    """Drop conversations of fewer characters, the system turn aside."""

    def step(row: Conversation) -> Outcome | None:
        size = sum(len(turn.content.strip()) for turn in row.turns if turn.role != "system")
        if size >= least_chars or any(turn.tool_calls for turn in row.turns):
            return None
        return Outcome(None, f"{size} characters, fewer than {least_chars}")

    return step


def _parted(row: Conversation) -> tuple[tuple[Turn, ...], tuple[Turn, ...]]:
    leads = bool(row.turns) and row.turns[0].role == "system"
    return row.turns[: int(leads)], row.turns[int(leads) :]


def keep_scripts(scripts: Collection[str], least: float) -> RowStep:
    """Drop rows of whose letters less than a share belongs to some scripts."""
    wanted = {name for option in scripts for name in _GROUPS.get(option, (option.capitalize(),))}

    def step(row: Conversation) -> Outcome | None:
        found = letters_by_script(turn.content for turn in row.turns)
        letters = sum(found.values())
        share = sum(found[name] for name in wanted) / letters if letters else 1.0
        if share >= least:
            return None
        most = found.most_common(1)[0][0]
        most = "another script" if most == OTHER else most.lower()
        return Outcome(None, f"{100 * share:.0f} % {'/'.join(sorted(scripts))}, mostly {most}")

    return step
