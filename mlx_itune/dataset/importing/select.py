"""Which rows are wanted: by their tags, and as a sample that is the same on every machine."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mlx_itune.kit.errors import UsageError

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
