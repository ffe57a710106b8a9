"""Rows that say the same: exactly (hashes) or nearly (MinHash, then the real texts).

One streaming pass keeps 8 bytes per row, and 64 more for near duplicates, in files. Afterwards rows
whose signatures agree in a band are candidates; the texts of those whose estimate is high enough
are fetched and compared. What counts as a near duplicate is decided there: see `similarity`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlx_itune.dataset.checking.chunk import U64, Index, Words
from mlx_itune.dataset.checking.columns import Columns
from mlx_itune.dataset.checking.minhash import BANDS, COLUMNS, signatures
from mlx_itune.dataset.checking.similarity import (
    PAIRS_BELOW,
    THRESHOLD,
    Texts,
    common_words,
    compare,
)
from mlx_itune.dataset.conversation import Conversation

Fetch = Callable[[Sequence[int]], Iterable[tuple[int, Conversation]]]
Kind = Literal["exact", "spelling", "near"]

# An estimate from 64 bins has a standard error of 0.06; the texts decide.
_ESTIMATE_SLACK = PAIRS_BELOW + 0.15
_PARTNERS = 4
# In a group of more look-alikes than this a row is compared with its neighbour and the first only.
_BIG_GROUP = 16
_PAIRS_AT_ONCE = 1 << 19
# Candidates whose texts are compared: the closest ones, at least this many, or one per 16 rows.
_MIN_BUDGET = 1 << 17
_ROWS_PER_PAIR = 16
_ROWS_AT_ONCE = 1 << 16
# From this many rows on, what most of them share is taken for their template.
_TEMPLATE_ROWS = 8
_TEMPLATE_SAMPLE = 32
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
_LOW = np.uint64(0xFFFFFFFF)
_HIGH = np.uint64(32)


@dataclass(frozen=True)
class Match:
    """A row that repeats an earlier one, both numbered from 0 in the order they were added.

    `kind`: the same text, the same but for case, spacing and punctuation, or nearly the same
    (with the Jaccard `similarity` of their words).
    """

    later: int
    earlier: int
    kind: Kind
    similarity: float


class Duplicates:
    """Add every row, then ask for the matches. A context manager: its files go at the end."""

    def __init__(self, *, near: bool = True, threshold: float = THRESHOLD) -> None:
        self.near = near
        # Whether there were more look-alikes than are worth comparing.
        self.cut_short = False
        self.threshold = threshold
        self._columns = Columns(1 + COLUMNS * near)

    def __enter__(self) -> Duplicates:
        self._columns.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._columns.__exit__(kind, error, trace)

    def add(self, exact: Sequence[int], words: Words | None) -> None:
        """Add a chunk of rows: the hash of each row's whole text, and their words."""
        table = np.empty((len(exact), self._columns.width), np.uint64)
        # A hash of zero would mean "no hash".
        table[:, 0] = np.array(exact, np.int64).view(np.uint64) | np.uint64(1)
        if self.near:
            assert words is not None
            table[:, 1:] = signatures(words)
        self._columns.append(table)

    def exact(self) -> tuple[Index, Index]:
        """(later, first): each row whose text was there before, in order, and its first place."""
        laters, firsts = [], []
        for members, sizes in self._columns.groups(0, _ALL):
            starts = np.cumsum(sizes) - sizes
            first = np.repeat(members[starts], sizes)
            later = members != first
            laters.append(members[later])
            firsts.append(first[later])
        if not laters:
            return np.zeros(0, np.intp), np.zeros(0, np.intp)
        later, first = np.concatenate(laters), np.concatenate(firsts)
        order = np.argsort(later, kind="stable")
        later, first = later[order], first[order]
        by_first = np.argsort(first, kind="stable")
        hashes = np.empty(len(first), np.uint64)
        hashes[by_first] = self._columns.pick(0, first[by_first])
        same = self._columns.pick(0, later) == hashes
        return later[same], first[same]

    def matches(self, fetch: Fetch) -> Iterator[list[Match]]:
        """Per repeated row its matches, the closest first; exact ones come before near ones.

        `fetch` gives the conversations of row numbers (in rising order) once more.
        """
        later, first = self.exact()
        for row, repeated in zip(later.tolist(), first.tolist(), strict=True):
            yield [Match(row, repeated, "exact", 1.0)]
        if self.near:
            yield from self._near(later, fetch)

    def _near(self, repeats: Index, fetch: Fetch) -> Iterator[list[Match]]:
        is_repeat = np.zeros(self._columns.rows, np.bool_)
        is_repeat[repeats] = True
        pairs = self._candidates(is_repeat)
        if not len(pairs):
            return
        templates = self._templates(pairs, fetch)
        for slice_ in _slices(pairs, _ROWS_AT_ONCE // 2):
            rows = np.unique(np.concatenate([slice_ >> _HIGH, slice_ & _LOW])).astype(np.intp)
            texts = Texts.of(fetch(rows.tolist()))
            found: dict[int, list[Match]] = defaultdict(list)
            for later, earlier, kind, value in compare(texts, slice_, templates, self.threshold):
                found[later].append(Match(later, earlier, kind, value))
            for row in sorted(found):
                # Spelling before near; then the closest, then the earliest.
                yield sorted(
                    found[row], key=lambda m: (m.kind != "spelling", -m.similarity, m.earlier)
                )

    def _candidates(self, is_repeat: NDArray[np.bool_]) -> U64:
        """Pairs (later << 32 | earlier), sorted, whose estimated similarity is high enough."""
        budget = max(_MIN_BUDGET, self._columns.rows // _ROWS_PER_PAIR)
        pairs = np.zeros(0, np.uint64)
        fresh: list[U64] = []
        waiting = 0
        for column in range(1, 1 + COLUMNS):
            for mask in BANDS:
                for members, sizes in self._columns.groups(column, mask):
                    for made in _pairs_of(members, sizes, is_repeat):
                        fresh.append(made)
                        waiting += len(made)
                        if waiting >= _PAIRS_AT_ONCE:
                            pairs = self._best(np.concatenate([pairs, *fresh]), budget)
                            fresh, waiting = [], 0
        return self._best(np.concatenate([pairs, *fresh]), budget)

    def _best(self, pairs: U64, budget: int) -> U64:
        """The pairs with a high estimate, a few of the best per later row, sorted."""
        pairs = np.unique(pairs)
        estimate = np.concatenate(
            [np.zeros(0), *(self._estimates(part) for part in _slices(pairs, _PAIRS_AT_ONCE))]
        )
        keep = estimate >= self.threshold - _ESTIMATE_SLACK
        pairs, estimate = pairs[keep], estimate[keep]
        later = pairs >> _HIGH
        best = np.lexsort((-estimate, later))
        ranked = later[best]
        best = best[np.arange(len(ranked)) - np.searchsorted(ranked, ranked) < _PARTNERS]
        if len(best) > budget:
            best = best[np.argpartition(-estimate[best], budget)[:budget]]
            self.cut_short = True
        return np.sort(pairs[best])

    def _estimates(self, pairs: U64) -> NDArray[np.float64]:
        later, earlier = (pairs >> _HIGH).astype(np.intp), (pairs & _LOW).astype(np.intp)
        order = np.argsort(earlier, kind="stable")
        agree = np.zeros(len(pairs), np.uint8)
        for column in range(1, 1 + COLUMNS):
            other = np.empty(len(pairs), np.uint64)
            other[order] = self._columns.pick(column, earlier[order])
            other ^= self._columns.pick(column, later)
            agree += (other.view(np.uint8).reshape(-1, 8) == 0).sum(axis=1, dtype=np.uint8)
        return np.asarray(agree / (8 * COLUMNS))

    def _templates(self, pairs: U64, fetch: Fetch) -> dict[int, U64]:
        """For each row of a big family of look-alikes, the words that most of the family share."""
        families = _families(pairs)
        big = {root: rows for root, rows in families.items() if len(rows) >= _TEMPLATE_ROWS}
        sample = {
            root: sorted(rows)[:: max(1, len(rows) // _TEMPLATE_SAMPLE)][:_TEMPLATE_SAMPLE]
            for root, rows in list(big.items())[: _ROWS_AT_ONCE // _TEMPLATE_SAMPLE]
        }
        if not sample:
            return {}
        texts = Texts.of(fetch(sorted({row for rows in sample.values() for row in rows})))
        shared = {root: common_words(texts, rows) for root, rows in sample.items()}
        return {row: shared[root] for root in shared for row in big[root]}


def _pairs_of(members: Index, sizes: Index, is_repeat: NDArray[np.bool_]) -> Iterator[U64]:
    """Each member with the few before it in its group, or with the one before and the first."""
    group = np.repeat(np.arange(len(sizes)), sizes)
    alone = ~is_repeat[members]
    members, group = members[alone], group[alone]
    if not len(group):
        return
    sizes = np.bincount(group)
    small = sizes[group] <= _BIG_GROUP
    yield _lagged(members, group, 1)
    for lag in range(2, _PARTNERS + 1):
        yield _lagged(members[small], group[small], lag)
    first = np.searchsorted(group, group)
    far = np.flatnonzero(np.arange(len(group)) - first > np.where(small, _PARTNERS, 1))
    for part in _slices(far, _PAIRS_AT_ONCE):
        yield _packed(members[part], members[first[part]])


def _lagged(members: Index, group: Index, lag: int) -> U64:
    same = group[lag:] == group[:-lag]
    return _packed(members[lag:][same], members[:-lag][same])


def _slices(values: NDArray[Any], size: int) -> Iterator[NDArray[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _packed(later: Index, earlier: Index) -> U64:
    pairs = later.astype(np.uint64)
    pairs <<= _HIGH
    pairs |= earlier.astype(np.uint64)
    return pairs


def _families(pairs: U64) -> dict[int, list[int]]:
    parent: dict[int, int] = {}

    def root(row: int) -> int:
        while (up := parent.setdefault(row, row)) != row:
            parent[row] = parent[up]
            row = up
        return row

    for later, earlier in zip((pairs >> _HIGH).tolist(), (pairs & _LOW).tolist(), strict=True):
        a, b = root(later), root(earlier)
        parent[max(a, b)] = min(a, b)
    families: dict[int, list[int]] = defaultdict(list)
    for row in parent:
        families[root(row)].append(row)
    return families
