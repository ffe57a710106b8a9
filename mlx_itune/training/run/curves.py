"""A run's curves: thinned for the eye, smoothed, and with wild values told rather than drawn.

Each is a line chart as inline SVG, coloured by the page's style sheet: a title, labelled axes with
round ticks, and a tooltip with the exact number on each mark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlx_itune.kit.page import Html, element, grid, join
from mlx_itune.training.run.story import Story

_DRAWN = 600
_AVERAGED = 5000
# A smoothed curve needs some steps to say more than the raw one.
_FEWEST_TO_SMOOTH = 12
# Values this many times above the 99th percentile would flatten everything else.
_WILD = 4.0
WIDTH, HEIGHT = 560, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 34, 44
_CHAR_WIDTH = 6.6
# Of so few points each gets a dot.
_DOTTED = 40

Points = Sequence[tuple[float, float]]
Attributes = dict[str, str | float | bool]

STYLE = """
.both .s1{stroke:var(--c1);stroke-opacity:.32;stroke-width:1.2}.both .f1{fill:var(--c1);
fill-opacity:.4}
.both .s2{stroke:var(--c1);stroke-width:2.2}.both .f2{fill:var(--c1)}
.both .s3{stroke:var(--c2);stroke-width:2.2}.both .f3{fill:var(--c2)}
"""


@dataclass(frozen=True)
class Chart:
    """A chart of columns of the steps, by the names of their lines. smooth: the mean is drawn over
    the raw curve, and wild values are not; zero_below: the axis starts at zero if the lowest value
    is below that share of the highest."""

    title: str
    unit: str
    lines: Mapping[str, str]
    smooth: bool = False
    zero_below: float = 1.0
    factor: float = 1.0


CHARTS = (
    Chart("Loss", "nats per learned token", {"each step": "loss"}, smooth=True, zero_below=0.4),
    Chart("Learning rate", "learning rate", {"learning rate": "learning_rate"}),
    Chart("Gradient norm", "norm", {"before clipping": "gradient_norm"}, smooth=True),
    Chart(
        "Learned tokens per second",
        "tokens per second",
        {"learned tokens": "supervised_tokens_per_second"},
    ),
    Chart("All tokens per second", "tokens per second", {"all tokens": "tokens_per_second"}),
    Chart("Memory", "GB", {"peak": "peak_memory_bytes", "in use": "memory_bytes"}, factor=1e-9),
)


def curves(story: Story) -> Html:
    """Loss, learning rate, gradient norm, throughput and memory over the steps."""
    return grid(*(_drawn(story, chart) for chart in CHARTS))


def by_step(story: Story, name: str, factor: float = 1.0) -> NDArray[np.float64]:
    """(step, value) of every step, (N, 2) float64."""
    steps = np.array(story.steps, dtype=np.float64)
    return np.stack([steps, story.curve(name).astype(np.float64) * factor], axis=1)


def smoothed(
    points: NDArray[np.float64], weights: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """The exponential mean, bias-corrected and weighted, of the finite `points` (N, 2) float64.

    It looks back over some 3 % of the run, and over 10 steps at least. Of more than some thousand
    points, equal stretches are averaged first: the result is shorter then.
    """
    finite = np.isfinite(points[:, 1])
    weights = np.ones(len(points)) if weights is None or not weights.any() else weights
    steps, values, weights = points[finite, 0], points[finite, 1], weights[finite]
    values = values * weights
    if len(steps) > 2 * _AVERAGED:
        starts = np.linspace(0, len(steps), _AVERAGED, endpoint=False).astype(np.int64)
        steps = steps[np.append(starts[1:], len(steps)) - 1]
        values, weights = np.add.reduceat(values, starts), np.add.reduceat(weights, starts)
    keep = 1.0 - 1.0 / max(10.0, 0.03 * len(steps))
    total = weight = 0.0
    means = []
    for value, more in zip(values.tolist(), weights.tolist(), strict=True):
        total, weight = keep * total + value, keep * weight + more
        means.append(total / weight if weight else np.nan)
    return np.stack([steps, np.array(means, dtype=np.float64)], axis=1)


def thinned(points: NDArray[np.float64]) -> list[tuple[float, float]]:
    """At most some 600 of the finite `points` (N, 2): the lowest and highest of each stretch."""
    finite = points[np.isfinite(points[:, 1])]
    if len(finite) > _DRAWN:
        kept = {0, len(finite) - 1}
        for stretch in np.array_split(np.arange(len(finite)), _DRAWN // 2):
            values = finite[stretch, 1]
            kept |= {int(stretch[values.argmin()]), int(stretch[values.argmax()])}
        finite = finite[sorted(kept)]
    return [(float(x), float(y)) for x, y in finite]


def _drawn(story: Story, chart: Chart) -> Html:
    series: dict[str, Points] = {}
    note = ""
    for name, column in chart.lines.items():
        points = by_step(story, column, chart.factor)
        if chart.smooth:
            points, note = _without_wild(points)
        series[name] = thinned(points)
        if chart.smooth and len(points) >= _FEWEST_TO_SMOOTH:
            # Of what is drawn: one wild value would drag the mean up for many steps.
            weights = story.weights() if column == "loss" else None
            series["smoothed"] = thinned(smoothed(points, weights))
    if chart.title == "Loss" and story.valid_steps:
        series["validation"] = thinned(np.array([story.valid_steps, story.valid_losses], float).T)
    ys = [y for line in series.values() for _, y in line]
    from_zero = not chart.smooth or (bool(ys) and min(ys) < chart.zero_below * max(ys))
    drawn = line_chart(
        series, title=chart.title, x_label="step", y_label=chart.unit, from_zero=from_zero
    )
    told = [element("p", {"class": "note"}, note)] if note else []
    return element("div", {"class": "both" if "smoothed" in series else ""}, drawn, *told)


def _without_wild(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], str]:
    """`points` with wild values as NaN, and one line that says where they were."""
    values = points[:, 1]
    finite = values[np.isfinite(values)]
    # The first steps of a run may be its highest, and are its story.
    limit = _WILD * float(np.quantile(finite, 0.99)) if len(finite) >= 100 else np.inf
    wild = np.flatnonzero(values > limit) if limit > 0 else np.array([], dtype=np.int64)
    if not len(wild):
        return points, ""
    highest = int(wild[values[wild].argmax()])
    calm = points.copy()
    calm[wild, 1] = np.nan
    many = "1 step is" if len(wild) == 1 else f"{len(wild):,} steps are"
    return calm, (
        f"{many} above {compact(limit)} and not drawn; "
        f"the highest is {values[highest]:.4g} at step {points[highest, 0]:,.0f}."
    )


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
