"""Which rows are wanted: by their tags, as a sample, and how many of each source."""

from __future__ import annotations

import hashlib
import math
import sys
from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from mlx_itune.kit.errors import DataError, UsageError
from mlx_itune.kit.wording import did_you_mean

_STRIDE = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True)
class Condition:
    """One --where: a tag that must (or must not) have a value; a missing tag equals nothing."""

    key: str
    value: str
    negated: bool = False

    def holds(self, tags: Mapping[str, str]) -> bool:
        """Whether a row with these tags is wanted."""
        return (tags.get(self.key) == self.value) is not self.negated

    def __str__(self) -> str:
        return f"{self.key}{'!=' if self.negated else '='}{self.value}"


def parse_where(texts: Sequence[str]) -> tuple[Condition, ...]:
    """ "key=value" and "key!=value", all of which must hold. Raises UsageError."""
    conditions = []
    for text in texts:
        key, equals, value = text.partition("=")
        negated = key.endswith("!")
        key = key.removesuffix("!").strip()
        if not equals or not key:
            raise UsageError(f"--where {text!r} is not key=value or key!=value")
        conditions.append(Condition(key, value.strip(), negated))
    return tuple(conditions)


class Sampler:
    """Chooses rows by the keyed hash of (content, how many equal rows came before).

    First every row's content hash is told to `see`, in any order; after `draw`, `take` is asked
    once for each row again and says yes exactly min(wanted, rows) times. The choice depends on
    the rows alone, not on their order or number of files; a larger sample holds the smaller one.
    """

    def __init__(self, seed: int) -> None:
        digest = hashlib.blake2b(f"sample {seed}".encode(), digest_size=8).digest()
        self._salt = np.uint64(int.from_bytes(digest, "big"))
        self._seen = array("Q")
        # Chosen contents, sorted, how many rows of each to take, and how many are left to take.
        self._chosen = array("Q")
        self._copies: list[int] = []
        self._left: list[int] = []

    def see(self, content: int) -> None:
        """Count a row with this content hash."""
        self._seen.append(content)

    def draw(self, wanted: int) -> None:
        """Choose; forgets the other rows."""
        rows = np.sort(np.frombuffer(self._seen, dtype=np.uint64))
        if wanted < len(rows):
            index = np.arange(len(rows), dtype=np.uint64)
            starts = np.where(np.append(True, rows[1:] != rows[:-1]), index, np.uint64(0))
            copy = index - np.maximum.accumulate(starts)
            # SplitMix64's finalizer over hash, seed and copy (it wraps around).
            mixed = (rows ^ self._salt) + copy * _STRIDE
            mixed = (mixed ^ (mixed >> np.uint64(30))) * _FIRST
            mixed = (mixed ^ (mixed >> np.uint64(27))) * _SECOND
            rows = np.sort(rows[np.argsort(mixed ^ (mixed >> np.uint64(31)))[:wanted]])
        chosen, copies = np.unique(rows, return_counts=True)
        self._chosen = array("Q", chosen.tobytes())
        self._copies = copies.tolist()
        self._seen = array("Q")
        self.rewind()

    def rewind(self) -> None:
        """Start asking from the first row again."""
        self._left = list(self._copies)

    def take(self, content: int) -> bool:
        """Whether a row with this content hash is in the sample."""
        at = bisect_left(self._chosen, content)
        if at == len(self._chosen) or self._chosen[at] != content or not self._left[at]:
            return False
        self._left[at] -= 1
        return True


def mix(
    sizes: Mapping[str, int],
    *,
    cap: int | None = None,
    weights: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """The share of each source, in the order of `sizes`; they sum to 1.

    A source's rate is its number of rows, at most `cap`. Explicit `weights` win over both: a
    source they do not name gets nothing. Raises UsageError for what is no weight, a name that is
    no source, or shares that would sum to 0; DataError for a source that is wanted and empty.
    """
    rates: dict[str, float]
    if weights is None:
        rates = {name: rows if cap is None else min(rows, cap) for name, rows in sizes.items()}
    else:
        for name, weight in weights.items():
            if name not in sizes:
                raise UsageError(
                    f"a weight is given for {name!r}, which is no source",
                    hint=did_you_mean(name, sizes) or "the sources are " + ", ".join(sizes),
                )
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
