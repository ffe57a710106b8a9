"""`--time`: how many steps fit, decided once, before the run is recorded.

A few steps are made as the run would make them and forgotten again; from what they and a validation
took, the longest run is chosen that ends in time. Its number of steps stands in the run's settings
instead of the time, so that it is repeated and resumed like any other. Where the machine is slower
later, an earlier step ends the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mlx_itune.dataset.batching import Batch, planned_steps
from mlx_itune.kit.wording import count, duration
from mlx_itune.model.loading import backend
from mlx_itune.training.engine.microbatch import Example
from mlx_itune.training.engine.rate_search import SHARE
from mlx_itune.training.settings import FEW_STEPS, TrainSettings
from mlx_itune.training.settle import settled, validated_rows
from mlx_itune.training.setup import Setup

# Of the time, what is planned for: steps are slower later than when they are measured.
FILLED = 0.95
# What the measurement may take of it, in steps and rows at most.
_MEASURED, _MOST_STEPS, _MOST_ROWS = 0.03, 7, 32
# A run of fewer steps than this learns more from twice as many of half the rows, as long as each
# has so many learned tokens and is long beside what any step costs (docs/defaults.md).
_LONG_STEPS, _LEARNED_TOKENS, _FEWEST_ROWS = 1000, 64, 4


@dataclass(frozen=True)
class Rate:
    """Seconds of a step and of a validated row, and what it took to know them."""

    step_s: float
    row_s: float
    spent_s: float


def within(setup: Setup, asked: TrainSettings, began: float) -> Setup:
    """The setup with as many steps as fit into `asked.time`, counted from `began` (monotonic).

    asked: the settings before they were settled. The learner is as it was, bit for bit.
    """
    limit_s, ranks = asked.time_s or 0.0, setup.learner.ranks
    fewer = _rows_a_step(setup, asked)
    # A step or two tell whether the run is short.
    size = setup.settings.rows_per_step
    if fewer < size and limit_s / measured(setup, 0.0).step_s < _LONG_STEPS:
        setup = replace(setup, settings=replace(setup.settings, batch_size=fewer))
    rate = measured(setup, limit_s * _MEASURED)
    # Processes of one run decide the same.
    (left_s,) = ranks.numbers(FILLED * limit_s - (time.monotonic() - began))
    left_s /= ranks.size
    fixed = replace(asked, time=None, batch_size=setup.settings.batch_size)

    def run_of(steps: int) -> tuple[TrainSettings, tuple[str, ...]]:
        return settled(replace(fixed, steps=steps), setup.material)

    def seconds(steps: int) -> float:
        s, _ = run_of(steps)
        trials = SHARE if s.learning_rate == "auto" else 0.0
        validated = validated_rows(s, setup.material) * rate.row_s
        return (1 + trials) * steps * rate.step_s + validated

    rows = len(setup.material.train)
    size, epochs = setup.settings.rows_per_step, fixed.planned_epochs
    most = planned_steps(rows, size, epochs=epochs, steps=fixed.steps)
    steps = most if seconds(most) <= left_s else _largest(most, lambda n: seconds(n) <= left_s)
    settings, notes = run_of(steps)
    told = f"--time {asked.time}: {count(steps, 'step')} of {count(size, 'row')}, "
    told += f"{rate.step_s:.2g} s each"
    told += ", all that is asked for" if steps == most else ""
    told += f"; {duration(rate.spent_s)} to measure them"
    told += "; few steps teach little: give it more time" if steps < min(most, FEW_STEPS) else ""
    # What has to come after the last step: two validations, of which the second may be longer.
    after_s = 2 * rate.row_s * (settings.eval_rows or 0)
    ends = began + limit_s - min(after_s, limit_s / 10)
    return replace(setup, settings=settings, notes=(*notes, told), ends=ends)


def _rows_a_step(setup: Setup, asked: TrainSettings) -> int:
    """What `batch_size` is, or for a short run of rows that each teach much a part of it."""
    size, train = setup.settings.rows_per_step, setup.material.train
    if asked.batch_size is not None or asked.preset is not None or asked.steps is not None:
        return size
    learned = sum(int(np.count_nonzero(row.weights[1:])) for row in train) / len(train)
    tokens = sum(len(row.input_ids) for row in train) / len(train)
    least = 2 * setup.learner.ways.device.overhead_tokens
    half = size // 2
    enough = half * learned >= _LEARNED_TOKENS and half * tokens >= least
    return half if half >= max(_FEWEST_ROWS, setup.learner.ranks.size) and enough else size


def measured(setup: Setup, budget_s: float) -> Rate:
    """What a step of this run takes, over steps of few and of many tokens, and a validated row."""
    learner, train, s = setup.learner, setup.material.train, setup.settings
    plan = sorted(setup.plan(), key=lambda b: sum(len(train[r].input_ids) for r in b.rows))
    held, states, shapes = learner.held, learner.states, learner.shapes
    steps = [[train[row] for row in batch.rows] for batch in _spread(plan)]
    validated = setup.material.valid[:_MOST_ROWS]
    if not backend.on_cpu():
        learner.plan_shapes(steps)
    started = time.monotonic()

    def took(act: Callable[[], object]) -> float:
        """Seconds, the same in all processes; a GPU's first is not counted: it compiles."""
        for _ in range(1 if backend.on_cpu() else 2):
            begun = time.monotonic()
            act()
            seconds = time.monotonic() - begun
        return learner.ranks.numbers(seconds)[0] / learner.ranks.size

    def step(rows: Sequence[Example]) -> float:
        def act() -> None:
            learner.step(rows, s.peak / 100)
            learner.finish()

        return took(act)

    # The first finds nothing in any cache.
    first_s = step(steps[0])
    enough = max(1, min(len(steps), int(budget_s / first_s)))
    each_s = [step(rows) for rows in steps[:enough]]
    row_s = took(lambda: learner.evaluate(validated)) / len(validated) if validated else 0.0
    learner.held, learner.states = held, states
    learner.finish()
    learner.shapes = shapes
    return Rate(sum(each_s) / len(each_s), row_s, time.monotonic() - started)


def _spread(plan: Sequence[Batch]) -> list[Batch]:
    """The one in the middle, then those at a quarter and three, then at odd eighths."""
    places = [n / size for size in (2, 4, 8) for n in range(1, size, 2)]
    return [plan[int(place * len(plan))] for place in places[:_MOST_STEPS]]


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number that fits, or 1."""
    low, high = 1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
