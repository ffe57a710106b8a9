"""How much of each source a mixture holds: shares, whole quotas, and a keyed draw."""

from __future__ import annotations

import hashlib
import math
import sys
from bisect import bisect_right
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate

from mlx_itune.kit.errors import DataError, UsageError, closest


def mix(
    sizes: Mapping[str, int],
    *,
    cap: int | None = None,
    weights: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """The share of each source, in the order of `sizes`; they sum to 1.

    A source's rate is its number of rows, at most `cap`. Explicit `weights` win over both: a
    source they do not name gets nothing. Raises UsageError for what is no weight (negative, not
    finite), a name that is no source, or shares that would sum to 0; DataError for no rows.
    """
    if not sizes:
        raise UsageError("there is nothing to mix")
    for name, rows in sizes.items():
        if isinstance(rows, bool) or not isinstance(rows, int) or rows < 0:
            raise UsageError(f"source {name!r} cannot have {rows!r} rows")
    if cap is not None and (isinstance(cap, bool) or not isinstance(cap, int) or cap < 1):
        raise UsageError(f"a cap of {cap!r} rows leaves nothing", hint="use a whole number above 0")
    if weights is None:
        rates = {
            name: float(rows if cap is None else min(rows, cap)) for name, rows in sizes.items()
        }
    else:
        rates = _explicit(sizes, weights)
    largest = max(rates.values())
    if largest == 0:
        if weights is None:
            raise DataError("no source of the mixture has a row")
        raise UsageError("the weights sum to 0")
    # Scaled first, so that weights near the largest float do not sum to infinity.
    scaled = {name: rate / largest for name, rate in rates.items()}
    total = math.fsum(scaled.values())
    return {name: rate / total for name, rate in scaled.items()}


def quotas(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """`total` rows divided by `shares`, in whole rows (largest remainder, ties in order).

    Raises UsageError for a negative total and for shares that are no shares.
    """
    if isinstance(total, bool) or not isinstance(total, int) or total < 0:
        raise UsageError(f"cannot divide {total!r} rows")
    checked = mix(dict.fromkeys(shares, 1), weights=shares)
    # Fractions, so that the whole parts can never add up to more than there is.
    parts = {name: Fraction(share) for name, share in checked.items()}
    exact = {name: part * total / sum(parts.values()) for name, part in parts.items()}
    whole = {name: math.floor(rows) for name, rows in exact.items()}
    by_remainder = sorted(exact, key=lambda name: whole[name] - exact[name])
    for name in by_remainder[: total - sum(whole.values())]:
        whole[name] += 1
    return whole


def pick(shares: Mapping[str, float], index: int, seed: int) -> str:
    """The source of draw number `index`: a pure function of its arguments."""
    names, borders = _borders(tuple(shares.items()))
    key = hashlib.blake2b(f"mix {seed}".encode(), digest_size=32).digest()
    drawn = hashlib.blake2b(str(index).encode(), digest_size=8, key=key).digest()
    point = int.from_bytes(drawn, "big") / 2**64 * borders[-1]
    return names[min(bisect_right(borders, point), len(names) - 1)]


@lru_cache(maxsize=16)
def _borders(items: tuple[tuple[str, float], ...]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    shares = mix({name: 1 for name, _ in items}, weights=dict(items))
    # A source of share 0 must not be met even by a point that rounds onto its border.
    named = [(name, share) for name, share in shares.items() if share > 0]
    return tuple(name for name, _ in named), tuple(accumulate(share for _, share in named))


def _explicit(sizes: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, float]:
    for name, weight in weights.items():
        if name not in sizes:
            near = closest(name, sizes)
            hint = f"did you mean {near}?" if near else "the sources are " + ", ".join(sizes)
            raise UsageError(f"a weight is given for {name!r}, which is no source", hint=hint)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise UsageError(f"the weight of {name!r} is {weight!r}, not a number")
        if not 0 <= weight <= sys.float_info.max:
            raise UsageError(f"the weight of {name!r} is {weight}, not a finite number >= 0")
        if weight > 0 and sizes[name] == 0:
            raise DataError(f"source {name!r} has weight {weight} and no row")
    return {name: float(weights.get(name, 0)) for name in sizes}
