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
from typing import NamedTuple

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

# Letters of lower-cased text; ranges, because the classes of `re` are several times slower.
_WORD = re.compile("[a-z\u00df-\u00f6\u00f8-\u1fff\u3041-\ud7ff]+")
_SCRIPTS = "\u2e80"  # from here on words are written without spaces between them
_NUMBER = ("number", "no", "nr", "num", "nbr", "id", "identifier")
_NUMBER_ENDINGS = ("nummer", "number", "nr")


class Label(NamedTuple):
    """A group of labels and how many unrelated words stand between it and the value."""

    group: str
    distance: int


NO_LABEL = Label("", 99)


class _Words(NamedTuple):
    groups: dict[str, str]
    last: frozenset[str]  # the words that end a label of several words
    scripts: dict[str, str]
    links: frozenset[str]


@cache
def _words() -> _Words:
    table = tomllib.loads(Path(__file__).with_name("labels.toml").read_text(encoding="utf-8"))
    groups: dict[str, str] = {}
    scripts: dict[str, str] = {}
    for group, phrases in table["labels"].items():
        for phrase in phrases.replace("\n", " ").split(","):
            words = phrase.split()
            if words[0] >= _SCRIPTS:
                scripts[words[0]] = group
                continue
            groups[" ".join(words)] = group
            if len(words) > 1 and words[-1] in _NUMBER:
                for ending in _NUMBER:
                    groups.setdefault(" ".join([*words[:-1], ending]), group)
    links = table["links"]["words"].replace("\n", " ").split(",")
    last = frozenset(phrase.rpartition(" ")[2] for phrase in groups if " " in phrase)
    return _Words(groups, last, scripts, frozenset(map(str.strip, links)))


def words_of(low: str) -> list[str]:
    """The words of a text in lower case; "s.i.n." counts as a word as well, behind its letters."""
    words = _WORD.findall(low)
    if "." not in low:
        return words
    joined, letters = [], ""
    for word in [*words, ""]:
        if len(word) == 1:
            letters += word
        else:
            joined += [letters] * (len(letters) > 1)
            letters = ""
        joined += [word] * bool(word)
    return joined


def _group(words: Sequence[str], at: int) -> str:
    """The group of the label whose last word is `words[at]` (nearest first), or ""."""
    known, word = _words(), words[at]
    if word in known.last:
        for length in (3, 2):
            phrase = " ".join(reversed(words[at : at + length]))
            if at + length <= len(words) and phrase in known.groups:
                return known.groups[phrase]
    if word in known.groups:
        return known.groups[word]
    # burgerservicenr, kontonummer
    stem = next((word[: -len(end)] for end in _NUMBER_ENDINGS if word.endswith(end)), "")
    return known.groups.get(stem, "")


def groups_of(words: Sequence[str], text: str = "") -> frozenset[str]:
    """The groups of all labels among words in reading order, or without spaces in `text`."""
    nearest_first = words[::-1]
    found = {_group(nearest_first, at) for at in range(len(words))}
    if not text.isascii():
        found |= {group for word, group in _words().scripts.items() if word in text}
    return frozenset(found) - {""}


def nearest(words: Sequence[str], lead: str) -> Label:
    """The nearest label among words in reverse order, or at the end of `lead` without spaces."""
    found, distance, known = NO_LABEL, 0, _words()
    for at, word in enumerate(words):
        if group := _group(words, at):
            found = Label(group, distance)
            break
        distance += word not in known.links and len(word) > 1
    if not lead.isascii():
        place, group = max((lead.rfind(word) + len(word), group) if word in lead else (-1, "")
                           for word, group in known.scripts.items())  # fmt: skip
        script = Label(group, 0 if len(lead) - place <= 8 else 2)
        if group and script.distance <= found.distance:
            return script
    return found
