"""A line chart as inline SVG, from finite numbers; coloured by the page's style sheet.

It has a title, labelled axes with round ticks, and a tooltip with the exact number on each mark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlx_itune.kit.page import Html, element, join

WIDTH, HEIGHT = 560, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 34, 44
_CHAR_WIDTH = 6.6
# Of so few points each gets a dot.
_DOTTED = 40

Points = Sequence[tuple[float, float]]
Attributes = dict[str, str | float | bool]


@dataclass(frozen=True)
class Scale:
    """Maps values [low, high] to places [left, right]; one value stands in the middle."""

    low: float
    high: float
    left: float
    right: float

    def __call__(self, value: float) -> float:
        """Where `value` stands."""
        if self.high == self.low:
            return (self.left + self.right) / 2
        # Divided first: the distance of two huge values may not be a finite number.
        share = (value / 2 - self.low / 2) / (self.high / 2 - self.low / 2)
        return self.left + share * (self.right - self.left)

    def ticks(self, target: int, *, whole: bool = False) -> list[float]:
        """Round values within it, at least one of them."""
        step = nice_step(self.low, self.high, target)
        step = max(step, 1.0) if whole else step
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        ticks = [round(n * step, 12) if step > 1e-9 else n * step for n in range(first, last + 1)]
        return ticks or [self.low]


def nice_step(low: float, high: float, target: int) -> float:
    """The 1, 2 or 5 times a power of ten that cuts [low, high] into about `target` parts."""
    raw = high / target - low / target
    if raw <= 0 or not math.isfinite(raw):
        return 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * s for s in (1.0, 2.0, 5.0, 10.0, 20.0) if power * s >= raw * (1 - 1e-9))


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
    return f"{value:.{_digits(step)}f}" if step and 1e-4 <= step < 1 else f"{value:.3g}"


def line_chart(
    series: Mapping[str, Points], *, title: str, x_label: str, y_label: str, from_zero: bool = False
) -> Html:
    """A line per name through its finite (x, y) points, with a legend where there are several."""
    drawn = {name: points for name, points in series.items() if points}
    parts = [_text(0, 14, title, "title")]
    if drawn:
        parts += _drawing(drawn, x_label, y_label, from_zero)
    else:
        parts.append(_text(WIDTH / 2, 56, "nothing to show", "tick mid"))
    height = HEIGHT if drawn else 90
    box = {"viewBox": f"0 0 {WIDTH} {height}", "role": "img", "aria-label": title}
    return element("figure", {"class": "chart"}, element("svg", box, join(parts)))


def _drawing(
    drawn: Mapping[str, Points], x_label: str, y_label: str, from_zero: bool
) -> list[Html]:
    xs = [x for points in drawn.values() for x, _ in points]
    ys = [y for points in drawn.values() for _, y in points]
    several = len(drawn) > 1
    x = Scale(min(xs), max(xs), _LEFT, WIDTH - _RIGHT)
    low, high = min(0.0, *ys) if from_zero else min(ys), max(ys)
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = (low, low + pad) if low == 0 else (low - pad, low + pad)
    step = nice_step(low, high, 4)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    y = Scale(low, high, HEIGHT - _BOTTOM, _TOP + (34 if several else 14))
    parts = [_y_axis(y, y_label), _x_axis(x, x_label, all(float(v).is_integer() for v in xs))]
    for colour, (name, points) in enumerate(drawn.items(), 1):
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
        last = _tooltip(name, points[-1])
        parts.append(element("polyline", {"points": path, "class": f"line s{colour}"}, last))
        for a, b in points if len(points) <= _DOTTED else ():
            dot: Attributes = {"cx": x(a), "cy": y(b), "r": 2.6, "class": f"dot f{colour}"}
            parts.append(element("circle", dot, _tooltip(name, (a, b))))
    return [*parts, *(_legend(list(drawn)) if several else ())]


def _y_axis(y: Scale, label: str) -> Html:
    ticks = y.ticks(4)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 0
    lines = [_line(_LEFT, y(t), WIDTH - _RIGHT, y(t), "zero" if t == 0 else "grid") for t in ticks]
    labels = [_text(_LEFT - 7, y(t) + 4, compact(t, step), "tick end") for t in ticks]
    wide = _CHAR_WIDTH * len(label) > _LEFT - 10
    place, kind = (0.0, "axis") if wide else (_LEFT - 7.0, "axis end")
    return join([*lines, *labels, _text(place, min(map(y, ticks)) - 14, label, kind)])


def _x_axis(x: Scale, label: str, whole: bool) -> Html:
    at, ticks = HEIGHT - _BOTTOM, x.ticks(6, whole=whole) if x.high > x.low else [x.low]
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 0
    marks = [_line(x(tick), at, x(tick), at + 4, "zero") for tick in ticks]
    words = [_text(x(tick), at + 16, compact(tick, step), "tick mid") for tick in ticks]
    name = _text((x.left + x.right) / 2, at + 35, label, "axis mid")
    return join([_line(x.left, at, x.right, at, "zero"), *marks, *words, name])


def _legend(names: Sequence[str]) -> list[Html]:
    parts, left, at = [], float(_LEFT), _TOP + 2
    for colour, name in enumerate(names, 1):
        shown = name if len(name) <= 22 else name[:21] + "…"
        box: Attributes = {"x": left, "y": at - 9, "width": 10, "height": 10}
        parts.append(element("rect", {**box, "class": f"f{colour}"}))
        parts.append(_text(left + 15, at, shown, "tick"))
        left += _CHAR_WIDTH * len(shown) + 34
    return parts


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Html:
    return element("line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "class": kind})


def _text(x: float, y: float, text: str, kind: str) -> Html:
    return element("text", {"x": x, "y": y, "class": kind}, text)


def _tooltip(name: str, point: tuple[float, float]) -> Html:
    return element("title", None, f"{name}: {point[1]:.4g} at {point[0]:,.10g}")


def _digits(step: float) -> int:
    """Decimal places that tell multiples of `step` apart."""
    return 0 if step >= 1 else min(6, -math.floor(math.log10(step) + 1e-9))
