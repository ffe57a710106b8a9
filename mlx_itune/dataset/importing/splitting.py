"""Which split a row goes to: a pure function of its content (or group) and the seed.

A row's position in [0, 1) is a hash; test takes the lowest positions, valid the next, train the
rest. Nothing else about the data enters, so added rows never move a row that was there. The price:
shares are met within chance (about the square root of a split's size), not to the row.

One exception, for small data: a split that was asked for and would get nothing takes the rows
nearest to it, as long as there are at least as many distinct rows (or groups) as splits.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from mlx_itune.dataset.importing.ledger import SPLITS
from mlx_itune.kit.errors import UsageError

# Bands lie in this order, so that a larger test or valid share moves few rows.
_BANDS = ("test", "valid", "train")
_RANGE = 1 << 64
_WATCHED = 10_000


@dataclass(frozen=True)
class Shares:
    """What each split was promised; the three add up to 1."""

    train: Fraction
    valid: Fraction
    test: Fraction

    def asked(self) -> tuple[str, ...]:
        """The splits with a share above 0."""
        return tuple(split for split in SPLITS if getattr(self, split))


def parse_shares(text: str) -> Shares:
    """ "0.9/0.05/0.05", "90/5/5" or "0.9/0.1" (train/valid/test). Raises UsageError."""
    hint = "write train/valid/test, such as 0.9/0.05/0.05 or 90/5/5"
    try:
        parts = [Fraction(part.strip().removesuffix("%").strip()) for part in text.split("/")]
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"--split {text!r} is not a list of numbers", hint=hint) from None
    if len(parts) not in (2, 3) or any(part < 0 for part in parts):
        raise UsageError(f"--split {text!r} is not two or three shares >= 0", hint=hint)
    total = sum(parts)
    if total not in (1, 100):
        raise UsageError(f"--split {text!r} adds up to {float(total):g}, not 1 or 100", hint=hint)
    parts = [part / total for part in parts] + [Fraction(0)] * (3 - len(parts))
    if not parts[0]:
        raise UsageError(f"--split {text!r} leaves nothing to train on", hint=hint)
    return Shares(*parts)


def position(name: bytes, seed: int) -> int:
    """Where a row or group lies: 64 uniform bits, the same on every machine."""
    key = f"split {seed}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8, key=key).digest(), "big")


class Splitter:
    """Answers with a split for each row and counts what it answered, by stratum.

    `moved` gives positions that do not follow their band (see `missing`).
    """

    def __init__(self, shares: Shares, moved: Mapping[int, str] | None = None) -> None:
        self._shares = shares
        self.moved = dict(moved or {})
        bands = {name: getattr(shares, name) for name in _BANDS}
        self._test_below = int(bands["test"] * _RANGE)
        self._valid_below = int((bands["test"] + bands["valid"]) * _RANGE)
        self.counts: dict[str, Counter[str]] = {}
        self._asked = shares.asked()
        # Positions met so far, by stratum; None once no row of it can be needed elsewhere.
        self._met: dict[str, dict[int, str] | None] = {}

    def choose(self, place: int, stratum: str = "") -> str:
        """The split of a row at `place`."""
        if place < self._test_below:
            split = "test"
        elif place < self._valid_below:
            split = "valid"
        else:
            split = "train"
        if self.moved:
            split = self.moved.get(place, split)
        counts = self.counts.get(stratum)
        if counts is None:
            counts = self.counts[stratum] = Counter()
            self._met[stratum] = {}
        counts[split] += 1
        met = self._met[stratum]
        if met is not None:
            met[place] = split
            if len(met) > _WATCHED or all(counts[name] for name in self._asked):
                self._met[stratum] = None
        return split

    def missing(self) -> dict[int, str]:
        """Positions to move so that every stratum has rows in every split asked for.

        Empty when there is nothing to do; otherwise the same rows have to be read again by a
        Splitter that was given this.
        """
        asked = self._asked
        moved: dict[int, str] = {}
        for stratum in sorted(self._met):
            met = self._met[stratum]
            if met is None or len(met) < len(asked):
                continue
            now = {place: moved.get(place, split) for place, split in met.items()}
            for split in asked:
                sizes = Counter(now.values())
                if sizes[split]:
                    continue
                giver = max(asked, key=lambda name: sizes[name])
                edge = self._edges()[split]
                place = min(
                    (place for place, other in now.items() if other == giver),
                    key=lambda place: (min(abs(place - edge[0]), abs(place - edge[1])), place),
                )
                now[place] = moved[place] = split
        return {**self.moved, **moved} if moved else {}

    def _edges(self) -> dict[str, tuple[int, int]]:
        return {
            "test": (0, self._test_below),
            "valid": (self._test_below, self._valid_below),
            "train": (self._valid_below, _RANGE),
        }


@dataclass
class Achieved:
    """Shares that came out, for dataset.json and people."""

    requested: Mapping[str, float]
    achieved: Mapping[str, float]
    strata: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def achieved(shares: Shares, splitter: Splitter, *, strata: bool) -> Achieved:
    """What was asked for and what came out."""
    total: Counter[str] = Counter()
    for counts in splitter.counts.values():
        total += counts
    rows = sum(total.values()) or 1
    return Achieved(
        {split: float(getattr(shares, split)) for split in SPLITS},
        {split: total[split] / rows for split in SPLITS},
        {name: dict(counts) for name, counts in sorted(splitter.counts.items())} if strata else {},
    )
