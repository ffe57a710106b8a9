"""Distributions of whole numbers, names with their amounts, letters by writing system."""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_QUANTILES = (0.05, 0.5, 0.9, 0.95, 0.99)
_BINS = 40


@dataclass(frozen=True)
class Bins:
    """`counts[n]` values lie in [edges[n], edges[n + 1]); `beyond` of them are larger than all."""

    edges: tuple[int, ...]
    counts: tuple[int, ...]
    beyond: int


@dataclass(frozen=True)
class Distribution:
    """Quantiles by nearest rank: the smallest value that at least that share does not exceed."""

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


def distribution(counts: Counter[int]) -> Distribution:
    """How often each whole number >= 0 was met, of at least one, as numbers."""
    values, times = (np.array(column) for column in zip(*sorted(counts.items()), strict=True))
    up_to = np.cumsum(times)
    total, summed = int(up_to[-1]), int(values @ times)
    places = [max(1, math.ceil(share * total - 1e-9)) for share in _QUANTILES]
    p5, p50, p90, p95, p99 = values[np.searchsorted(up_to, places)].tolist()
    low, high = int(values[0]), int(values[-1])
    bins = _bins(values, times, tail=min(p99, 2 * p95 - low))
    return Distribution(
        total, summed, summed / total, low, p5, p50, p90, p95, p99, high, error=0.0, histogram=bins
    )


def _bins(values: np.ndarray, times: np.ndarray, tail: int) -> Bins:
    """About forty equally wide bins with round edges; a tail that flattens them is `beyond`."""
    low, high = int(values[0]), int(values[-1])
    if high - low > 1.5 * (tail - low) + _BINS:
        high = tail
    least = (high - low + 1) / _BINS
    width = next(m * 10**n for n in range(19) for m in (1, 2, 5) if m * 10**n >= least)
    first = low // width * width
    number = (high - first) // width + 1
    places = np.minimum((values - first) // width, number)
    *counts, beyond = np.bincount(places, weights=times, minlength=number + 1).astype(int).tolist()
    return Bins(tuple(first + n * width for n in range(number + 1)), tuple(counts), beyond)


@dataclass(frozen=True)
class Ranked:
    """One name of a ranking and its amounts."""

    name: str
    amounts: tuple[int, ...]


@dataclass(frozen=True)
class Ranking:
    """The largest names, what all others amount to, and how many names there are: exactly, or, if
    not `exact`, at least so many."""

    top: tuple[Ranked, ...]
    other: tuple[int, ...]
    distinct: int
    exact: bool

    @property
    def total(self) -> int:
        """The first amount of all names together."""
        return sum(item.amounts[0] for item in self.top) + self.other[0]


class NameCounts:
    """Sums per name, of one or several amounts; the first amount ranks. Only the first `most` names
    are told apart, which bounds the memory."""

    def __init__(self, amounts: int = 1, *, most: int = 20_000) -> None:
        self._sums: dict[str, list[int]] = {}
        self._rest = [0] * amounts
        self._most = most
        self._exact = True

    def add(self, name: str, amounts: Sequence[int] = (1,)) -> None:
        """Add `amounts` to those of `name`."""
        sums = self._sums.get(name)
        if sums is None and len(self._sums) < self._most:
            sums = self._sums[name] = [0] * len(self._rest)
        elif sums is None:
            sums, self._exact = self._rest, False
        for n, amount in enumerate(amounts):
            sums[n] += amount

    def ranking(self, most: int = 20) -> Ranking:
        """The `most` largest names."""
        ranked = sorted(self._sums.items(), key=lambda item: (-item[1][0], item[0]))
        rest = [self._rest, *(sums for _, sums in ranked[most:])]
        return Ranking(
            tuple(Ranked(name, tuple(sums)) for name, sums in ranked[:most]),
            tuple(map(sum, zip(*rest, strict=True))),
            len(self._sums),
            self._exact,
        )


def clipped(text: str, most: int = 120) -> str:
    """`text`, or its start and a short hash of the whole where it is longer than `most`."""
    if len(text) <= most:
        return text
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return f"{text[: most - 11]}… #{digest}"


OTHER = "other"

# Writing systems by the first word of their characters' Unicode names.
_KNOWN = {
    name.upper(): name
    for name in (
        "Latin Greek Cyrillic Armenian Hebrew Arabic Syriac Thaana Devanagari Bengali Gurmukhi "
        "Gujarati Oriya Tamil Telugu Kannada Malayalam Sinhala Thai Lao Tibetan Myanmar "
        "Georgian Hangul Ethiopic Cherokee Khmer Mongolian Han Kana Bopomofo"
    ).split()
} | {
    **dict.fromkeys(("CJK", "IDEOGRAPHIC"), "Han"),
    **dict.fromkeys(("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"), "Kana"),
}
# A Chinese text holds no kana; a Japanese one holds at least this share of it.
_KANA_SHARE = 0.05
_ASCII = bytes(range(128))
_NO_LETTERS = bytes(byte for byte in range(256) if byte >= 128 or not chr(byte).isalpha())


def main_script(texts: Iterable[str]) -> str:
    """The writing system of most letters: "Latin", "Japanese" ..., or "no letters"."""
    letters = letters_by_script(texts)
    kana, han = letters.pop("Kana", 0), letters.pop("Han", 0)
    if kana or han:
        letters["Japanese" if kana and kana >= _KANA_SHARE * (kana + han) else "Han"] = kana + han
    return max(sorted(letters), key=lambda name: letters[name]) if letters else "no letters"


def letters_by_script(texts: Iterable[str]) -> Counter[str]:
    """How many letters each writing system has, by Unicode's own names of the characters."""
    letters: Counter[str] = Counter()
    raw = "\n".join(texts).encode("utf-8", "ignore")
    # Every ASCII letter is Latin; only what is left has to be looked up.
    if latin := len(raw.translate(None, _NO_LETTERS)):
        letters["Latin"] = latin
    if not raw.isascii():
        for char, times in Counter(raw.translate(None, _ASCII).decode()).items():
            if script := _script(char):
                letters[script] += times
    return letters


@lru_cache(maxsize=1 << 14)
def _script(char: str) -> str:
    """The writing system of a letter, "" for any other character."""
    if not char.isalpha():
        return ""
    words = unicodedata.name(char, "").split()
    if words and words[0] in ("FULLWIDTH", "HALFWIDTH"):
        words = words[1:]
    return _KNOWN.get(words[0], OTHER) if words else OTHER
