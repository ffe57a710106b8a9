"""A text as the detectors read it: plain spelling, stretches that hold digits, labels beside them.

The plain spelling has one character for each of the text's, so that positions agree.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from mlx_itune.dataset.cleaning.pii.labels import Label, groups_of, nearest, words_of
from mlx_itune.dataset.cleaning.pii.tables import Columns

_DIGIT = re.compile("[0-9]")
_TOKEN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_/.+:@%()=")
_REST = re.compile(
    r"[\w/.+:@%()=\-]*(?: {1,3}(?:[\-/.(+]{1,2} ?)?"
    r"(?=[A-Z]{0,4}[0-9]|[A-Z]{1,4}(?![A-Za-z]))[\w/.+:@%()=\-]+)*",
    re.ASCII,
)
_CAPITALS = re.compile(r"(?<![\w\-])(?:[A-ZÄÖÜ]{1,6}[ \-]){1,2}\Z")
_LETTER = re.compile("[A-Za-z]")
_NO_DIGITS = re.compile("[^0-9]+")
_LEFT, _LONGEST = 64, 300
_BEFORE, _BEHIND = 72, 36
# A label reaches into the next line only if that line goes on, holds nothing else, or is a reply.
_BREAK = re.compile(
    r"[\n.]\n|(?<!\?)\n(?=[ \t>*\"'(+\-]*[^\s>*\"'(+\-])(?![ \t>*\"'(+\-]*[a-zß-öø-ÿа-я])"
)
# What redaction wrote is no label for what follows it.
_PLACEHOLDER = re.compile(r"\[[a-z_]+(?:_[0-9]+)?\]")


class Chunk(NamedTuple):
    """`text[start:end]`: numbers that stand together, with letters joined to them."""

    start: int
    end: int
    first: int  # where the first digit is
    digits: int
    lettered: bool


class Near(NamedTuple):
    """The words of a chunk's surroundings, on both sides and inside, and the labels they make."""

    words: frozenset[str]
    groups: frozenset[str]


class Around(NamedTuple):
    """What the words around a place say: the nearest label before, the words, labels behind."""

    label: Label
    words: frozenset[str]
    behind: frozenset[str]

    def distance(self, group: str) -> int:
        """How far the label of a group is: before the value, or else right behind it."""
        if self.label.group == group:
            return self.label.distance
        return 1 if self.label.distance > 1 and group in self.behind else 99

    @property
    def is_harmless(self) -> bool:
        """Whether a label of something harmless (an order, a version, an ISBN) owns the value."""
        return self.label.group == "other" and self.label.distance <= 2


@cache
def _plain_characters() -> dict[int, str]:
    plain = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    for code in range(0x80, 0x10000):
        digit = unicodedata.decimal(chr(code), None)
        category = unicodedata.category(chr(code))
        if digit is not None:
            plain[code] = str(digit)
        elif category in ("Zs", "Pd"):
            plain[code] = " " if category == "Zs" else "-"
    # Quotes; minus, soft hyphen; and the one letter whose lower case is longer than itself.
    return plain | dict(zip(map(ord, "‘’“”\u2212\u00ad\u0130"), "''\"\"--I", strict=True))


class Page:
    """A text in plain spelling, and what is worked out about it only once."""

    def __init__(self, text: str) -> None:
        if not text.isascii():
            text = text.translate(_plain_characters())
        if "\\" in text:
            # Text inside JSON or source code: "Tel.\\n030 ..." is a line break, not a letter n.
            for escape in ("\\n", "\\t", "\\r"):
                text = text.replace(escape, "  ")
        self.text = text
        self.low = text.lower()
        self.columns = Columns(self.low)
        self._around: dict[tuple[int, int], Around] = {}

    def chunks(self) -> Iterator[Chunk]:
        """The stretches that hold digits, in order."""
        text, at = self.text, 0
        while digit := _DIGIT.search(text, at):
            first = start = digit.start()
            floor = max(at, first - _LEFT)
            while start > floor and text[start - 1] in _TOKEN:
                start -= 1
            if text[start - 2 : start - 1].isupper() and (
                capitals := _CAPITALS.search(text, max(at, start - 14), start)
            ):
                start = capitals.start()
            rest = _REST.match(text, first, first + _LONGEST)
            at = end = rest.end() if rest else first + 1
            part = text[start:end]
            digits = len(_NO_DIGITS.sub("", part))
            yield Chunk(start, end, first, digits, _LETTER.search(part) is not None)

    def near(self, chunk: Chunk) -> Near:
        """What might label any part of a chunk: a cheap look before forms are tried."""
        _, head = self.columns.cell(chunk.first)
        lead = self.low[max(0, chunk.first - _BEFORE) : chunk.end + _BEHIND]
        words = words_of(f"{head} {lead}")
        return Near(frozenset(words), groups_of(words, lead))

    def around(self, start: int, end: int) -> Around:
        """The labels beside a value."""
        if (start, end) not in self._around:
            before = self._words_before(start)
            after = words_of(self.low[end : end + _BEHIND].partition("\n")[0])[:5]
            label = nearest(before, self.low[max(0, start - 24) : start])
            words = frozenset((*before, *after))
            self._around[start, end] = Around(label, words, groups_of(after[:3]))
        return self._around[start, end]

    def _words_before(self, start: int) -> list[str]:
        """The words before `start`, nearest first; in a table those of the cell and its head."""
        cell, head = self.columns.cell(start)
        floor = max(cell, start - _BEFORE)
        lead = _BREAK.split(self.text[floor:start])[-1].lower()
        if floor and self.low[floor - 1].isalpha() and len(lead) == start - floor:
            lead = lead.partition(" ")[2]
        return words_of(f"{head} {_PLACEHOLDER.sub(' ', lead)}")[::-1]
