"""System prompts that mean to be the same and are not spelled the same.

Two differ in spelling when their words are the same but for case, punctuation and spacing, or when
a small part differs and that part is a typing slip: a word close to the other one, or a little word
more or less. Another number, another name or a "not" is another prompt.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import combinations

from mlx_itune.dataset.checking.lints import excerpt
from mlx_itune.dataset.checking.near_duplicates import families
from mlx_itune.dataset.faults import Fault, fault_at
from mlx_itune.kit.wording import count

# Beyond this many distinct system prompts they are data rather than settings.
MAX_PROMPTS = 5000
_MAX_BLOCK = 200
_CLOSE = 0.7
_LITTLE = frozenset(
    "a an the to of in on at for with and or is are be that this any all as by from you your very"
    " please always also just both".split()
)
_WORD = re.compile(r"\w+")


@dataclass
class Spelling:
    """One text of a system prompt: the row where it stands first, and how many rows have it."""

    text: str
    origin: str
    rows: int = 0

    @functools.cached_property
    def words(self) -> tuple[str, ...]:
        """Its words in lower case."""
        return tuple(_WORD.findall(self.text.lower()))


class SystemPrompts:
    """Count the system prompts of a data set, then ask which are spellings of one another."""

    def __init__(self) -> None:
        self._known: dict[str, Spelling] = {}
        self.too_many = False

    def add(self, text: str, origin: str) -> None:
        """The system prompt of one more row."""
        if text not in self._known:
            if len(self._known) >= MAX_PROMPTS:
                self.too_many = True
                return
            self._known[text] = Spelling(text, origin)
        self._known[text].rows += 1

    def clusters(self) -> list[list[Spelling]]:
        """Groups of spellings of one prompt, the most frequent first in each."""
        spellings = sorted(self._known.values(), key=lambda s: -s.rows)
        pairs = {pair for block in _blocks(spellings) for pair in combinations(block, 2)}
        same = (pair for pair in sorted(pairs) if is_respelled(*(spellings[n] for n in pair)))
        return [[spellings[n] for n in group] for group in families(same)]

    def faults(self) -> Iterator[Fault]:
        """A warning for each spelling but the most frequent one of its prompt."""
        for usual, *others in self.clusters():
            for other in others:
                shown, instead = _around(usual.text, other.text)
                spell = "spells" if other.rows == 1 else "spell"
                yield fault_at(
                    other.origin,
                    "system-drift",
                    f"{count(other.rows, 'row')} {spell} the system prompt {excerpt(instead)}, "
                    f"{count(usual.rows, 'row')} (first {usual.origin}) {excerpt(shown)}",
                    "write it one way (data clean --unify-system)",
                    "warning",
                )

    def usual(self) -> dict[str, str]:
        """Each unusual spelling -> the most frequent one."""
        return {other.text: group[0].text for group in self.clusters() for other in group[1:]}


def is_respelled(first: Spelling, second: Spelling) -> bool:
    """Whether two system prompts differ in spelling only: in a few words, each of them a slip."""
    a, b = first.words, second.words
    most = 2 + max(len(a), len(b)) // 10
    if not a or not b or abs(len(a) - len(b)) > most:
        return a == b
    steps = SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    changes = [(a[a0:a1], b[b0:b1]) for what, a0, a1, b0, b1 in steps if what != "equal"]
    changed = sum(max(len(left), len(right)) for left, right in changes)
    return changed <= most and all(_is_slip(left, right) for left, right in changes)


def _is_slip(left: tuple[str, ...], right: tuple[str, ...]) -> bool:
    if any(char.isdigit() for word in (*left, *right) for char in word):
        return False
    if len(left) != len(right):
        return "".join(left) == "".join(right) or _LITTLE.issuperset((*left, *right))
    return all(
        _LITTLE.issuperset(pair) or _are_close(*pair) for pair in zip(left, right, strict=True)
    )


def _are_close(a: str, b: str) -> bool:
    ratio = SequenceMatcher(None, a, b, autojunk=False).ratio()
    return min(len(a), len(b)) >= 3 and ratio >= _CLOSE


def _blocks(spellings: list[Spelling]) -> list[list[int]]:
    """Prompts worth comparing: those that begin, end or are at their middle alike."""
    blocks: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for number, spelling in enumerate(spellings):
        words, middle = spelling.words, len(spelling.words) // 2
        keys = (
            ("first in order", *sorted(words)[:3]),
            ("start", *words[:2]),
            ("end", *words[-2:]),
            (len(words), *words[middle : middle + 2]),
        )
        for key in keys:
            if len(blocks[key]) < _MAX_BLOCK:
                blocks[key].append(number)
    return list(blocks.values())


def _around(usual: str, other: str) -> tuple[str, str]:
    """Both texts from a little before where they first differ."""
    at = next(
        (n for n, (a, b) in enumerate(zip(usual, other, strict=False)) if a != b),
        min(len(usual), len(other)),
    )
    start = max(0, at - 24)
    start = 0 if at < 40 else usual.find(" ", start, at) + 1 or start
    lead = "..." if start else ""
    return lead + usual[start:], lead + other[start:]
