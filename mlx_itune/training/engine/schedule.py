"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math


def learning_rate(
    step: int, steps: int, *, peak: float, warmup: float, schedule: str = "cosine"
) -> float:
    """The rate of `step` (from 1) of `steps`: a linear rise, then cosine, linear or constant.

    warmup: below 1 a share of the steps, else a number of them. The step after the last would be
    at 0, so no step is spent on nothing.
    """
    rise = min(steps, round(warmup * steps) if warmup < 1 else int(warmup))
    if step <= rise:
        return peak * step / rise
    if schedule == "constant":
        return peak
    left = (steps - step + 1) / (steps - rise)
    return peak * (left if schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left)))
