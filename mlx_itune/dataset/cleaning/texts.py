"""Steps on what turns say: markup, noise, spacing, control strings, personal data."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import replace

from mlx_itune.dataset.cleaning.html_text import is_html, to_markdown
from mlx_itune.dataset.cleaning.outcome import Changed, Dropped, Outcome, RowStep, map_texts
from mlx_itune.dataset.cleaning.pii import redact_conversation
from mlx_itune.dataset.conversation import Conversation, Turn

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


def html_to_text(row: Conversation) -> Outcome:
    """Turn answers (and questions) that are HTML into Markdown."""
    return map_texts(row, lambda _, text: to_markdown(text) if is_html(text) else text, "HTML")


def remove_copy_code(row: Conversation) -> Outcome:
    """Remove 'Copy code' buttons, 'Copy 12 chars' and 'n / m' page counts from answers."""

    def change(turn: Turn, text: str) -> str:
        if turn.role != "assistant":
            return text
        text = _PAGE_COUNT.sub("", text)
        if "Copy" not in text:
            return text
        return _BARE_BUTTON.sub("", _FENCE_BUTTON.sub(lambda found: f"```{found[1]}\n", text))

    return map_texts(row, change, "page noise")


def normalise_whitespace(row: Conversation) -> Outcome:
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
    pattern = _any_of(strings)

    def step(row: Conversation) -> Outcome:
        found: Counter[str] = Counter()

        def broken(match: re.Match[str]) -> str:
            found[match.group()] += 1
            return f"{match.group()[0]} {match.group()[1:]}"

        outcome = map_texts(row, lambda _, text: pattern.sub(broken, text), "")
        listed = ", ".join(f"{number} x {text}" for text, number in found.items())
        return outcome and replace(outcome, detail=listed)

    return step


def drop_control_text(strings: Iterable[str]) -> RowStep:
    """Drop rows with a control string inside a content."""
    pattern = _any_of(strings)

    def step(row: Conversation) -> Outcome:
        for number, turn in enumerate(row.turns, 1):
            if found := pattern.search(turn.content):
                return Dropped(f"{found.group()} in turn {number} ({turn.role})")
        return None

    return step


def redact_personal_data(kinds: Collection[str] | None) -> RowStep:
    """Put typed placeholders in place of personal data."""

    def step(row: Conversation) -> Outcome:
        new, hits = redact_conversation(row, kinds)
        counts = Counter(hit.kind for hit in hits)
        listed = ", ".join(f"{number} {kind}" for kind, number in counts.items())
        return Changed(new, listed) if hits else None

    return step


def _any_of(strings: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(strings, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)))
