"""What a run has done so far: all that a resumed run needs besides weights and moments.

Everything but the clock is a pure function of settings, data and step, so a run that was killed
and resumed reports the same numbers as one that was not.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlx_itune.dataset.batching import Batch
from mlx_itune.kit.errors import StorageError
from mlx_itune.training.engine.step import StepMetrics

# Steps that the reported train loss is the mean of, and in which skipped ones are counted.
WINDOW_STEPS = 20
SKIPS_IN_A_ROW = 5
SKIPS_IN_WINDOW = 10


@dataclass
class Record:
    """The account of a run. Losses are nats per unit of weight; None: not known (yet), or NaN."""

    step: int = 0
    epoch: int = 0
    examples: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    skipped_steps: int = 0
    # (loss, weight) of the last steps that were learned; whether each of the last was skipped.
    recent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=WINDOW_STEPS))
    skips: deque[bool] = field(default_factory=lambda: deque(maxlen=WINDOW_STEPS))
    valid_step: int | None = None
    valid_loss: float | None = None
    best_valid_loss: float | None = None
    # The best of the steps that learned: its checkpoint is kept.
    best_step: int | None = None
    best_step_loss: float | None = None
    validations_since_best: int = 0
    stopped_early: bool = False
    # The clock, which no two runs share.
    spent_s: float = 0.0
    wall_s: float = 0.0
    peak_memory_bytes: int = 0

    def learned(self, batch: Batch, metrics: StepMetrics, seconds: float) -> None:
        """Count one step."""
        self.step, self.epoch = batch.step, batch.epoch
        self.examples += len(batch.rows)
        self.tokens += metrics.tokens
        self.supervised_tokens += metrics.supervised_tokens
        self.skipped_steps += metrics.skipped
        self.skips.append(metrics.skipped)
        if not metrics.skipped:
            self.recent.append((metrics.loss, metrics.weight))
        self.spent_s += seconds

    def validated(self, loss: float) -> bool:
        """Count a validation after `self.step`; whether this step's weights are the best so far."""
        self.valid_step = self.step
        self.valid_loss = loss if math.isfinite(loss) else None
        below = self.valid_loss is not None and (
            self.best_valid_loss is None or self.valid_loss < self.best_valid_loss
        )
        self.validations_since_best = 0 if below else self.validations_since_best + 1
        if below:
            self.best_valid_loss = self.valid_loss
        if not self.step or self.valid_loss is None:
            return False
        best = self.best_step_loss is None or self.valid_loss < self.best_step_loss
        if best:
            self.best_step, self.best_step_loss = self.step, self.valid_loss
        return best

    @property
    def skipped_in_a_row(self) -> int:
        """How many of the last steps were skipped without one in between that was not."""
        return next((n for n, skip in enumerate(reversed(self.skips)) if not skip), len(self.skips))

    @property
    def diverged(self) -> str | None:
        """Why the run has to end; None while it may go on."""
        if self.skipped_in_a_row >= SKIPS_IN_A_ROW:
            return f"in {self.skipped_in_a_row} steps in a row"
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

    def metrics(self, rows: int) -> dict[str, Any]:
        """The numbers so far, of a data set of `rows` examples."""
        weight = sum(weight for _, weight in self.recent)
        loss = sum(loss * weight for loss, weight in self.recent)
        spent_s = self.spent_s or 1.0
        return {
            "steps": self.step,
            "skipped_steps": self.skipped_steps,
            "epochs": round(self.examples / rows, 4),
            "examples": self.examples,
            "supervised_tokens": self.supervised_tokens,
            "train_loss": loss / weight if weight else None,
            "valid_loss": self.valid_loss,
            "best_valid_loss": self.best_valid_loss,
            "best_step": self.best_step,
            "stopped_early": self.stopped_early,
            "supervised_tokens_per_second": self.supervised_tokens / spent_s,
            "tokens_per_second": self.tokens / spent_s,
        }

    _CLOCK = ("spent_s", "wall_s", "peak_memory_bytes")

    def to_state(self) -> dict[str, Any]:
        """As JSON; what differs from run to run is under "clock"."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        state = {name: value for name, value in values.items() if name not in self._CLOCK}
        state["recent"] = [list(pair) for pair in self.recent]
        state["skips"] = list(self.skips)
        return {**state, "clock": {name: values[name] for name in self._CLOCK}}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Record:
        """What `to_state` gave. Raises StorageError for anything else."""
        try:
            values = {**state, **state["clock"]}
            record = cls(**{name: values[name] for name in cls.__dataclass_fields__})
            record.recent = deque([(float(a), float(b)) for a, b in values["recent"]], WINDOW_STEPS)
            record.skips = deque(map(bool, values["skips"]), WINDOW_STEPS)
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(f"the checkpoint's state cannot be read ({error})") from error
        return record
