"""A text as the detectors read it: plain spelling, stretches that hold digits, labels beside them.
The plain spelling keeps positions. A label is a word, or two or three, of labels.toml; the nearest
one before the value counts, small words ("is", "no.", "der") between them aside."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from typing import NamedTuple

from mlx_itune.kit.json_files import data_file
from mlx_itune.kit.patterns import pattern_table

# Letters of lower-cased text; ranges, because the classes of `re` are several times slower.
_WORD = re.compile("[a-z\u00df-\u00f6\u00f8-\u1fff\u3041-\ud7ff]+")
_SCRIPTS = "\u2e80"  # from here on words are written without spaces between them
_NUMBER = ("number", "no", "nr", "num", "nbr", "id", "identifier")
_ENDING = re.compile(r"(?<=.)(?:nummer|number|nr)\Z")
_INITIALS = re.compile(r"\b(?:[^\W\d_]\.){2,}")


def split(words: str) -> list[str]:
    """The entries of a list that is written with commas."""
    return [" ".join(word.split()) for word in words.split(",")]


def _listed(words: str) -> str:
    """Any of the words of a list of labels.toml, by its table and name, as a pattern."""
    table, _, name = words.partition(".")
    return "|".join(map(re.escape, split(_LABELS[table][name])))


_LABELS = data_file(__file__, "labels")
PATTERNS = {
    file: pattern_table(texts, _listed) for file, texts in data_file(__file__, "patterns").items()
}
# The group of each label; of those without spaces apart; small words that part nothing.
_GROUPS: dict[str, str] = {}
_UNSPACED: dict[str, str] = {}
_LINKS = frozenset(split(_LABELS["links"]["words"]))
for _name, _phrases in _LABELS["labels"].items():
    for _phrase in split(_phrases):
        (_UNSPACED if _phrase >= _SCRIPTS else _GROUPS)[_phrase] = _name
        _begin, _, _end = _phrase.rpartition(" ")
        for _other in _NUMBER if _begin and _end in _NUMBER else ():
            _GROUPS.setdefault(f"{_begin} {_other}", _name)
# The words that end a label of several words.
_LAST = frozenset(phrase.rpartition(" ")[2] for phrase in _GROUPS if " " in phrase)


def _words_of(low: str) -> list[str]:
    """The words of a text in lower case; "s.i.n." is one word."""
    if "." in low:
        low = _INITIALS.sub(lambda letters: letters[0].replace(".", "") + " ", low)
    return _WORD.findall(low)


def _group(words: Sequence[str], at: int) -> str:
    """The group of the label whose last word is `words[at]` (nearest first), or ""."""
    word = words[at]
    for length in (3, 2) if word in _LAST else ():
        if group := _GROUPS.get(" ".join(reversed(words[at : at + length]))):
            return group
    # burgerservicenr, kontonummer
    stem = _ENDING.sub("", word) if word[-1] == "r" else ""
    return _GROUPS.get(word) or _GROUPS.get(stem, "")


def _nearest(words: Sequence[str], lead: str) -> tuple[str, int]:
    """The nearest label among words in reverse order, or at the end of `lead` without spaces: its
    group, and how many unrelated words stand between it and the value."""
    found, distance = ("", 99), 0
    for at, word in enumerate(words):
        if group := _group(words, at):
            found = group, distance
            break
        distance += word not in _LINKS and len(word) > 1
    if not lead.isascii():
        places = {lead.rfind(word) + len(word): group for word, group in _UNSPACED.items()
                  if word in lead}  # fmt: skip
        far = 0 if places and len(lead) - max(places) <= 8 else 2
        if places and far <= found[1]:
            return places[max(places)], far
    return found


_TOKEN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_/.+:@%()=")
_LEFT, _LONGEST = 64, 300
_BEFORE, _BEHIND = 72, 36
_RE = PATTERNS["page"]
_DELIMITERS = "|\t;,"
_MOST_LINES, _LONGEST_HEADS, _LONGEST_LINE = 5000, 400, 4000


class Chunk(NamedTuple):
    """`text[start:end]`: numbers that stand together, with letters joined to them."""

    start: int
    end: int
    first: int  # where the first digit is
    digits: int
    lettered: bool


class Around(NamedTuple):
    """What the words around a place say. The nearest label before it, how many unrelated words are
    between, and the labels behind."""

    label: str
    between: int
    words: frozenset[str]
    behind: set[str]

    def distance(self, group: str) -> int:
        """How far the label of a group is: before the value, or else right behind it."""
        if self.label == group:
            return self.between
        return 1 if self.between > 1 and group in self.behind else 99

    @property
    def is_harmless(self) -> bool:
        """Whether a label of something harmless (an order, a version, an ISBN) owns the value."""
        return self.label == "other" and self.between <= 2


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


def _heads(line: str, following: str, mark: str) -> tuple[list[str], str] | None:
    """The heads in a line, if it reads like the first one of a table."""
    count = line.count(mark)
    if not count or following.count(mark) < count:
        return None
    if not (_RE["rule"].fullmatch(following) or re.search(r"\d", following)):
        return None
    cells = [cell.strip(" \"'*`_").replace("_", " ") for cell in line.split(mark)]
    filled = [cell for cell in cells if cell]
    if len(filled) < 2 or any(len(cell) > 32 or len(cell.split()) > 5 for cell in filled):
        return None
    return None if any(map(_RE["no_head"].search, filled)) else (cells, mark)


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
        self._around: dict[tuple[int, int], Around] = {}

    @cached_property
    def _rows(self) -> dict[int, tuple[list[str], str]]:
        """Column heads and delimiter, by where the row's line starts."""
        rows: dict[int, tuple[list[str], str]] = {}
        if "\n" not in self.low or not any(self.low.count(mark) > 1 for mark in _DELIMITERS):
            return rows
        lines = self.low.split("\n", _MOST_LINES)[:_MOST_LINES]
        table: tuple[list[str], str] | None = None
        start = 0
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            if table and line.count(table[1]) >= len(table[0]) - 1:
                if len(line) <= _LONGEST_LINE:
                    rows[start] = table
            else:
                found = (_heads(line, following, mark) for mark in _DELIMITERS)
                table = next(filter(None, found), None) if len(line) <= _LONGEST_HEADS else None
            start += len(line) + 1
        return rows

    @property
    def heads(self) -> set[str]:
        """Every column head."""
        return {head for heads, _ in self._rows.values() for head in heads}

    def cell(self, place: int) -> tuple[int, str]:
        """Where the cell begins that a place is in, and its column's head; (0, "") elsewhere."""
        if not self._rows:
            return 0, ""
        start = self.low.rfind("\n", 0, place) + 1
        if start not in self._rows:
            return 0, ""
        heads, mark = self._rows[start]
        lead = self.low[start:place]
        if '"' in lead:
            lead = _RE["quoted"].sub(lambda quoted: "_" * len(quoted[0]), lead)
            opened = lead.find('"')
            lead = lead if opened < 0 else lead[: opened + 1]
        # The last value may hold the delimiter itself: "June 3, 1970".
        return start + lead.rfind(mark) + 1, heads[min(lead.count(mark), len(heads) - 1)]

    def chunks(self) -> Iterator[Chunk]:
        """The stretches that hold digits, in order."""
        text, at = self.text, 0
        while digit := _RE["digit"].search(text, at):
            first = start = digit.start()
            floor = max(at, first - _LEFT)
            while start > floor and text[start - 1] in _TOKEN:
                start -= 1
            if text[start - 2 : start - 1].isupper() and (
                capitals := _RE["capitals"].search(text, max(at, start - 14), start)
            ):
                start = capitals.start()
            rest = _RE["rest"].match(text, first, first + _LONGEST)
            at = end = rest.end() if rest else first + 1
            part = text[start:end]
            digits = len(_RE["no_digits"].sub("", part))
            yield Chunk(start, end, first, digits, _RE["letter"].search(part) is not None)

    def around(self, start: int, end: int) -> Around:
        """The labels beside a value."""
        if (start, end) not in self._around:
            before = self._words_before(start)
            after = _words_of(self.low[end : end + _BEHIND].partition("\n")[0])[:5]
            soon = after[2::-1]
            self._around[start, end] = Around(
                *_nearest(before, self.low[max(0, start - 24) : start]),
                frozenset((*before, *after)),
                {_group(soon, at) for at in range(len(soon))},
            )
        return self._around[start, end]

    def _words_before(self, start: int) -> list[str]:
        """The words before `start`, nearest first; in a table those of the cell and its head."""
        cell, head = self.cell(start)
        floor = max(cell, start - _BEFORE)
        lead = _RE["break"].split(self.text[floor:start])[-1].lower()
        if floor and self.low[floor - 1].isalpha() and len(lead) == start - floor:
            lead = lead.partition(" ")[2]
        return _words_of(f"{head} {_RE['placeholder'].sub(' ', lead)}")[::-1]
