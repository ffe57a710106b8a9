"""Axes: round ticks, short numbers, and a straight line from values to places."""

from __future__ import annotations

import math
from dataclasses import dataclass

_STEPS = (1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True)
class Scale:
    """Maps values [low, high] to places [left, right]; `whole` if the values are counts."""

    low: float
    high: float
    left: float
    right: float
    whole: bool = False

    def __call__(self, value: float) -> float:
        """Where `value` stands; a range of one value stands in the middle."""
        if self.high == self.low:
            return (self.left + self.right) / 2
        # Divided first: the distance of two huge values may not be a finite number.
        share = value / 2 - self.low / 2
        return self.left + share / (self.high / 2 - self.low / 2) * (self.right - self.left)


def round_scale(
    low: float, high: float, left: float, right: float, *, whole: bool = False
) -> Scale:
    """A scale whose ends are round numbers."""
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = (low, low + pad) if low == 0 else (low - pad, low + pad)
    step = nice_step(low, high, 4, whole=whole)
    top = math.ceil(high / step - 1e-9) * step
    return Scale(math.floor(low / step + 1e-9) * step, top, left, right, whole)


def nice_step(low: float, high: float, target: int, *, whole: bool = False) -> float:
    """The 1, 2 or 5 times a power of ten that cuts [low, high] into about `target` parts."""
    raw = high / target - low / target
    if raw <= 0 or not math.isfinite(raw):
        return 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((power * s for s in _STEPS if power * s >= raw * (1 - 1e-9)), 10 * power)
    return max(step, 1.0) if whole else step


def nice_ticks(low: float, high: float, target: int = 5, *, whole: bool = False) -> list[float]:
    """Round values within [low, high], at least one of them."""
    if high <= low:
        return [low]
    step = nice_step(low, high, target, whole=whole)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    ticks = [round(n * step, 12) if step > 1e-9 else n * step for n in range(first, last + 1)]
    return ticks or [low]


def compact(value: float, step: float = 0.0) -> str:
    """A short number: 950, 1,200, 12.5k, 3.1M; `step` says how fine it has to be."""
    size = abs(value)
    for limit, divisor, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if size >= limit and size < 1e15:
            digits = _digits(step / divisor) if step else (1 if size < 100 * divisor else 0)
            text = f"{value / divisor:,.{digits}f}"
            return (text.rstrip("0").rstrip(".") if "." in text else text) + letter
    if (float(value).is_integer() or size >= 1000) and size < 1e15:
        return f"{value:,.0f}"
    if step and 1e-4 <= step < 1:
        return f"{value:.{_digits(step)}f}"
    return f"{value:.3g}"


def _digits(step: float) -> int:
    """Decimal places that tell multiples of `step` apart."""
    return 0 if step >= 1 else min(6, -math.floor(math.log10(step) + 1e-9))
