"""Which label stands beside a number: "Tel.", "SSN", "Patienten-Nr.", "order no.", "fecha de nac.".

A label is a word, or two or three, of labels.toml, in any of the languages that are covered. The
nearest one before the value counts; small words ("is", "no.", "der") do not separate the two.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

# Letters of lower-cased text; ranges, because the classes of `re` are several times slower.
_WORD = re.compile("[a-z\u00df-\u00f6\u00f8-\u1fff\u3041-\ud7ff]+")
_SCRIPTS = "\u2e80"  # from here on words are written without spaces between them
_NUMBER = ("number", "no", "nr", "num", "nbr", "id", "identifier")
_ENDING = re.compile(r"(?<=.)(?:nummer|number|nr)\Z")
_INITIALS = re.compile(r"\b(?:[^\W\d_]\.){2,}")


class Label(NamedTuple):
    """A group of labels and how many unrelated words stand between it and the value."""

    group: str
    distance: int


class _Vocabulary(NamedTuple):
    groups: dict[str, str]
    last: frozenset[str]  # the words that end a label of several words
    scripts: dict[str, str]
    links: frozenset[str]


def split(words: str) -> list[str]:
    """The entries of a list that is written with commas."""
    return [" ".join(word.split()) for word in words.split(",")]


@cache
def data_file(name: str) -> dict[str, Any]:
    """The tables of a data file beside this one, such as "labels"."""
    text = Path(__file__).with_name(f"{name}.toml").read_text(encoding="utf-8")
    table: dict[str, Any] = tomllib.loads(text)
    return table


@cache
def _vocabulary() -> _Vocabulary:
    groups: dict[str, str] = {}
    scripts: dict[str, str] = {}
    for group, phrases in data_file("labels")["labels"].items():
        for phrase in split(phrases):
            (scripts if phrase >= _SCRIPTS else groups)[phrase] = group
            begin, _, ending = phrase.rpartition(" ")
            for other in _NUMBER if begin and ending in _NUMBER else ():
                groups.setdefault(f"{begin} {other}", group)
    last = frozenset(phrase.rpartition(" ")[2] for phrase in groups if " " in phrase)
    return _Vocabulary(
        groups, last, scripts, frozenset(split(data_file("labels")["links"]["words"]))
    )


def words_of(low: str) -> list[str]:
    """The words of a text in lower case; "s.i.n." is one word."""
    if "." in low:
        low = _INITIALS.sub(lambda letters: letters[0].replace(".", "") + " ", low)
    return _WORD.findall(low)


def _group(words: Sequence[str], at: int) -> str:
    """The group of the label whose last word is `words[at]` (nearest first), or ""."""
    known, word = _vocabulary(), words[at]
    if word in known.last:
        for length in (3, 2):
            phrase = " ".join(reversed(words[at : at + length]))
            if phrase in known.groups:
                return known.groups[phrase]
    if word in known.groups:
        return known.groups[word]
    # burgerservicenr, kontonummer
    stem = _ENDING.sub("", word) if word[-1] == "r" else ""
    return known.groups.get(stem, "")


def groups_of(words: Sequence[str], text: str = "") -> frozenset[str]:
    """The groups of all labels among words in reading order, or without spaces in `text`."""
    found = {_group(words[::-1], at) for at in range(len(words))}
    if not text.isascii():
        found |= {group for word, group in _vocabulary().scripts.items() if word in text}
    return frozenset(found) - {""}


def nearest(words: Sequence[str], lead: str) -> Label:
    """The nearest label among words in reverse order, or at the end of `lead` without spaces."""
    found, distance, known = Label("", 99), 0, _vocabulary()
    for at, word in enumerate(words):
        if group := _group(words, at):
            found = Label(group, distance)
            break
        distance += word not in known.links and len(word) > 1
    if not lead.isascii():
        places = {lead.rfind(word) + len(word): group for word, group in known.scripts.items()
                  if word in lead}  # fmt: skip
        far = 0 if places and len(lead) - max(places) <= 8 else 2
        if places and far <= found.distance:
            return Label(places[max(places)], far)
    return found
