"""Distributions of a stream in bounded memory: whole numbers, and names with their amounts."""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_DISTINCT_VALUES = 65_536
_FIRST_BITS = 13
_QUANTILES = {"p5": 0.05, "p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
_SKETCH = 1024


@dataclass(frozen=True)
class Bins:
    """`counts[n]` values lie in [edges[n], edges[n + 1]); `beyond` of them are larger than all."""

    edges: tuple[int, ...]
    counts: tuple[int, ...]
    beyond: int


@dataclass(frozen=True)
class Distribution:
    """Quantiles by nearest rank: the smallest value that at least that share does not exceed.

    `count`, `sum`, `mean`, `min` and `max` are exact; a quantile lies at most `error` (relative)
    from the true one, and `error` is 0 unless there are more distinct values than are kept.
    """

    count: int
    sum: int
    mean: float
    min: int
    p5: int
    p50: int
    p90: int
    p95: int
    p99: int
    max: int
    error: float
    histogram: Bins


class Tally:
    """Counts of whole numbers >= 0.

    Every distinct value is kept up to a limit; past it all of them are rounded down to 13
    significant binary digits, then to 12 and so on, so memory is bounded whatever comes.
    """

    def __init__(self, most_distinct: int = _DISTINCT_VALUES) -> None:
        self._counts: Counter[int] = Counter()
        self._most = most_distinct
        self._bits = 0
        self.count = self.sum = 0
        self._low, self._high = -1, 0

    def add(self, value: int) -> None:
        """Count one value."""
        self.extend((value,))

    def extend(self, values: Sequence[int]) -> None:
        """Count several values, which is much faster than one by one."""
        if not values:
            return
        self.count += len(values)
        self.sum += sum(values)
        self._high = max(self._high, max(values))
        lowest = min(values)
        self._low = lowest if self._low < 0 else min(self._low, lowest)
        self._counts.update(map(self._rounded, values) if self._bits else values)
        if len(self._counts) > self._most:
            self._coarsen()

    def _rounded(self, value: int) -> int:
        shift = value.bit_length() - self._bits
        return (value >> shift) << shift if shift > 0 else value

    def _coarsen(self) -> None:
        while len(self._counts) > self._most // 2:
            self._bits = self._bits - 1 if self._bits else _FIRST_BITS
            coarse: Counter[int] = Counter()
            for value, times in self._counts.items():
                coarse[self._rounded(value)] += times
            self._counts = coarse

    def values(self) -> Iterator[tuple[int, int]]:
        """(value, times) in rising order."""
        yield from sorted(self._counts.items())

    def quantile(self, share: float) -> int:
        """The smallest value that at least `share` of the values do not exceed; 0 for none."""
        wanted, seen = max(1, math.ceil(share * self.count - 1e-9)), 0
        for value, times in self.values():
            seen += times
            if seen >= wanted:
                return min(max(value, self._low), self._high)
        return 0

    def distribution(self) -> Distribution | None:
        """All of it as numbers; None if nothing was counted."""
        if not self.count:
            return None
        return Distribution(
            count=self.count,
            sum=self.sum,
            mean=self.sum / self.count,
            min=self._low,
            **{name: self.quantile(share) for name, share in _QUANTILES.items()},
            max=self._high,
            error=2.0 ** (1 - self._bits) if self._bits else 0.0,
            histogram=self._bins(),
        )

    def _bins(self, target: int = 40) -> Bins:
        """About `target` equally wide bins with round edges.

        A long tail would make the rest unreadable, so past twice the 95th percentile, or the 99th
        where that is nearer, it is cut off and counted as a whole.
        """
        low, high = self._low, self._high
        tail = min(self.quantile(0.99), 2 * self.quantile(0.95) - low)
        if high - low > 1.5 * (tail - low) + target:
            high = tail
        width = _bin_width((high - low + 1) / target)
        first = low // width * width
        number = (high - first) // width + 1
        counts, beyond = [0] * number, 0
        for value, times in self._counts.items():
            place = (max(value, first) - first) // width
            if place < number:
                counts[place] += times
            else:
                beyond += times
        edges = tuple(first + n * width for n in range(number + 1))
        return Bins(edges, tuple(counts), beyond)


def _bin_width(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50 ... that is at least `least`."""
    power = 1
    while power * 10 <= least:
        power *= 10
    return next(power * step for step in (1, 2, 5, 10) if power * step >= least)


@dataclass(frozen=True)
class Ranked:
    """One name of a ranking and its amounts."""

    name: str
    amounts: tuple[int, ...]


@dataclass(frozen=True)
class Ranking:
    """The largest names, what all others amount to, and how many names there are.

    `distinct` is exact where `exact`; otherwise it is an estimate good to a few percent and the
    amounts of small names may be too low (what is missing is in `other`).
    """

    top: tuple[Ranked, ...]
    other: tuple[int, ...]
    distinct: int
    exact: bool


class NameCounter:
    """Sums per name, of one or several amounts; the first amount ranks.

    Holds at most `most` names: when there are more, the smaller half goes to "other".
    """

    def __init__(self, amounts: int = 1, *, most: int = 2_000) -> None:
        self._sums: dict[str, list[int]] = {}
        self._other = [0] * amounts
        self._most = most
        self._distinct: _DistinctSketch | None = None

    def add(self, name: str, amounts: Sequence[int] = (1,)) -> None:
        """Add `amounts` to those of `name`."""
        sums = self._sums.get(name)
        if sums is None:
            sums = self._sums[name] = [0] * len(self._other)
            if self._distinct is not None:
                self._distinct.add(name)
            if len(self._sums) > self._most:
                self._prune()
                sums = self._sums.setdefault(name, sums)
        for n, amount in enumerate(amounts):
            sums[n] += amount

    def __len__(self) -> int:
        return len(self._sums)

    def _prune(self) -> None:
        if self._distinct is None:
            self._distinct = _DistinctSketch()
            for name in self._sums:
                self._distinct.add(name)
        ranked = self._by_amount()
        self._sums = dict(ranked[: self._most // 2])
        for _, sums in ranked[self._most // 2 :]:
            self._other = [a + b for a, b in zip(self._other, sums, strict=True)]

    def _by_amount(self) -> list[tuple[str, list[int]]]:
        return sorted(self._sums.items(), key=lambda item: (-item[1][0], item[0]))

    def ranking(self, most: int = 20) -> Ranking:
        """The `most` largest names."""
        ranked = self._by_amount()
        rest = [sums for _, sums in ranked[most:]]
        other = tuple(sum(column) for column in zip(self._other, *rest, strict=True))
        exact = self._distinct is None
        return Ranking(
            tuple(Ranked(name, tuple(sums)) for name, sums in ranked[:most]),
            other,
            len(self._sums) if self._distinct is None else self._distinct.estimate(),
            exact,
        )


class _DistinctSketch:
    """How many distinct names were added: the spacing of the smallest hashes tells (about 3 %)."""

    def __init__(self) -> None:
        self._smallest: list[int] = []  # a heap of negated hashes: its head is the largest kept
        self._kept: set[int] = set()

    def add(self, name: str) -> None:
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        value = int.from_bytes(digest, "big")
        if value in self._kept:
            return
        if len(self._smallest) < _SKETCH:
            heapq.heappush(self._smallest, -value)
            self._kept.add(value)
        elif value < -self._smallest[0]:
            self._kept.discard(-heapq.heappushpop(self._smallest, -value))
            self._kept.add(value)

    def estimate(self) -> int:
        if len(self._smallest) < _SKETCH:
            return len(self._smallest)
        return round((_SKETCH - 1) * 2**64 / -self._smallest[0])


def clipped(text: str, most: int = 120) -> str:
    """`text`, or its start and a short hash of the whole where it is longer than `most`."""
    if len(text) <= most:
        return text
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return f"{text[: most - 11]}… #{digest}"
