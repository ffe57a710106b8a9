"""A run's curves: thinned for the eye, smoothed, and with wild values told rather than drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlx_itune.kit.page import Html, element, grid
from mlx_itune.training.report.charts import Points, compact, line_chart
from mlx_itune.training.report.story import Story

_DRAWN = 600
_AVERAGED = 5000
# A smoothed curve needs some steps to say more than the raw one.
_FEWEST_TO_SMOOTH = 12
# Values this many times above the 99th percentile would flatten everything else.
_WILD = 4.0

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
