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
# A smoothed curve needs some steps to say more than the raw one.
_FEWEST_TO_SMOOTH = 12
# Values this many times above the 99th percentile would flatten everything else.
_WILD = 4.0
WIDTH, HEIGHT = 350, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 68, 44
_CHAR_WIDTH = 6.6
# Of so few points each gets a dot.
_DOTTED = 40

Points = Sequence[tuple[float, float]]
Curve = NDArray[np.float64]
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
    return grid(*(_drawn(story, chart) for chart in CHARTS), kind="charts")


def by_step(story: Story, name: str, factor: float = 1.0) -> Curve:
    """(step, value) of every step, (N, 2) float64."""
    steps = np.array(story.steps, dtype=np.float64)
    return np.stack([steps, story.curve(name) * factor], axis=1)


def smoothed(points: Curve, weights: Curve | None = None) -> Curve:
    """The exponential mean, bias-corrected and weighted, of the finite `points` (N, 2) float64.

    It looks back over some 3 % of the run, and over 10 steps at least.
    """
    finite = np.isfinite(points[:, 1])
    weights = np.ones(len(points)) if weights is None or not weights.any() else weights
    points, weights = points[finite], weights[finite]
    keep = 1.0 - 1.0 / max(10.0, 0.03 * len(points))
    total = weight = 0.0
    means = []
    for value, more in zip(points[:, 1].tolist(), weights.tolist(), strict=True):
        total, weight = keep * total + value * more, keep * weight + more
        means.append(total / weight if weight else np.nan)
    return np.stack([points[:, 0], np.array(means, dtype=np.float64)], axis=1)


def thinned(points: Curve) -> list[tuple[float, float]]:
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
            weights = story.tokens() if column == "loss" else None
            series["smoothed"] = thinned(smoothed(points, weights))
    if chart.title == "Loss" and story.validations:
        series["validation"] = thinned(np.array([*story.validations.items()], np.float64))
    ys = [y for line in series.values() for _, y in line]
    from_zero = not chart.smooth or (bool(ys) and min(ys) < chart.zero_below * max(ys))
    marks = _marks(story) if chart.title == "Loss" and any(series.values()) else {}
    drawn = line_chart(
        series, title=chart.title, y_label=chart.unit, from_zero=from_zero, marks=marks
    )
    told = [element("p", {"class": "note"}, note)] if note else []
    return element("div", {"class": "both" if "smoothed" in series else ""}, drawn, *told)


def _marks(story: Story) -> dict[int, str]:
    """The best step, and the one that ships where it is another."""
    marks = {story.best_learned[0]: "best"} if story.best_learned else {}
    ships = story.end.get("adapter_step")
    if isinstance(ships, int) and ships in story.steps:
        marks[ships] = "best, ships" if ships in marks else "ships"
    return marks


def _without_wild(points: Curve) -> tuple[Curve, str]:
    """`points` with wild values as NaN, and one line that says where they were."""
    values = points[:, 1]
    finite = values[np.isfinite(values)]
    # The first steps of a run may be its highest, and are its story.
    limit = _WILD * float(np.quantile(finite, 0.99)) if len(finite) >= 100 else np.inf
    wild = values > max(limit, 0.0)
    if not wild.any():
        return points, ""
    step, highest = points[wild][values[wild].argmax()]
    calm = points.copy()
    calm[wild, 1] = np.nan
    many = "1 step is" if wild.sum() == 1 else f"{wild.sum():,} steps are"
    return calm, (
        f"{many} above {limit:,.3g} and not drawn; "
        f"the highest is {highest:.4g} at step {step:,.0f}."
    )


def round_step(low: float, high: float, parts: int) -> float:
    """The 1, 2 or 5 times a power of ten that cuts [low, high] into about so many parts."""
    raw = (high - low) / parts
    if raw <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * s for s in (1.0, 2.0, 5.0, 10.0, 20.0) if power * s >= raw * (1 - 1e-9))


def _ticks(low: float, high: float, step: float) -> list[float]:
    """The multiples of a step in [low, high], or `low`."""
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)] or [low]


def line_chart(
    series: Mapping[str, Points],
    *,
    title: str,
    y_label: str,
    from_zero: bool = False,
    marks: Mapping[int, str] | None = None,
) -> Html:
    """A line per name through its finite (step, value) points, with a legend of several. marks:
    what is said of a step."""
    drawn = {name: points for name, points in series.items() if points}
    parts = [_text(0, 14, title, "title")]
    if drawn:
        parts += _drawing(drawn, y_label, from_zero, marks or {})
    else:
        parts.append(_text(WIDTH / 2, 56, "nothing to show", "tick mid"))
    height = HEIGHT if drawn else 90
    box = {"viewBox": f"0 0 {WIDTH} {height}", "role": "img", "aria-label": title}
    return element("figure", {"class": "chart"}, element("svg", box, join(parts)))


def _drawing(
    drawn: Mapping[str, Points], y_label: str, from_zero: bool, marks: Mapping[int, str]
) -> list[Html]:
    xs = [x for points in drawn.values() for x, _ in points]
    ys = [y for points in drawn.values() for _, y in points]
    low, high = min(0.0, *ys) if from_zero else min(ys), max(ys)
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = (low, low + pad) if low == 0 else (low - pad, low + pad)
    step = round_step(low, high, 4)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    left, right, foot = min(xs), max(xs), HEIGHT - _BOTTOM

    def x(value: float) -> float:
        return float(np.interp(value, (left, right), (_LEFT, WIDTH - _RIGHT)))

    def y(value: float) -> float:
        return float(np.interp(value, (low, high), (foot, _TOP)))

    parts = []
    for tick in _ticks(low, high, step):
        kind = "zero" if tick == 0 else "grid"
        parts.append(_line(_LEFT, y(tick), WIDTH - _RIGHT, y(tick), kind))
        parts.append(_text(_LEFT - 7, y(tick) + 4, _short(tick), "tick end"))
    parts.append(_line(_LEFT, foot, WIDTH - _RIGHT, foot, "zero"))
    for tick in _ticks(left, right, max(round_step(left, right, 4), 1.0)):
        parts.append(_line(x(tick), foot, x(tick), foot + 4, "zero"))
        parts.append(_text(x(tick), foot + 16, _short(tick), "tick mid"))
    parts.append(_text(0, _TOP - 14, y_label, "axis"))
    parts.append(_text((_LEFT + WIDTH - _RIGHT) / 2, foot + 35, "step", "axis mid"))
    for row, (step_at, told) in enumerate(sorted(marks.items())):
        at = x(step_at)
        side = "tick end" if at > WIDTH / 2 else "tick"
        told = f"{told}: step {step_at:,}"
        parts.append(_line(at, _TOP, at, foot, "mark"))
        parts.append(_text(at + (-4 if at > WIDTH / 2 else 4), _TOP + 11 + 14 * row, told, side))
    for colour, (name, points) in enumerate(drawn.items(), 1):
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
        last = _tooltip(name, points[-1])
        parts.append(element("polyline", {"points": path, "class": f"line s{colour}"}, last))
        for a, b in points if len(points) <= _DOTTED else ():
            dot: Attributes = {"cx": x(a), "cy": y(b), "r": 2.6, "class": f"dot f{colour}"}
            parts.append(element("circle", dot, _tooltip(name, (a, b))))
    return [*parts, *(_legend(drawn) if len(drawn) > 1 else ())]


def _legend(names: Mapping[str, Points]) -> list[Html]:
    parts, left = [], float(_LEFT)
    # Two rows where one is too narrow.
    at = 36 if sum(_CHAR_WIDTH * min(len(n), 22) + 34 for n in names) < WIDTH - _LEFT else 29
    for colour, name in enumerate(names, 1):
        shown = name if len(name) <= 22 else name[:21] + "…"
        if left + _CHAR_WIDTH * len(shown) + 15 > WIDTH and at == 29:
            left, at = float(_LEFT), 43
        box: Attributes = {"x": left, "y": at - 9, "width": 10, "height": 10}
        box["class"] = f"f{colour}"
        parts += [element("rect", box), _text(left + 15, at, shown, "tick")]
        left += _CHAR_WIDTH * len(shown) + 34
    return parts


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Html:
    return element("line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "class": kind})


def _text(x: float, y: float, text: str, kind: str) -> Html:
    return element("text", {"x": x, "y": y, "class": kind}, text)


def _tooltip(name: str, point: tuple[float, float]) -> Html:
    return element("title", None, f"{name}: {point[1]:.4g} at {point[0]:,.10g}")


def _short(value: float) -> str:
    return f"{value:,.6g}"
