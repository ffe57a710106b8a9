"""Which split a row goes to: a pure function of its content (or group) and the seed.

A row's position in [0, 1) is a hash; test takes the lowest positions, valid the next, train the
rest. Nothing else about the data enters, so added rows never move a row that was there. The price:
shares are met within chance (about the square root of a split's size), not to the row.

One exception, for small data: a split that was asked for and would get nothing takes the rows
nearest to it, as long as there are at least as many distinct rows (or groups) as splits.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction

from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.importing.provenance import SPLITS
from mlx_itune.kit.errors import UsageError

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
    """Answers with a split for each row and counts what it answered, by stratum.

    `moved` gives positions that do not follow their band (see `missing`).
    """

    def __init__(self, shares: Shares, moved: Mapping[int, str] | None = None) -> None:
        self.shares = shares
        self.moved = dict(moved or {})
        self.counts: dict[str, Counter[str]] = {}
        self._asked = [split for split in SPLITS if shares[split]]
        # In an order by which a larger test or valid share moves few rows.
        test, valid = (int((shares["test"] + more) * _RANGE) for more in (0, shares["valid"]))
        self._bands = {"test": (0, test), "valid": (test, valid), "train": (valid, _RANGE)}
        # Positions met so far, by stratum; None once no row of it can be needed elsewhere.
        self._met: dict[str, dict[int, str] | None] = {}

    def choose(self, place: int, stratum: str = "") -> str:
        """The split of a row at `place`."""
        bands = self._bands
        split = next(name for name, (_, end) in bands.items() if place < end)
        split = self.moved.get(place, split)
        counts = self.counts.setdefault(stratum, Counter())
        counts[split] += 1
        met = self._met.setdefault(stratum, {})
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
        moved: dict[int, str] = {}
        for stratum in sorted(self._met):
            met = self._met[stratum]
            if met is None or len(met) < len(self._asked):
                continue
            now = {place: moved.get(place, split) for place, split in met.items()}
            for split in self._asked:
                sizes = Counter(now.values())
                if sizes[split]:
                    continue
                giver = max(self._asked, key=lambda name: sizes[name])
                low, high = self._bands[split]
                place = min(
                    (place for place, other in now.items() if other == giver),
                    key=lambda place: (min(abs(place - low), abs(place - high)), place),
                )
                now[place] = moved[place] = split
        return {**self.moved, **moved} if moved else {}

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

    `see` takes every row's content hash once; `of` answers after that.
    """

    def __init__(self, by: str) -> None:
        self._by = by
        self._group_of: dict[int, int] = {}
        self._above: dict[int, int] = {}
        self.is_tagged = False

    def see(self, row: Conversation, content: int) -> None:
        """A row, whose content hash is `content`."""
        value = self._value(row)
        self.is_tagged |= value is not None
        group = self._root(content if value is None else _hash(value))
        other = self._root(self._group_of.setdefault(content, group))
        if group != other:
            self._above[max(group, other)] = min(group, other)

    def of(self, content: int) -> int:
        """What stands for all rows that have to be on the same side as this one."""
        return self._root(self._group_of.get(content, content))

    def _value(self, row: Conversation) -> str | None:
        """A tag, or the first question without case and spacing, so that it is one when asked
        twice."""
        if self._by != FIRST_TURN:
            return row.tags.get(self._by)
        asked = (turn.content for turn in row.turns if turn.role == "user")
        first = next(asked, None)
        return None if first is None else " ".join(first.casefold().split())

    def _root(self, group: int) -> int:
        while (above := self._above.get(group, group)) != group:
            self._above[group] = self._above.get(above, above)
            group = above
        return group


def _hash(value: str) -> int:
    said = b"group " + value.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(said, digest_size=8).digest(), "big")
