"""What a run has done so far, and what it came to.

Everything but the clock is a pure function of settings, data and step, so a run that was killed
and resumed reports the same numbers as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from mlx_itune.dataset.batching import Batch
from mlx_itune.training.engine.step import StepMetrics

# Steps that the reported train loss is the mean of, and in which skipped ones are counted.
WINDOW_STEPS = 20
SKIPS_IN_A_ROW = 5
SKIPS_IN_WINDOW = 10


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Nats per unit of weight; None: not known (yet), or not finite."""

    train_loss: float | None = None
    valid_loss: float | None = None
    best_valid_loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class Numbers(Losses):
    """What a run has come to, at its end or at a checkpoint."""

    steps: int
    epochs: float
    examples: int
    supervised_tokens: int
    supervised_tokens_per_second: float
    tokens_per_second: float
    best_step: int | None
    stopped_early: bool
    skipped_steps: int


@dataclass(frozen=True, kw_only=True)
class TrainResult(Numbers):
    """What a run did; the keys of `train --json`.

    adapter_step: the step whose weights the adapter holds; the last one, or the best one with
    early stopping. rows_not_used: too long and dropped, or without anything to learn.
    """

    run: str
    adapter: str
    adapter_step: int
    peak_memory_bytes: int
    wall_s: float
    rows_used: int = 0
    rows_not_used: int = 0


@dataclass
class Clock:
    """What no two runs share."""

    spent_s: float = 0.0
    wall_s: float = 0.0
    peak_memory_bytes: int = 0


@dataclass
class Record:
    """The account of a run, as state.json of a checkpoint keeps it."""

    step: int = 0
    epoch: int = 0
    examples: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    skipped_steps: int = 0
    # (loss, weight) of the last steps that were learned; whether each of the last was skipped.
    recent: list[tuple[float, float]] = field(default_factory=list)
    skips: list[bool] = field(default_factory=list)
    valid_step: int | None = None
    valid_loss: float | None = None
    best_valid_loss: float | None = None
    # The best of the steps that learned: its checkpoint is kept.
    best_step: int | None = None
    best_step_loss: float | None = None
    validations_since_best: int = 0
    stopped_early: bool = False
    clock: Clock = field(default_factory=Clock)

    def learned(self, batch: Batch, metrics: StepMetrics, seconds: float) -> None:
        """Count one step."""
        self.step, self.epoch = batch.step, batch.epoch
        self.examples += len(batch.rows)
        self.tokens += metrics.tokens
        self.supervised_tokens += metrics.supervised_tokens
        self.skipped_steps += metrics.skipped
        self.skips = [*self.skips, metrics.skipped][-WINDOW_STEPS:]
        if not metrics.skipped:
            self.recent = [*self.recent, (metrics.loss, metrics.weight)][-WINDOW_STEPS:]
        self.clock.spent_s += seconds

    def validated(self, loss: float) -> bool:
        """Count a validation after `self.step`; whether this step's weights are the best so far."""
        self.valid_step = self.step
        self.valid_loss = loss if math.isfinite(loss) else None
        below = _is_below(self.valid_loss, self.best_valid_loss)
        self.validations_since_best = 0 if below else self.validations_since_best + 1
        if below:
            self.best_valid_loss = self.valid_loss
        best = bool(self.step) and _is_below(self.valid_loss, self.best_step_loss)
        if best:
            self.best_step, self.best_step_loss = self.step, self.valid_loss
        return best

    @property
    def diverged(self) -> str | None:
        """Why the run has to end; None while it may go on."""
        in_a_row = _trailing(self.skips)
        if in_a_row >= SKIPS_IN_A_ROW:
            return f"in {in_a_row} steps in a row"
        if sum(self.skips) >= SKIPS_IN_WINDOW:
            return f"in {sum(self.skips)} of the last {len(self.skips)} steps"
        return None

    @property
    def unusable(self) -> str | None:
        """Why nothing of a run that is done may be shipped; None where it learned."""
        if self.skipped_steps == self.step:
            return f"nothing was learned: loss or gradient was not finite in all {self.step} steps"
        if not self.supervised_tokens:
            return "nothing was learned: no row has a token to learn"
        if self.valid_step is not None and self.valid_loss is None:
            return f"the validation loss after step {self.valid_step} is not finite"
        return None

    def numbers(self, rows: int) -> Numbers:
        """The numbers so far, of a data set of `rows` examples."""
        weight = sum(weight for _, weight in self.recent)
        loss = sum(loss * weight for loss, weight in self.recent)
        spent_s = self.clock.spent_s or 1.0
        return Numbers(
            steps=self.step,
            skipped_steps=self.skipped_steps,
            epochs=round(self.examples / rows, 4),
            examples=self.examples,
            supervised_tokens=self.supervised_tokens,
            train_loss=loss / weight if weight else None,
            valid_loss=self.valid_loss,
            best_valid_loss=self.best_valid_loss,
            best_step=self.best_step,
            stopped_early=self.stopped_early,
            supervised_tokens_per_second=self.supervised_tokens / spent_s,
            tokens_per_second=self.tokens / spent_s,
        )


def _is_below(loss: float | None, best: float | None) -> bool:
    return loss is not None and (best is None or loss < best)


def _trailing(skips: Sequence[bool]) -> int:
    """How many of the last steps were skipped without one in between that was not."""
    return next((n for n, skip in enumerate(reversed(skips)) if not skip), len(skips))
