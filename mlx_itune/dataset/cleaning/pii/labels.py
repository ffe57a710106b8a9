"""Which label stands beside a number: "Tel.", "SSN", "Patienten-Nr.", "order no.", "fecha de nac.".

A label is a word (or two, or three) of a fixed list, in any of the languages that are covered.
The nearest label before the value counts; small words ("is", "no.", "der") do not separate them.
Column heads of a table and keys of JSON are labels like any other.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Protocol

from mlx_itune.dataset.cleaning.pii.label_words import LABELS, LINKS, SCRIPT_LABELS

# Letters of lower-cased text; ranges, because the classes of `re` are several times slower.
_WORD = re.compile("[a-z\u00df-\u00f6\u00f8-\u1fff\u3041-\ud7ff]+")
# What redaction wrote is no label for what follows it.
_PLACEHOLDER = re.compile(r"\[[a-z_]+(?:_[0-9]+)?\]")
_REACH = 72


class Plain(Protocol):
    """A text and its lower case."""

    text: str
    low: str


class Label(NamedTuple):
    """A category of labels and how many unrelated words stand between it and the value."""

    category: str
    distance: int


def _index() -> dict[str, str]:
    index: dict[str, str] = {}
    for category, phrases in LABELS.items():
        for phrase in phrases.split(","):
            words = phrase.split()
            index[" ".join(words)] = category
            # "record number" is also written "record no.", "record nr", "record id".
            if len(words) > 1 and words[-1] in ("number", "id", "no"):
                for ending in ("number", "no", "nr", "num", "nbr", "id", "identifier"):
                    index.setdefault(" ".join([*words[:-1], ending]), category)
    return index


_CATEGORY = _index()
# Words that end a label; all others are passed over quickly.
_ENDS = frozenset(phrase.rsplit(" ", 1)[-1] for phrase in _CATEGORY)
_NUMBER_ENDINGS = ("nummer", "number", "nr")
# A label of several words is looked up only where its last word stands.
_LAST_WORDS = frozenset(phrase.rsplit(" ", 1)[-1] for phrase in _CATEGORY if " " in phrase)
_NO_LABEL = Label("", 99)


def words_before(page: Plain, start: int, cell: int = 0, head: str = "") -> list[str]:
    """The words before `start` in lower case, nearest first.

    In a table only the cell, which begins at `cell`, and then its column's `head` count.
    """
    low = page.low
    floor = max(cell, start - _REACH)
    line = low.rfind("\n", floor, start)
    while line >= 0:
        # A label reaches into the next line only if that line goes on or holds nothing else.
        rest = page.text[line + 1 : start].lstrip(" \t>-*\"'(+")
        if low[line - 1 : line] in ("\n", ".") or (rest and not rest[0].islower()):
            floor = line + 1
            break
        line = low.rfind("\n", floor, line)
    text = low[floor:start]
    if floor and low[floor - 1].isalpha() and text[:1].isalpha():
        text = text[text.find(" ") + 1 :]
    if "[" in text:
        text = _PLACEHOLDER.sub(" ", text)
    words = _WORD.findall(f"{head} {text}" if head else text)
    if "." in text:
        words = _with_initials(words)
    words.reverse()
    return words


def _with_initials(words: list[str]) -> list[str]:
    """ "S.I.N." read as the word it is, behind its letters."""
    joined: list[str] = []
    letters = ""
    for word in [*words, ""]:
        if len(word) == 1:
            letters += word
        else:
            if len(letters) > 1:
                joined.append(letters)
            letters = ""
        if word:
            joined.append(word)
    return joined


find_words = _WORD.findall


def words_after(low: str, end: int) -> list[str]:
    """The first words after `end` on its line."""
    text = low[end : end + 36]
    line = text.find("\n")
    return _WORD.findall(text if line < 0 else text[:line])[:5]


def phrase_category(words: list[str], at: int) -> str | None:
    """The category of the label whose last word is `words[at]` (nearest first)."""
    word = words[at]
    if word in _LAST_WORDS:
        two = f"{words[at + 1]} {word}" if at + 1 < len(words) else ""
        if at + 2 < len(words):
            three = _CATEGORY.get(f"{words[at + 2]} {two}")
            if three is not None:
                return three
        found = _CATEGORY.get(two)
        if found is not None:
            return found
    return _CATEGORY.get(word) or _CATEGORY.get(stem(word))


def stem(word: str) -> str:
    """The word without an ending that means "number": burgerservicenr, kontonummer."""
    for ending in _NUMBER_ENDINGS:
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word[: -len(ending)]
    return ""


def nearest(words: list[str]) -> Label:
    """The nearest label among words in reverse order."""
    distance = 0
    for at, word in enumerate(words):
        if word in _ENDS or word.endswith(_NUMBER_ENDINGS):
            category = phrase_category(words, at)
            if category is not None:
                return Label(category, distance)
        distance += word not in LINKS and len(word) > 1
    return _NO_LABEL


def script_label(low: str, start: int) -> Label:
    """The nearest label in a script without spaces between words."""
    text = low[max(0, start - 24) : start]
    if text.isascii():
        return _NO_LABEL
    best, category = -1, ""
    for word, its_category in SCRIPT_LABELS.items():
        at = text.rfind(word)
        if at >= 0 and at + len(word) > best:
            best, category = at + len(word), its_category
    return Label(category, 0 if len(text) - best <= 8 else 2) if best >= 0 else _NO_LABEL
