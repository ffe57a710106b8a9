"""Whether two rows are near duplicates, decided on their texts.

Two rows are when the Jaccard similarity of their words is 0.8 or more, that of their pairs of
neighbouring words, which see the order, 0.6 or more, and neither the prompts nor the replies tell
another story: a question about another thing or with other numbers, and one text under two labels,
are no duplicates. Among eight or more look-alikes the words that most of them share are taken for a
template that they fill in, and the rest has to be alike as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mlx_itune.dataset.checking.chunk import U32, U64, Index, Words, split_words
from mlx_itune.dataset.checking.minhash import pair_hashes
from mlx_itune.dataset.conversation import Conversation, Turn

THRESHOLD = 0.8
# How much lower the similarity of pairs of words may be: an edited word is in two pairs.
PAIRS_BELOW = 0.2

# Of the words of the prompts, of the replies, and of the numbers in the prompts.
_SIDES = {"prompts": 0.75, "replies": 0.5, "numbers": 0.5}
_REST_THRESHOLD = 0.5
_TEMPLATE_SHARE = 0.5
_PAIRS_AT_ONCE = 1 << 12
_ROWS_AT_ONCE = 1 << 11
_HIGH = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)


@dataclass(frozen=True, eq=False)
class Sets:
    """A set of 32-bit hashes per row: `flat` in rising order, row r has [first[r], first[r+1])."""

    flat: U32
    first: Index

    @staticmethod
    def of(hashes: U32, rows: Index, count: int) -> Sets:
        """Sets of the hashes of each row."""
        keyed = np.unique((rows.astype(np.uint64) << _HIGH) | hashes)
        first = np.searchsorted(keyed, np.arange(count + 1, dtype=np.uint64) << _HIGH)
        return Sets((keyed & _LOW).astype(np.uint32), first)

    @staticmethod
    def joined(parts: Sequence[Sets]) -> Sets:
        """The rows of several, one after the other."""
        ends = np.cumsum([0, *(len(part.flat) for part in parts)])
        first = [part.first[:-1] + end for part, end in zip(parts, ends[:-1], strict=True)]
        flat = np.concatenate([part.flat for part in parts])
        return Sets(flat, np.concatenate([*first, ends[-1:]]))

    def row(self, row: int) -> U32:
        """The set of one row."""
        return self.flat[self.first[row] : self.first[row + 1]]

    def jaccard(self, left: Index, right: Index) -> NDArray[np.float64]:
        """The similarity of pairs of rows; two empty sets are the same."""
        sizes = np.diff(self.first)
        keyed = np.sort(np.concatenate([self._keyed(left, sizes), self._keyed(right, sizes)]))
        both = keyed[1:][keyed[1:] == keyed[:-1]] >> _HIGH
        shared = np.bincount(both.astype(np.intp), minlength=len(left))
        union = sizes[left] + sizes[right] - shared
        return np.asarray(np.where(union > 0, shared / np.maximum(union, 1), 1.0))

    def _keyed(self, rows: Index, sizes: Index) -> U64:
        counts = sizes[rows]
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        pair = np.repeat(np.arange(len(rows), dtype=np.uint64), counts)
        pair <<= _HIGH
        pair |= self.flat[np.repeat(self.first[rows], counts) + within]
        return pair


_NO_SETS = Sets(np.zeros(0, np.uint32), np.zeros(1, np.intp))


@dataclass(frozen=True, eq=False)
class Texts:
    """Some rows' texts as sets: pairs of words, words, and what `_SIDES` names."""

    number: Mapping[int, int]
    spelling: Sequence[int]
    pairs: Sets
    words: Sets
    sides: Mapping[str, Sets]

    @staticmethod
    def of(rows: Iterable[tuple[int, Conversation]]) -> Texts:
        """The sets of (row number, conversation), which are not kept themselves."""
        number: dict[int, int] = {}
        spelling: list[int] = []
        parts: list[list[Sets]] = []
        numbered = iter(rows)
        while block := list(islice(numbered, _ROWS_AT_ONCE)):
            number |= {row: n for n, (row, _) in enumerate(block, len(number))}
            said = [[t for t in c.turns if t.role != "system"] for _, c in block]
            texts = ["\n".join(turn.content for turn in turns) for turns in said]
            spelling += [hash(" ".join(text.lower().split())) for text in texts]
            whole = split_words([text.encode() for text in texts])
            prompts = split_words([_side(turns, is_reply=False) for turns in said])
            replies = split_words([_side(turns, is_reply=True) for turns in said])
            parts.append(
                [
                    _pair_sets(whole),
                    _word_sets(whole),
                    _word_sets(prompts),
                    _word_sets(replies),
                    _number_sets(prompts),
                ]
            )
        columns = [Sets.joined(column) for column in zip(*parts, strict=True)] or [_NO_SETS] * 5
        pairs, words, *sides = columns
        return Texts(number, spelling, pairs, words, dict(zip(_SIDES, sides, strict=True)))


def common_words(texts: Texts, rows: Sequence[int]) -> U64:
    """The words that at least half of the rows share."""
    there = [texts.number[row] for row in rows if row in texts.number]
    if not there:
        return np.zeros(0, np.uint32)
    words = np.concatenate([texts.words.row(row) for row in there])
    distinct, counts = np.unique(words, return_counts=True)
    return distinct[counts >= max(2, _TEMPLATE_SHARE * len(there))]


def compare(
    texts: Texts, pairs: U64, templates: Mapping[int, U64], threshold: float
) -> Iterator[tuple[int, int, Literal["spelling", "near"], float]]:
    """(later, earlier, kind, similarity) of the pairs (later << 32 | earlier) that are alike."""
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        named = [
            (int(pair >> _HIGH), int(pair & _LOW)) for pair in pairs[start : start + _PAIRS_AT_ONCE]
        ]
        named = [(a, b) for a, b in named if a in texts.number and b in texts.number]
        left = np.array([texts.number[a] for a, _ in named], np.intp)
        right = np.array([texts.number[b] for _, b in named], np.intp)
        if not named:
            continue
        alike = texts.words.jaccard(left, right)
        same_story = texts.pairs.jaccard(left, right) >= threshold - PAIRS_BELOW
        for side, least in _SIDES.items():
            same_story &= texts.sides[side].jaccard(left, right) >= least
        for (later, earlier), a, b, value, same in zip(
            named, left.tolist(), right.tolist(), alike.tolist(), same_story.tolist(), strict=True
        ):
            if texts.spelling[a] == texts.spelling[b]:
                yield later, earlier, "spelling", 1.0
            elif value >= threshold and same:
                shared = templates.get(later)
                if shared is None or _rest(texts, a, b, shared) >= _REST_THRESHOLD:
                    yield later, earlier, "near", value


def _rest(texts: Texts, a: int, b: int, shared: U64) -> float:
    first = np.setdiff1d(texts.words.row(a), shared, assume_unique=True)
    second = np.setdiff1d(texts.words.row(b), shared, assume_unique=True)
    both = len(np.intersect1d(first, second, assume_unique=True))
    union = len(first) + len(second) - both
    return both / union if union else 1.0


def _side(turns: Sequence[Turn], *, is_reply: bool) -> bytes:
    return "\n".join(t.content for t in turns if (t.role == "assistant") == is_reply).encode()


def _pair_sets(words: Words) -> Sets:
    hashes, ends = pair_hashes(words)
    inside = np.ones(len(hashes), np.bool_)
    inside[ends] = False
    return Sets.of(hashes[inside], words.rows[inside], len(words.counts))


def _word_sets(words: Words) -> Sets:
    return Sets.of(words.hashes, words.rows, len(words.counts))


def _number_sets(words: Words) -> Sets:
    first = words.keys.astype(np.uint8) - np.uint8(ord("0"))
    is_number = first < np.uint8(10)
    return Sets.of(words.hashes[is_number], words.rows[is_number], len(words.counts))
