"""The run while it runs: steps, validations, checkpoints, and every way it can end."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_itune.dataset.batching import Batch, epoch_order
from mlx_itune.kit.errors import DivergedError, StorageError
from mlx_itune.kit.events import EventLog
from mlx_itune.kit.json_files import plain, write_object
from mlx_itune.model.adapters import adapter
from mlx_itune.model.loading import backend
from mlx_itune.training.engine.microbatch import Example
from mlx_itune.training.engine.rank_choice import LostRankError, is_writer
from mlx_itune.training.engine.step import StepMetrics
from mlx_itune.training.run import checkpoint, run
from mlx_itune.training.run.run import WINDOW_STEPS, Numbers, Record, TrainResult, resume_line
from mlx_itune.training.settings import warmup_steps
from mlx_itune.training.settle import affordable_rows
from mlx_itune.training.setup import Setup

Observe = Callable[[dict[str, Any]], None]
# After a checkpoint that could not be written, the next attempt.
_RETRY_S = 30.0
# Rows that are computed one by one to find out which of them it was.
_ROWS_EXAMINED = 64


class Paused(Exception):
    """A run made the share of its steps that was asked for, and is sealed for `resume`."""


class Job:
    """A run in its folder, from where its record stands to its end."""

    def __init__(
        self,
        setup: Setup,
        folder: Path,
        log: EventLog | None,
        record: Record,
        observe: Observe,
        began: float,
    ) -> None:
        s = setup.settings
        self.setup, self.settings, self.learner = setup, s, setup.learner
        self.train, valid = setup.material.train, setup.material.valid
        # The rows of every validation, and more on which the adapter is measured in the end.
        few = s.eval_rows or len(valid)
        most = affordable_rows(s, setup.material) if valid else 0
        order = [valid[row] for row in epoch_order(len(valid), s.seed, 0).tolist()]
        self.valid, self.more = order[:few], order[few:most]
        self.folder, self.record = folder, record
        self.id = run.id_of(folder)
        self.plan = setup.plan()
        # The step that ends the run.
        self.last = min(s.stop_at or len(self.plan), len(self.plan))
        # The step after which it waits for another session.
        self.pause_at: int | None = None
        if not backend.on_cpu():
            rows = ([self.train[row] for row in batch.rows] for batch in self.plan)
            self.learner.plan_shapes(rows)
        self._log, self._observe, self._began_s = log, observe, began
        self._before = dataclasses.replace(record.clock)
        self._timed: deque[tuple[StepMetrics, float]] = deque(maxlen=WINDOW_STEPS)
        self._next_save_s = time.monotonic() + self.settings.save_every_s
        self._saved_step = record.step
        # The best step, and what was learned then; None where an earlier session made it.
        self._best: tuple[int, list[mx.array]] | None = None
        # The step that was begun and not told yet, with its rate; when the one before it was told.
        self._running: tuple[Batch, float] | None = None
        self._told_s = 0.0

    def tell(self, event: str, **fields: Any) -> None:
        """One event, to the log and the observer; a log or terminal that is gone ends no run."""
        if self._log is not None:
            with contextlib.suppress(StorageError):
                self._log.emit(event, **fields)
        try:
            self._observe({"event": event, **fields})
        except OSError:
            self._observe = lambda _: None

    def warn(self, message: str) -> None:
        """Something the user should know and that does not end the run."""
        self.tell("warning", step=self.record.step, message=message)

    def learn(self, received: Sequence[int]) -> bool:
        """Every planned step that is not yet made; False if a signal or a pause ended it."""
        mx.reset_peak_memory()
        try:
            return self._learned(received)
        except LostRankError as error:
            # The step was not made anywhere; what was learned before it is whole.
            self._settle()
            if self.record.step:
                self._save(must=True)
            error.hint = f"start it again everywhere with: {resume_line(str(self.folder))}"
            raise

    def _learned(self, received: Sequence[int]) -> bool:
        self._validate_if_owed()
        while self._begun_steps < self.last and not self.record.stopped_early:
            signal = self._signal(received)
            if signal or self._begun_steps == self.pause_at:
                self._settle()
                return self._stop(signal)
            step = self.plan[self._begun_steps].step
            self._begin()
            self._keep_to_time(step)
            pauses = self._is_due(step) or self._save_is_due(step) or step == self.last
            if not pauses:
                continue
            self._settle()
            # A long validation waits for the resumed run, which begins with it.
            signal = self._signal(received)
            best = not signal and self._is_due(step) and self._validate()
            if signal := signal or self._signal(received):
                return self._stop(signal)
            if best or self._save_is_due(step):
                self._save()
        return True

    def _keep_to_time(self, step: int) -> None:
        """Let the step that was begun be the last, where steps take longer than was measured."""
        if self.setup.ends is None or step >= self.last:
            return
        if self.learner.ranks.any(time.monotonic() > self.setup.ends):
            self.last = step
            self.warn(
                f"steps take longer than when they were measured: step {step} of {len(self.plan)} "
                f"is the last; --steps {len(self.plan)} --stop-at {step} repeats this run"
            )

    @property
    def _begun_steps(self) -> int:
        """How many steps were begun; the last of them may still run."""
        return self.record.step + (self._running is not None)

    def _signal(self, received: Sequence[int]) -> int:
        """The signal that ends the run; all processes hear of one that any got."""
        return self.learner.ranks.any(received[0] if received else 0)

    def finish(self, out: Path, *, overwrite: bool = False) -> TrainResult:
        """Write the adapter and the result. Raises DivergedError, and writes none, if it learned
        nothing."""
        record = self.record
        self._refuse(record.unusable)
        step = self._choose()
        loss = record.best_step_loss if step == record.best_step else record.valid_loss
        if loss is not None and self.more:
            few, more = map(_weight, (self.valid, self.more))
            loss = (few * loss + more * self.learner.evaluate(self.more)) / (few + more)
            if not math.isfinite(loss):
                self._refuse(f"the validation loss after step {step} is not finite")
        start, best = record.best_valid_loss, record.best_step_loss
        if start is not None and best is not None and start < best:
            self.warn(
                f"no step has a lower validation loss ({best:.4g}) than the base ({start:.4g})"
            )
        shipped: dict[str, Any] = {"adapter_step": step, "adapter_valid_loss": loss}
        shipped |= {"adapter_valid_rows": len(self.valid) + len(self.more)}
        checkpoint.require_finite(self.learner.model)
        origin = self._provenance(self._numbers(), **shipped)
        if is_writer():
            adapter.save(out, self.learner.model, self.setup.config, origin, overwrite=overwrite)
        result = TrainResult(
            **vars(self._numbers()),
            **shipped,
            run=str(self.folder),
            adapter=str(out),
            peak_memory_bytes=self.record.clock.peak_memory_bytes,
            wall_s=self.record.clock.wall_s,
            learning_rate_search=self.setup.search,
            rows_used=self.setup.material.rows_used,
            rows_not_used=self.setup.material.rows_not_used,
        )
        if is_writer():
            write_object(self.folder / run.RESULT, result)
        self.tell("end", **plain(result))
        return result

    def _begin(self) -> None:
        """Begin the next step; the one that runs is over by then, and told."""
        s, batch = self.settings, self.plan[self._begun_steps]
        rate = learning_rate(
            batch.step, len(self.plan), peak=s.peak, warmup=s.rise, schedule=s.schedule
        )
        # A pure function of (seed, step): a resumed run draws the same dropout.
        key = mx.random.split(mx.random.key(s.seed), batch.step + 1)[-1] if s.dropout else None
        if self._running is None:
            self._told_s = time.monotonic()
        metrics = self.learner.step([self.train[r] for r in batch.rows], rate, dropout_key=key)
        before, self._running = self._running, (batch, rate)
        if before is not None and metrics is not None:
            self._tell_step(*before, metrics)

    def _settle(self) -> None:
        """Wait for the step that runs; the model is what was learned then."""
        metrics = self.learner.finish()
        before, self._running = self._running, None
        if before is not None and metrics is not None:
            self._tell_step(*before, metrics)

    def _tell_step(self, batch: Batch, rate: float, metrics: StepMetrics) -> None:
        s, record, now = self.settings, self.record, time.monotonic()
        seconds, self._told_s = now - self._told_s, now
        record.learned(batch, metrics, seconds)
        self._timed.append((metrics, seconds))
        spent_s = sum(seconds for _, seconds in self._timed)
        self.tell(
            "step",
            step=batch.step,
            steps=self.last,
            epoch=batch.epoch,
            loss=metrics.loss,
            learning_rate=rate,
            gradient_norm=metrics.gradient_norm,
            skipped=metrics.skipped,
            supervised_tokens=metrics.supervised_tokens,
            weight=metrics.weight,
            tokens=metrics.tokens,
            tokens_per_second=sum(m.tokens for m, _ in self._timed) / spent_s,
            supervised_tokens_per_second=sum(m.supervised_tokens for m, _ in self._timed) / spent_s,
            examples_per_second=len(self._timed) * s.rows_per_step / spent_s,
            eta_s=(self.last - batch.step) * spent_s / len(self._timed),
            memory_bytes=mx.get_active_memory(),
            peak_memory_bytes=mx.get_peak_memory(),
        )
        if metrics.skipped:
            self._note_incident(batch, metrics)

    def _note_incident(self, batch: Batch, metrics: StepMetrics) -> None:
        rows = [self.train[row] for row in batch.rows]
        alone = ((row.origin, self.learner.evaluate([row])) for row in rows[:_ROWS_EXAMINED])
        incident = run.Incident(
            step=batch.step,
            epoch=batch.epoch,
            loss=_word(metrics.loss),
            gradient_norm=_word(metrics.gradient_norm),
            rows=tuple(row.origin for row in rows),
            suspects=tuple(origin for origin, loss in alone if not math.isfinite(loss)),
        )
        if is_writer():
            with EventLog(self.folder / run.INCIDENTS) as log:
                log.emit("incident", **plain(incident))
        self.tell("incident", **plain(incident))
        if (often := self.record.diverged) is not None:
            found = checkpoint.complete(self.folder / run.CHECKPOINTS)
            good = (
                f"the last good adapter is {found[-1]}"
                if found
                else "no checkpoint was made before"
            )
            raise DivergedError(
                f"loss or gradient was not finite {often}, the last one step {batch.step}",
                where=str(self.folder / run.INCIDENTS),
                hint=f"see the rows named there, or lower --learning-rate; {good}",
            )

    def _validate_if_owed(self) -> None:
        """Before the first step; and where a signal came between a step and its validation."""
        step = self.record.step
        if self.record.stopped_early or self.record.valid_step == step or not self._is_due(step):
            return
        best = self._validate()
        if step and (best or self._save_is_due(step)):
            self._save()

    def _is_due(self, step: int) -> bool:
        """Whether the run validates after this step."""
        if not self.valid:
            return False
        if step in (0, self.last):
            return True
        return bool(self.settings.eval_every and step % self.settings.eval_every == 0)

    def _validate(self) -> bool:
        """The loss on the validation rows; whether a checkpoint should keep this step."""
        started, record = time.monotonic(), self.record
        best = record.validated(self.learner.evaluate(self.valid))
        if best:
            self._best = record.step, [*self.learner.held]
        seconds = time.monotonic() - started
        self.tell("valid", step=record.step, loss=record.valid_loss, best=best, wall_s=seconds)
        patience = self.settings.early_stopping
        if patience and record.step and record.validations_since_best >= patience:
            record.stopped_early = True
            self.tell(
                "early_stop",
                step=record.step,
                patience=patience,
                best_step=record.best_step,
                best_valid_loss=record.best_valid_loss,
            )
        return best and self.settings.keeps_best

    def _save_is_due(self, step: int) -> bool:
        every = self.settings.save_every
        if self.settings.save_every_s and time.monotonic() >= self._next_save_s:
            return True
        ended = step == self.last or self.record.stopped_early
        return (ended and self.settings.saves) or bool(every and step % every == 0)

    def _save(self, *, must: bool = False) -> None:
        """A sealed checkpoint; one that cannot be written ends the run only if it `must` be."""
        self._next_save_s = time.monotonic() + (self.settings.save_every_s or float("inf"))
        numbers = self._numbers()
        if not is_writer():
            return
        try:
            path = checkpoint.write(
                self.folder / run.CHECKPOINTS,
                self.learner,
                self.setup.config,
                self._provenance(numbers),
                {"run": self.id, **plain(self.record)},
                keep=self.settings.keep_checkpoints,
                best_step=self.record.best_step,
            )
        except StorageError as error:
            if must:
                raise
            self._next_save_s = time.monotonic() + _RETRY_S
            self.warn(f"no checkpoint at step {self.record.step}: {error}; training goes on")
        else:
            self._saved_step = self.record.step
            self.tell("checkpoint", step=self.record.step, path=path.name)

    def _stop(self, signal: int) -> bool:
        if self.record.step > self._saved_step:
            self._save(must=True)
        line = resume_line(str(self.folder))
        self.tell("stopped", step=self.record.step, signal=signal, resume=line)
        return False

    def _refuse(self, why: str | None) -> None:
        if why is not None:
            raise DivergedError(
                f"{why}; no adapter was written",
                where=str(self.folder),
                hint="lower --learning-rate or --alpha, and look for NaN in the base's weights",
            )

    def _choose(self) -> int:
        """The step that is shipped; the model is what was learned then."""
        step, best = self.record.step, self.record.best_step
        if not self.settings.keeps_best or best in (None, step):
            return step
        if self._best is not None and self._best[0] == best:
            self.learner.held = self._best[1]
            self.learner.finish()
            return best
        path = self.folder / run.CHECKPOINTS / checkpoint.name_of(best)
        try:
            checkpoint.restore(checkpoint.read(path), self.learner)
        except StorageError as error:
            self.warn(f"the best step's checkpoint is not there ({error}); the last is used")
            return step
        return best

    def _numbers(self) -> Numbers:
        """The numbers so far; the clock is read."""
        clock = self.record.clock
        clock.wall_s = self._before.wall_s + time.monotonic() - self._began_s
        clock.peak_memory_bytes = max(self._before.peak_memory_bytes, mx.get_peak_memory())
        return self.record.numbers(len(self.train))

    def _provenance(self, numbers: Numbers, **shipped: Any) -> dict[str, Any]:
        return run.provenance(
            self.settings,
            self.setup.loaded,
            self.setup.material.tokenizer,
            self.setup.material.rows.sources,
            {**plain(numbers), **shipped},
            run=self.id,
        ) | {"source_tokens": self.setup.material.rows.train.report.source_tokens}


def _weight(rows: Sequence[Example]) -> float:
    return float(sum(row.weights[1:].sum(dtype="float64") for row in rows))


def _word(number: float) -> float | str:
    """JSON has no NaN: what is not finite is written as a word."""
    return number if math.isfinite(number) else str(number)


def learning_rate(
    step: int, steps: int, *, peak: float, warmup: float, schedule: str = "cosine"
) -> float:
    """The rate of `step` (from 1) of `steps`: a linear rise, then cosine, linear or constant.

    warmup: below 1 a share of the steps, else a number of them. The step after the last would be
    at 0, so no step is spent on nothing.
    """
    rise = warmup_steps(steps, warmup)
    if step <= rise:
        return peak * step / rise
    if schedule == "constant":
        return peak
    left = (steps - step + 1) / (steps - rise)
    return peak * (left if schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left)))
