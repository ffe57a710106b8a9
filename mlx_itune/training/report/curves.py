"""A run's curves: thinned for the eye, smoothed, and with wild values told rather than drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mlx_itune.kit.axes import compact
from mlx_itune.kit.charts import line_chart
from mlx_itune.kit.page import Html, element, grid
from mlx_itune.training.report.story import Story

Points = Sequence[tuple[float, float]]

_DRAWN = 600
_AVERAGED = 5000
# A smoothed curve needs some steps to say more than the raw one.
_FEWEST_TO_SMOOTH = 12
# Values this many times above the 99th percentile would flatten everything else.
_WILD = 4.0
_GB = 1e9

STYLE = """
.both .s1{stroke:var(--c1);stroke-opacity:.32;stroke-width:1.2}.both .f1{fill:var(--c1);
fill-opacity:.4}
.both .s2{stroke:var(--c1);stroke-width:2.2}.both .f2{fill:var(--c1)}
.both .s3{stroke:var(--c2);stroke-width:2.2}.both .f3{fill:var(--c2)}
"""


def curves(story: Story) -> Html:
    """Loss, learning rate, gradient norm, throughput and memory over the steps."""
    return grid(
        _loss(story),
        _plain(
            {"learning rate": by_step(story, "learning_rate")}, "Learning rate", "learning rate"
        ),
        _with_smoothed(by_step(story, "gradient_norm"), "Gradient norm", "norm", "before clipping"),
        _plain(
            {"learned tokens": by_step(story, "supervised_tokens_per_second")},
            "Learned tokens per second",
            "tokens per second",
        ),
        _plain(
            {"all tokens": by_step(story, "tokens_per_second")},
            "All tokens per second",
            "tokens per second",
        ),
        _plain(
            {
                "peak": by_step(story, "peak_memory_bytes", 1 / _GB),
                "in use": by_step(story, "memory_bytes", 1 / _GB),
            },
            "Memory",
            "GB",
        ),
    )


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
        stretches = np.array_split(np.arange(len(finite)), _DRAWN // 2)
        kept = {0, len(finite) - 1}
        for stretch in stretches:
            values = finite[stretch, 1]
            kept |= {int(stretch[values.argmin()]), int(stretch[values.argmax()])}
        finite = finite[sorted(kept)]
    return [(float(x), float(y)) for x, y in finite]


def _loss(story: Story) -> Html:
    return _with_smoothed(
        by_step(story, "loss"),
        "Loss",
        "nats per learned token",
        "each step",
        valid=list(zip(story.valid_steps, story.valid_losses, strict=True)),
        weights=story.weights(),
        zero_below=0.4,
    )


def _with_smoothed(
    points: NDArray[np.float64],
    title: str,
    y_label: str,
    raw_name: str,
    valid: Points = (),
    weights: NDArray[np.float64] | None = None,
    zero_below: float = 1.0,
) -> Html:
    """The raw curve pale, its mean over it, and validation where there is any.

    The axis starts at zero if the lowest value is below that share of the highest.
    """
    drawn, note = _without_wild(points)
    # Of what is drawn: one wild value would drag the mean up for many steps.
    mean = smoothed(drawn, weights)
    series: dict[str, Points] = {raw_name: thinned(drawn)}
    if len(points) >= _FEWEST_TO_SMOOTH:
        series["smoothed"] = thinned(mean)
    kind = "both" if "smoothed" in series else ""
    if valid:
        series["validation"] = thinned(np.array(valid, dtype=np.float64))
    ys = [y for line in series.values() for _, y in line]
    chart = line_chart(
        series,
        title=title,
        x_label="step",
        y_label=y_label,
        from_zero=bool(ys) and min(ys) < zero_below * max(ys),
    )
    told = [element("p", {"class": "note"}, note)] if note else []
    return element("div", {"class": kind}, chart, *told)


def _plain(series: dict[str, NDArray[np.float64]], title: str, y_label: str) -> Html:
    drawn = {name: thinned(points) for name, points in series.items()}
    return element(
        "div", None, line_chart(drawn, title=title, x_label="step", y_label=y_label, from_zero=True)
    )


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
