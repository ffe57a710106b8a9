"""`--learning-rate auto`: a few short trials on the run's first rows, from the same start.

The first trial is at the usual rate of the kind of adapter; from there half a decade up as long as
that is better, else down. What is compared is the loss on the rows that the run would learn next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from mlx_itune.dataset.batching import Batch
from mlx_itune.model.loading import backend
from mlx_itune.training.engine.microbatch import Example
from mlx_itune.training.engine.step import Learner
from mlx_itune.training.run.run import RateSearch, RateTried

# All trials together: a tenth of the run's steps, and no more than so many.
SHARE, MOST_STEPS = 0.1, 60
MOST_TRIALS, LEAST_STEPS, STEPS = 5, 3, 10
# What is compared after a trial is the loss on so many rows.
JUDGED_ROWS = 32


def trial_steps(steps: int) -> tuple[int, int]:
    """How many trials a run of so many steps pays for, and steps of each; (0, 0): not enough."""
    budget = min(MOST_STEPS, int(SHARE * steps))
    trials = min(MOST_TRIALS, budget // LEAST_STEPS)
    return (trials, min(STEPS, budget // trials)) if trials >= 3 else (0, 0)


def search(
    learner: Learner,
    rows: Sequence[Example],
    plan: Sequence[Batch],
    usual: float,
    *,
    below: float = 1.0,
    tell: Callable[[dict[str, Any]], None] = lambda _: None,
) -> RateSearch:
    """Try rates around `usual`; the learner is then, bit for bit, as it was.

    below: no rate is this high. tell: gets an event for every trial.
    """
    trials, steps = trial_steps(len(plan))
    learned = [[rows[row] for row in batch.rows] for batch in plan[:steps]]
    later = (rows[row] for batch in plan[steps:] for row in batch.rows)
    judged = [*islice(later, JUDGED_ROWS)]
    held, states, shapes = learner.held, learner.states, learner.shapes
    if not backend.on_cpu():
        learner.plan_shapes(learned)
    tried: dict[int, float] = {}

    def rate(place: int) -> float:
        """Half a decade per place, of one digit."""
        return float(f"{usual * 10 ** (place / 2):.0e}")

    def loss(place: int) -> float:
        if place in tried or len(tried) == trials or not 0 < rate(place) < below:
            return tried.get(place, math.inf)
        for number, batch in enumerate(learned):
            learner.step(batch, rate(place) * min(1.0, (number + 1) / 2))
        learner.finish()
        found = learner.evaluate(judged)
        learner.held, learner.states = held, states
        learner.finish()
        tried[place] = found if math.isfinite(found) else math.inf
        tell({"event": "rate", "learning_rate": rate(place), "steps": steps, "loss": found})
        return tried[place]

    if trials:
        best = 0
        way = 1 if loss(1) < loss(0) else -1
        while loss(best + way) < loss(best):
            best += way
    learner.shapes = shapes
    finite = [(tried[place], rate(place)) for place in tried if tried[place] < math.inf]
    curve = tuple(
        RateTried(rate(place), tried[place] if tried[place] < math.inf else None)
        for place in sorted(tried)
    )
    return RateSearch(min(finite)[1] if finite else usual, steps, curve)
