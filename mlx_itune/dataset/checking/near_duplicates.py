"""Rows that say the same: exactly (a hash), or nearly (MinHash proposes pairs, the words decide).

Two rows are near duplicates when the Jaccard similarity of their words is 0.8 or more, that of
their pairs of neighbouring words, which see the order, 0.6 or more, and neither the prompts nor the
replies tell another story: rows that differ in numbers only, or one text under two labels, are no
duplicates. Among eight or more look-alikes the words that most of them share are taken for a
template that they fill in, and the rest has to be alike as well.
"""

from __future__ import annotations

import functools
import json
import pickle
import re
import tempfile
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import groupby, pairwise
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from mlx_itune.dataset.conversation import Conversation
from mlx_itune.kit.files import storage_errors

THRESHOLD = 0.8
# How much lower the similarity of pairs of words may be: an edited word is in two pairs.
_PAIRS_BELOW = 0.2
_PROMPTS, _REPLIES, _NUMBERS, _REST = 0.75, 0.5, 0.5, 0.5
# A reply of as many words tells its row from others. Slips are few, and close to what was meant.
_LONG_REPLY, _MOST_SLIPS, _CLOSE = 16, 12, 0.75
# Below this many words a row says too little to tell "nearly the same" from "another one".
_MIN_WORDS, _MANY_CHARS = 5, 64
# Look-alikes that make a family, how alike their words are at least, and how many are asked.
_FAMILY_ROWS, _FAMILY_BELOW, _FAMILY_SAMPLE = 8, 0.2, 32

# Rows that agree in one band of four minima are compared: 98.8 % of those with similarity 0.6.
_PERMUTATIONS, _BAND_WIDTH, _SEED = 128, 4, 1
# Minima of a band as one number: multiplied by odd ones, and added.
_MIX = np.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F], np.uint32)
# Of a band's look-alikes a row is paired with a few before it and with the first.
_PARTNERS = 4
# Pairs whose words are compared: those with most bands in common, this many, or one per 16 rows.
_MIN_BUDGET, _ROWS_PER_PAIR, _MOST_PAIRS = 1 << 17, 16, 1 << 22
_TEXTS_KEPT = 256

# In scripts that are written without spaces every character is a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\uabff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_HALF, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)
T = TypeVar("T")


@dataclass(frozen=True)
class Match:
    """A row that repeats an earlier one, both numbered from 0 in the order they were added.
    "spelling": the same but for case, spacing and system turns. `similarity`: Jaccard, of words."""

    later: int
    earlier: int
    kind: Literal["exact", "spelling", "near"]
    similarity: float


class Spool(Generic[T]):
    """Values in a temporary file: written once, read in order or by number, from 0. The file is our
    own and gone afterwards, so that pickle is safe here."""

    def __init__(self) -> None:
        with storage_errors(tempfile.gettempdir()):
            self._file = tempfile.TemporaryFile(prefix="mlx-itune-")  # noqa: SIM115
        self._starts = array("Q")
        self.close = self._file.close

    def append(self, value: T) -> int:
        """Write one value at the end; its number."""
        with storage_errors(tempfile.gettempdir()):
            self._starts.append(self._file.seek(0, 2))
            pickle.dump(value, self._file, protocol=pickle.HIGHEST_PROTOCOL)
        return len(self._starts) - 1

    def __getitem__(self, number: int) -> T:
        self._file.seek(self._starts[number])
        value: T = pickle.load(self._file)
        return value

    def __iter__(self) -> Iterator[T]:
        return map(self.__getitem__, range(len(self._starts)))


class Duplicates:
    """Add every row, which tells exact repeats, then ask for the near ones; 300 bytes a row."""

    def __init__(self, *, near: bool = True, threshold: float = THRESHOLD) -> None:
        # Whether there were more look-alikes than are worth comparing.
        self.cut_short = False
        self._near, self._threshold = near, threshold
        self._first: dict[int, int] = {}
        self._rows = 0
        # Of each row that may have near duplicates its number, its bands and its two sides.
        self._numbers = array("Q")
        self._bands = bytearray()
        self._sides = Spool[tuple[str, str]]()
        self.close = self._sides.close

    def add(self, row: Conversation) -> int | None:
        """Add a row; the number of the first one that says exactly the same, or None."""
        number, self._rows = self._rows, self._rows + 1
        prompts, replies = _sides(row)
        text = f"{prompts}\n{replies}"
        is_short = len(text) < _MANY_CHARS and len(_WORD.findall(text)) < _MIN_WORDS
        first = self._first.setdefault(_exact_key(row, spelled=not is_short), number)
        if first != number:
            return first
        if self._near and not is_short and (words := _WORD.findall(text.lower())):
            minima = RMinHash(_PERMUTATIONS, _SEED)
            minima.update([*map(" ".join, pairwise(words))] or words)
            bands = np.array(minima.digest(), np.uint32).reshape(-1, _BAND_WIDTH) * _MIX
            self._bands += bands.sum(axis=1, dtype=np.uint32).tobytes()
            self._numbers.append(number)
            self._sides.append((prompts, replies))
        return None

    def near(self) -> Iterator[list[Match]]:
        """Per row with near duplicates its matches: other spellings first, then the closest."""
        pairs = self._pairs() if self._bands else []
        group_of = {row: number for number, rows in enumerate(families(pairs)) for row in rows}
        text = functools.lru_cache(_TEXTS_KEPT)(self._text)
        found: dict[int, list[Match]] = defaultdict(list)
        # Group by group, so that texts are read once.
        pairs.sort(key=lambda pair: group_of[pair[0]])
        for _, group in groupby(pairs, key=lambda pair: group_of[pair[0]]):
            for later, earlier, kind, similarity in _alike(list(group), text, self._threshold):
                match = Match(self._numbers[later], self._numbers[earlier], kind, similarity)
                found[match.later].append(match)
        for row in sorted(found):
            yield sorted(found[row], key=lambda m: (m.kind != "spelling", -m.similarity, m.earlier))

    def _pairs(self) -> list[tuple[int, int]]:
        """(later, earlier) of kept rows that share bands, in order."""
        pairs: NDArray[Any] = np.zeros(0, np.uint64)
        shared: NDArray[Any] = np.zeros(0)
        for band in np.frombuffer(self._bands, np.uint32).reshape(len(self._numbers), -1).T:
            order = np.argsort(band, kind="stable").astype(np.uint64)
            within = _within(band[order])
            made = []
            for back in (*range(1, _PARTNERS + 1), 0):
                (later,) = np.nonzero(within >= back if back else within > _PARTNERS)
                earlier = later - (back or within[later])
                made.append(order[later] << _HALF | order[earlier])
            new = np.concatenate(made)
            counts = np.concatenate([shared, np.ones(len(new))])
            pairs, place = np.unique(np.concatenate([pairs, new]), return_inverse=True)
            shared = np.bincount(place, counts)
            if len(pairs) > _MOST_PAIRS:
                most = np.sort(np.argsort(-shared, kind="stable")[: _MOST_PAIRS // 2])
                pairs, shared = pairs[most], shared[most]
        best = np.lexsort((-shared, pairs >> _HALF))
        best = best[_within((pairs >> _HALF)[best]) < _PARTNERS]
        budget = max(_MIN_BUDGET, self._rows // _ROWS_PER_PAIR)
        self.cut_short = len(best) > budget
        chosen = np.sort(pairs[best[np.argsort(-shared[best], kind="stable")[:budget]]])
        return list(zip((chosen >> _HALF).tolist(), (chosen & _LOW).tolist(), strict=True))

    def _text(self, place: int) -> _Text:
        prompts, replies = (side.lower() for side in self._sides[place])
        asked, said = _WORD.findall(prompts), _WORD.findall(replies)
        return _Text(
            hash((*prompts.split(), None, *replies.split())),
            frozenset((*asked, *said)),
            frozenset(pairwise((*asked, *said))),
            frozenset(asked),
            frozenset(said),
        )


class _Text(NamedTuple):
    """What is compared of a row: sets of words, of neighbouring ones, of each side's."""

    spelling: int
    words: frozenset[str]
    pairs: frozenset[tuple[str, str]]
    prompts: frozenset[str]
    replies: frozenset[str]


def _alike(
    pairs: Sequence[tuple[int, int]], text: Callable[[int], _Text], threshold: float
) -> Iterator[tuple[int, int, Literal["spelling", "near"], float]]:
    """(later, earlier, kind, similarity) of those pairs that are near duplicates."""
    templates = _templates(pairs, text, threshold - _FAMILY_BELOW)
    for later, earlier in pairs:
        one, other = text(later), text(earlier)
        if one.spelling == other.spelling:
            yield later, earlier, "spelling", 1.0
            continue
        similarity = _similarity(one, other, threshold)
        shared = templates.get(later, frozenset())
        if similarity and (
            not shared or _jaccard(one.words - shared, other.words - shared) >= _REST
        ):
            yield later, earlier, "near", similarity


def _similarity(one: _Text, other: _Text, threshold: float) -> float:
    """How alike the words of two near duplicates are; 0.0 for rows that are none."""
    differ = one.words ^ other.words
    if not one.words or (differ and differ == _numbers(differ)):
        return 0.0
    shorter = min(len(one.replies), len(other.replies))
    for text in _readings(other, one):
        similarity, replies = _jaccard(one.words, text.words), _jaccard(one.replies, text.replies)
        # A short reply is a label. Long ones that are the same make the rows the same, whatever
        # little was asked.
        is_long = shorter >= _LONG_REPLY and replies >= threshold
        asked, also = _numbers(one.prompts), _numbers(text.prompts)
        if (
            similarity >= threshold
            and _jaccard(one.pairs, text.pairs) >= threshold - _PAIRS_BELOW
            and _jaccard(one.prompts, text.prompts) >= (_REPLIES if is_long else _PROMPTS)
            and replies >= (_REPLIES if shorter >= _MIN_WORDS else 1)
            and (asked <= also or also <= asked or _jaccard(asked, also) >= _NUMBERS)
        ):
            return similarity
    return 0.0


def _readings(text: _Text, like: _Text) -> Iterator[_Text]:
    """A text, then without its typing slips: words that are nearly one of the other's become it."""
    yield text
    known = sorted(like.words - text.words)
    slips: dict[str, str] = {}
    for word in text.words - like.words if len(known) <= _MOST_SLIPS else ():
        near = [other for other in known if other[0] == word[0] and not word[0].isdigit()]
        slips.update((word, meant) for meant in get_close_matches(word, near, 1, _CLOSE))
    if slips:
        yield text._replace(
            words=frozenset(slips.get(word, word) for word in text.words),
            pairs=frozenset((slips.get(a, a), slips.get(b, b)) for a, b in text.pairs),
            prompts=frozenset(slips.get(word, word) for word in text.prompts),
            replies=frozenset(slips.get(word, word) for word in text.replies),
        )


def _numbers(words: frozenset[str]) -> frozenset[str]:
    return frozenset(word for word in words if word[0].isdigit())


def _jaccard(one: frozenset[Any], other: frozenset[Any]) -> float:
    """What two sets share of what they have together; two empty ones are the same."""
    both = len(one & other)
    return both / (len(one) + len(other) - both) if one or other else 1.0


def _templates(
    pairs: Sequence[tuple[int, int]], text: Callable[[int], _Text], threshold: float
) -> dict[int, frozenset[str]]:
    """For each row of a big family of look-alikes the words that most of the family share."""
    alike = (
        (later, earlier)
        for later, earlier in pairs
        if _jaccard(text(later).words, text(earlier).words) >= threshold
    )
    templates: dict[int, frozenset[str]] = {}
    for rows in families(alike):
        if len(rows) >= _FAMILY_ROWS:
            sample = rows[:: -(-len(rows) // _FAMILY_SAMPLE)]
            counts = Counter(word for row in sample for word in text(row).words)
            shared = frozenset(word for word, n in counts.items() if 2 * n >= len(sample))
            templates |= dict.fromkeys(rows, shared)
    return templates


def families(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The groups that pairs join, each in rising order."""
    leader: dict[int, int] = {}

    def root(member: int) -> int:
        while (up := leader.setdefault(member, member)) != member:
            leader[member] = leader[up]
            member = up
        return member

    for pair in pairs:
        one, other = sorted(map(root, pair))
        leader[other] = one
    found: dict[int, list[int]] = defaultdict(list)
    for member in sorted(leader):
        found[root(member)].append(member)
    return list(found.values())


def _within(ranked: NDArray[Any]) -> NDArray[np.intp]:
    """For each of some sorted values its place among those that equal it."""
    return np.arange(len(ranked)) - np.searchsorted(ranked, ranked)


def _sides(row: Conversation) -> tuple[str, str]:
    """What is asked and what is replied; of a call, what it calls. System turns are left out."""
    asked = [turn.content for turn in row.turns if turn.role in ("user", "tool")]
    said = [turn.content for turn in row.turns if turn.role == "assistant"]
    functions = (call["function"] for turn in row.turns for call in turn.tool_calls)
    calls = [f"{function['name']} {_json(function['arguments'])}" for function in functions]
    return "\n".join(asked), "\n".join([*said, *calls])


def _exact_key(row: Conversation, *, spelled: bool) -> int:
    """A hash of all that a row says, for this process; not `spelled`: case and spacing aside."""
    texts = [turn.content for turn in row.turns]
    if not spelled:
        texts = [" ".join(text.lower().split()) for text in texts]
    calls = [_json(turn.tool_calls) for turn in row.turns if turn.tool_calls]
    return hash((*texts, None, *calls, _json(row.tools) if row.tools else None))


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
