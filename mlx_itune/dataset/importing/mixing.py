"""How much of each source a mixture holds: shares, and whole quotas."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from fractions import Fraction

from mlx_itune.kit.errors import DataError, UsageError
from mlx_itune.kit.wording import did_you_mean


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
