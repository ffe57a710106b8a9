"""Which rows are wanted: by their tags, as a sample, and how many of each source."""

from __future__ import annotations

import hashlib
import math
import re
import sys
from array import array
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.importing.provenance import SPLITS
from mlx_itune.kit.errors import DataError, UsageError
from mlx_itune.kit.wording import did_you_mean

_STRIDE = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def parse_where(text: str) -> tuple[str, str, bool]:
    """ "key=value" or "key!=value" as (key, value, equal). Raises UsageError."""
    key, equals, value = text.partition("=")
    name = key.removesuffix("!").strip()
    if not equals or not name:
        raise UsageError(f"--where {text!r} is not key=value or key!=value")
    return name, value.strip(), not key.endswith("!")


def drawn(contents: array[int], wanted: int, seed: int) -> Counter[int]:
    """How many rows of each content hash to take: in all `wanted`, or all that there are. Those of
    the lowest keyed hashes of (content, how many equal rows came before), whatever their order; a
    larger sample holds the smaller one."""
    salt = hashlib.blake2b(f"sample {seed}".encode(), digest_size=8).digest()
    rows = np.sort(np.frombuffer(contents, dtype=np.uint64))
    if wanted < len(rows):
        index = np.arange(len(rows), dtype=np.uint64)
        starts = np.where(np.append(True, rows[1:] != rows[:-1]), index, np.uint64(0))
        copy = index - np.maximum.accumulate(starts)
        # SplitMix64's finalizer over hash, seed and copy (it wraps around).
        mixed = (rows ^ np.uint64(int.from_bytes(salt, "big"))) + copy * _STRIDE
        mixed = (mixed ^ (mixed >> np.uint64(30))) * _FIRST
        mixed = (mixed ^ (mixed >> np.uint64(27))) * _SECOND
        rows = rows[np.argsort(mixed ^ (mixed >> np.uint64(31)))[:wanted]]
    return Counter(rows.tolist())


def mix(
    sizes: Mapping[str, int], *, cap: int | None = None, weights: Mapping[str, float] | None = None
) -> dict[str, float]:
    """The share of each source, in the order of `sizes`; they sum to 1. A rate is a source's rows,
    at most `cap`, or its one of the `weights`, 0 unless named. Raises UsageError for wrong weights
    and names, DataError for a source that is wanted and empty."""
    rates: dict[str, float]
    if weights is None:
        rates = {name: rows if cap is None else min(rows, cap) for name, rows in sizes.items()}
    else:
        for name, weight in weights.items():
            if name not in sizes:
                hint = did_you_mean(name, sizes) or "the sources are " + ", ".join(sizes)
                raise UsageError(f"a weight is given for {name!r}, which is no source", hint=hint)
            if not 0 <= weight <= sys.float_info.max:
                raise UsageError(f"the weight of {name!r} is {weight}, not a finite number >= 0")
            if weight and not sizes[name]:
                raise DataError(f"source {name!r} has weight {weight} and no row")
        rates = {name: weights.get(name, 0.0) for name in sizes}
    largest = max(rates.values(), default=0)
    if not largest:
        raise UsageError("the weights sum to 0") if weights else DataError("there are no rows")
    # Scaled first, so that weights near the largest float do not sum to infinity.
    scaled = {name: rate / largest for name, rate in rates.items()}
    total = math.fsum(scaled.values())
    return {name: rate / total for name, rate in scaled.items()}


def quotas(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """`total` rows divided by `shares`, in whole rows (largest remainder, ties in order)."""
    # Fractions, so that the whole parts can never add up to more than there is.
    parts = {name: Fraction(share) for name, share in shares.items()}
    exact = {name: part * total / sum(parts.values()) for name, part in parts.items()}
    whole = {name: math.floor(rows) for name, rows in exact.items()}
    by_remainder = sorted(exact, key=lambda name: whole[name] - exact[name])
    for name in by_remainder[: total - sum(whole.values())]:
        whole[name] += 1
    return whole


# What each split was promised; the three add up to 1.
Shares = Mapping[str, Fraction]

FIRST_TURN = "first-turn"
_NUMBER = re.compile(r"\s*([0-9]{1,6}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})\s*%?\s*")
_RANGE = 1 << 64
_WATCHED = 10_000


def parse_shares(text: str) -> Shares:
    """ "0.9/0.05/0.05", "90/5/5" or "0.9/0.1" (train/valid/test). Raises UsageError."""
    hint = "write train/valid/test, such as 0.9/0.05/0.05 or 90/5/5"
    numbers = [_NUMBER.fullmatch(part) for part in text.split("/")]
    if not all(numbers):
        raise UsageError(f"--split {text!r} is not a list of numbers", hint=hint)
    parts = [Fraction(number[1]) for number in numbers if number]
    if len(parts) not in (2, 3):
        raise UsageError(f"--split {text!r} is not two or three shares", hint=hint)
    total = sum(parts)
    if total not in (1, 100):
        raise UsageError(f"--split {text!r} adds up to {float(total):g}, not 1 or 100", hint=hint)
    parts = [part / total for part in parts] + [Fraction(0)] * (3 - len(parts))
    if not parts[0]:
        raise UsageError(f"--split {text!r} leaves nothing to train on", hint=hint)
    return dict(zip(SPLITS, parts, strict=True))


def position(name: bytes, seed: int) -> int:
    """Where a row or group lies: 64 uniform bits, the same on every machine."""
    key = f"split {seed}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8, key=key).digest(), "big")


class Splitter:
    """Answers with a split for each row and counts what it answered, by stratum. Small data may
    leave a split empty: after all were asked about, `fill` moves the nearest ones."""

    def __init__(self, shares: Shares) -> None:
        self.shares = shares
        self.moved: dict[int, str] = {}
        self.counts: dict[str, Counter[str]] = {}
        self._asked = [split for split in SPLITS if shares[split]]
        # In an order by which a larger test or valid share moves few rows.
        test, valid = (int((shares["test"] + more) * _RANGE) for more in (0, shares["valid"]))
        self._bands = {"test": (0, test), "valid": (test, valid), "train": (valid, _RANGE)}
        # Positions met so far, by stratum; of one with many rows, the first.
        self._met: dict[str, dict[int, str]] = {}

    def choose(self, place: int, stratum: str = "") -> str:
        """The split of a row at `place`."""
        band = next(name for name, (_, end) in self._bands.items() if place < end)
        split = self.moved.get(place, band)
        self.counts.setdefault(stratum, Counter())[split] += 1
        met = self._met.setdefault(stratum, {})
        if len(met) < _WATCHED:
            met[place] = split
        return split

    @property
    def is_full(self) -> bool:
        """Whether every split that was asked for has rows of every stratum met so far."""
        return bool(self.counts) and all(
            counts[split] for counts in self.counts.values() for split in self._asked
        )

    def fill(self) -> None:
        """Give every stratum of enough rows some in every split; counting starts anew."""
        for _, met in sorted(self._met.items()):
            if not len(self._asked) <= len(met) < _WATCHED:
                continue
            now = {place: self.moved.get(place, split) for place, split in met.items()}
            for split in self._asked:
                sizes = Counter(now.values())
                if sizes[split]:
                    continue
                giver = max(self._asked, key=lambda name: sizes[name])
                edges = self._bands[split]
                place = min(
                    (place for place, other in now.items() if other == giver),
                    key=lambda place: (min(abs(place - edge) for edge in edges), place),
                )
                now[place] = self.moved[place] = split
        self.counts, self._met = {}, {}

    def described(self, *, strata: bool) -> dict[str, dict[str, object]]:
        """Shares as asked for and as they came out, and the counts of each stratum."""
        total = sum(self.counts.values(), Counter[str]())
        rows = total.total() or 1
        by_stratum = sorted(self.counts.items()) if strata else ()
        return {
            "requested": {split: float(self.shares[split]) for split in SPLITS},
            "achieved": {split: total[split] / rows for split in SPLITS},
            "strata": {name: dict(counts) for name, counts in by_stratum},
        }


class Groups:
    """Rows that must stay on one side: those of one group, and groups that share an equal row.
    `see` takes every row's content hash once; `of` answers after that."""

    def __init__(self, by: str) -> None:
        self._by = by
        # A content's group, and of a group the one it was joined to.
        self._above: dict[int, int] = {}
        self.is_tagged = False

    def see(self, row: Conversation, content: int) -> None:
        """A row, whose content hash is `content`."""
        value = self._value(row)
        if value is None:
            return
        self.is_tagged = True
        said = b"group " + value.encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(said, digest_size=8).digest()
        group = self.of(int.from_bytes(digest, "big"))
        other = self.of(self._above.setdefault(content, group))
        if group != other:
            self._above[max(group, other)] = min(group, other)

    def of(self, content: int) -> int:
        """What stands for all rows that have to be on the same side as this one."""
        while (above := self._above.get(content, content)) != content:
            self._above[content] = self._above.get(above, above)
            content = above
        return content

    def _value(self, row: Conversation) -> str | None:
        """A tag, or the first question without case and spacing, so that it is one when asked
        twice."""
        if self._by != FIRST_TURN:
            return row.tags.get(self._by)
        asked = next((turn.content for turn in row.turns if turn.role == "user"), None)
        return None if asked is None else " ".join(asked.casefold().split())
