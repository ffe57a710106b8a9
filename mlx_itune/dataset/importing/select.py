"""Which rows are wanted: by their tags, and as a sample that is the same on every machine."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlx_itune.kit.errors import UsageError

_MASK = (1 << 64) - 1
_STRIDE = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_CHUNK_ROWS = 1 << 20


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
    """Chooses `wanted` rows by the keyed hash of (content, how many equal rows came before).

    First every row's content hash is told to `see`, in any order; after `draw`, `take` is asked
    once for each row again and says yes exactly min(wanted, rows) times. The choice depends on
    the rows alone, not on their order or number of files. Eight bytes are kept per row, and
    after `draw` only what tells copies apart.
    """

    def __init__(self, seed: int) -> None:
        digest = hashlib.blake2b(f"sample {seed}".encode(), digest_size=8).digest()
        self._salt = int.from_bytes(digest, "big")
        self._hashes = array("Q")
        self._highest = _MASK
        self._copied = array("Q")
        self._allowed = array("Q")
        self._left = array("Q")

    def __len__(self) -> int:
        return len(self._hashes)

    def see(self, content: int) -> None:
        """Count a row with this content hash."""
        self._hashes.append(content)

    def draw(self, wanted: int) -> None:
        """Choose; forgets the rows."""
        rows = len(self._hashes)
        if wanted < rows:
            self._choose(wanted)
        self._hashes = array("Q")
        self.rewind()

    def rewind(self) -> None:
        """Start asking from the first row again."""
        self._left = array("Q", self._allowed)

    def take(self, content: int) -> bool:
        """Whether a row with this content hash is in the sample."""
        if self._highest == _MASK:
            return True
        if self._copied:
            at = bisect_left(self._copied, content)
            if at < len(self._copied) and self._copied[at] == content:
                if not self._left[at]:
                    return False
                self._left[at] -= 1
                return True
        return self._key(content) <= self._highest

    def _choose(self, wanted: int) -> None:
        if wanted < 1:
            self._highest = -1
            return
        hashes = np.frombuffer(self._hashes, dtype=np.uint64)
        hashes.sort()
        keys = np.empty_like(hashes)
        for chunk, occurrence in self._runs(hashes):
            keys[chunk] = self._keys(hashes[chunk], occurrence)
        keys.partition(wanted - 1)
        self._highest = int(keys[wanted - 1])
        del keys
        for chunk, occurrence in self._runs(hashes):
            starts = np.flatnonzero(occurrence == 0)
            lengths = np.diff(starts, append=len(occurrence))
            if (lengths > 1).any():
                taken = self._keys(hashes[chunk], occurrence) <= np.uint64(self._highest)
                allowed = np.add.reduceat(taken.astype(np.uint64), starts)[lengths > 1]
                self._copied.frombytes(hashes[chunk][starts[lengths > 1]].tobytes())
                self._allowed.frombytes(allowed.tobytes())

    @staticmethod
    def _runs(hashes: NDArray[np.uint64]) -> Iterator[tuple[slice, NDArray[np.uint64]]]:
        """Pieces of the sorted hashes that cut no run of equal ones, each hash with the number of
        its equals before it."""
        start = 0
        while start < len(hashes):
            stop = min(start + _CHUNK_ROWS, len(hashes))
            stop = int(np.searchsorted(hashes, hashes[stop - 1], side="right"))
            piece = hashes[start:stop]
            index = np.arange(len(piece), dtype=np.uint64)
            first = np.where(np.append(True, piece[1:] != piece[:-1]), index, np.uint64(0))
            yield slice(start, stop), index - np.maximum.accumulate(first)
            start = stop

    def _keys(
        self, hashes: NDArray[np.uint64], occurrence: NDArray[np.uint64]
    ) -> NDArray[np.uint64]:
        """(N,) uint64: SplitMix64's finalizer over hash, seed and occurrence (wraps around)."""
        mixed = (hashes ^ np.uint64(self._salt)) + occurrence * np.uint64(_STRIDE)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(_FIRST)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(_SECOND)
        result: NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(31))
        return result

    def _key(self, content: int) -> int:
        """The same for one row that has no copies."""
        mixed = content ^ self._salt
        mixed = (mixed ^ (mixed >> 30)) * _FIRST & _MASK
        mixed = (mixed ^ (mixed >> 27)) * _SECOND & _MASK
        return mixed ^ (mixed >> 31)
