"""`train`: settings in, adapter out."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_itune.dataset.batching import Batch, batches
from mlx_itune.dataset.cache import tokenized
from mlx_itune.dataset.render import TokenizedExample
from mlx_itune.dataset.tokenizer import load_tokenizer
from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.events import EventLog
from mlx_itune.model import adapter, backend, lora
from mlx_itune.model.base import LoadedModel, load
from mlx_itune.model.loss import head_is_exact, plain_nll, weighted_nll
from mlx_itune.training import checkpoint, run
from mlx_itune.training.schedule import learning_rate
from mlx_itune.training.settings import TrainSettings
from mlx_itune.training.step import Learner, StepMetrics

Observe = Callable[[dict[str, Any]], None]
# Reported speed is that of the last so many steps.
_WINDOW_STEPS = 20


@dataclass(frozen=True)
class TrainResult:
    """What a run did; the keys of `train --json`. Losses are per unit of weight, in nats."""

    run: str
    adapter: str
    steps: int
    epochs: float
    examples: int
    supervised_tokens: int
    train_loss: float
    valid_loss: float | None
    best_valid_loss: float | None
    supervised_tokens_per_second: float
    tokens_per_second: float
    peak_memory_bytes: int
    wall_s: float


def train(settings: TrainSettings, *, observe: Observe = lambda _: None) -> TrainResult:
    """Train a LoRA adapter and write it, with its provenance, to `settings.out`.

    observe gets one dict per event ("start", "step", "valid", "checkpoint", "end"), as the run's
    events.jsonl does. Ctrl-C or SIGTERM ends the run after the current step, with a checkpoint.
    Raises UsageError, DataError, ModelError, StorageError, DivergedError.
    """
    began = time.monotonic()
    out = Path(settings.out)
    run.require_free_name(out)
    loaded = load(settings.model, compute=settings.compute, offline=settings.offline)
    tokenizer = load_tokenizer(loaded.path, template=settings.template)
    limit_tokens = _length_limit(settings, loaded)
    rows = tokenized(
        Path(settings.data),
        tokenizer,
        seed=settings.seed,
        format=settings.format,
        columns=settings.columns,
        max_length_tokens=limit_tokens,
        learn=settings.learn,
        too_long=settings.too_long,
    )
    training = rows.train
    valid = rows.valid.examples if rows.valid else ()
    _check_vocabulary(loaded, (*training.examples, *valid))
    paths = lora.attach(
        loaded.model,
        rank=settings.rank,
        scale=settings.scale,
        dropout=settings.dropout,
        seed=settings.seed,
    )
    config = adapter.AdapterConfig(
        rank=settings.rank,
        scale=settings.scale,
        dropout=settings.dropout,
        keys=tuple(lora.adapted_keys(loaded.model)),
        num_layers=len(loaded.model.layers),
    )
    exact_head = head_is_exact(loaded.model)
    learner = Learner(
        loaded.model,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
        micro_batch_tokens=settings.micro_batch_tokens,
        nll=weighted_nll if exact_head else plain_nll,
    )
    folder = run.create(settings)
    with EventLog(folder / "events.jsonl") as log:
        job = _Job(settings, learner, training.examples, valid, folder, log, observe, began)
        job.origins = (loaded, tokenizer, rows.sources, config)
        job.tell(
            "start",
            run=str(folder),
            steps=len(job.plan),
            examples=len(training.examples),
            valid_examples=len(valid),
            trainable_parameters=sum(t.size for t in adapter.tensors_of(loaded.model).values()),
            layers=len(paths),
            compute=loaded.compute,
            device=backend.prepare().device,
            note=backend.prepare().note,
            exact_head=exact_head,
            max_length_tokens=limit_tokens,
            tokens_kept=rows.kept,
            report=dataclasses.asdict(training.report),
        )
        # What is loaded by now stays; without this each step scans it for garbage, some 4 % of it.
        gc.freeze()
        try:
            with run.deferred_signals() as received:
                job.learn(received)
            return job.finish(out)
        finally:
            gc.unfreeze()
            learner.lanes.close()


class _Job:
    """The run while it runs."""

    def __init__(
        self,
        settings: TrainSettings,
        learner: Learner,
        examples: Sequence[TokenizedExample],
        valid: Sequence[TokenizedExample],
        folder: Path,
        log: EventLog,
        observe: Observe,
        began: float,
    ) -> None:
        self.settings, self.learner = settings, learner
        self.examples, self.valid = examples, valid
        self.folder, self.log, self.observe, self.began = folder, log, observe, began
        self.plan: list[Batch] = list(
            batches(
                len(examples),
                settings.batch_size,
                seed=settings.seed,
                epochs=settings.planned_epochs,
                steps=settings.steps,
            )
        )
        self.origins: tuple[Any, ...] = ()
        self.history: list[tuple[StepMetrics, float]] = []
        self.valid_losses: list[float] = []
        self.learned = 0

    def tell(self, event: str, **fields: Any) -> None:
        """One event, to the log and the observer."""
        self.log.emit(event, **fields)
        self.observe({"event": event, **fields})

    def learn(self, received: Sequence[int]) -> None:
        """Every planned step, until a signal is received."""
        mx.reset_peak_memory()
        self.validate(0)
        save_every, eval_every = self.settings.save_every, self.settings.eval_every
        for batch in self.plan:
            self.step(batch)
            last = batch.step == len(self.plan)
            if last or (eval_every and batch.step % eval_every == 0):
                self.validate(batch.step)
            if received or last or (save_every and batch.step % save_every == 0):
                self.save(batch)
            if received:
                self.tell("stopped", step=batch.step, signal=received[0])
                return

    def step(self, batch: Batch) -> None:
        """One optimizer step."""
        s, started = self.settings, time.monotonic()
        rate = learning_rate(
            batch.step, len(self.plan), peak=s.learning_rate, warmup=s.warmup, schedule=s.schedule
        )
        # A pure function of (seed, step): a resumed run draws the same dropout.
        key = mx.random.split(mx.random.key(s.seed), batch.step + 1)[-1] if s.dropout else None
        rows = [self.examples[row] for row in batch.rows]
        metrics = self.learner.step(rows, rate, dropout_key=key)
        self.history.append((metrics, time.monotonic() - started))
        self.learned += len(rows)
        recent = self.history[-_WINDOW_STEPS:]
        spent_s = sum(seconds for _, seconds in recent)
        self.tell(
            "step",
            step=batch.step,
            steps=len(self.plan),
            epoch=batch.epoch,
            loss=metrics.loss,
            learning_rate=rate,
            gradient_norm=metrics.gradient_norm,
            skipped=metrics.skipped,
            supervised_tokens=metrics.supervised_tokens,
            tokens=metrics.tokens,
            tokens_per_second=sum(m.tokens for m, _ in recent) / spent_s,
            supervised_tokens_per_second=sum(m.supervised_tokens for m, _ in recent) / spent_s,
            examples_per_second=len(recent) * s.batch_size / spent_s,
            eta_s=(len(self.plan) - batch.step) * spent_s / len(recent),
            peak_memory_bytes=mx.get_peak_memory(),
        )

    def validate(self, step: int) -> None:
        """The loss on all validation rows."""
        if self.valid:
            started = time.monotonic()
            self.valid_losses.append(self.learner.evaluate(self.valid))
            seconds = time.monotonic() - started
            self.tell("valid", step=step, loss=self.valid_losses[-1], wall_s=seconds)

    def save(self, batch: Batch) -> None:
        """A sealed checkpoint."""
        if not self.settings.save_every:
            return
        loaded, tokenizer, sources, config = self.origins
        path = checkpoint.write(
            self.folder / "checkpoints",
            self.learner,
            config,
            run.provenance(self.settings, loaded, tokenizer, sources, self.metrics()),
            {"step": batch.step, "epoch": batch.epoch, "examples": self.learned},
        )
        self.tell("checkpoint", step=batch.step, path=path.name)

    def metrics(self) -> dict[str, Any]:
        """The numbers so far."""
        done = [metrics for metrics, _ in self.history]
        kept = [m for m in done if not m.skipped][-_WINDOW_STEPS:]
        spent_s = sum(seconds for _, seconds in self.history) or 1.0
        weight = sum(m.weight for m in kept)
        supervised = sum(m.supervised_tokens for m in done)
        return {
            "steps": len(done),
            "skipped_steps": sum(m.skipped for m in done),
            "epochs": round(self.learned / len(self.examples), 4),
            "examples": self.learned,
            "supervised_tokens": supervised,
            "train_loss": sum(m.loss * m.weight for m in kept) / weight if weight else None,
            "valid_loss": self.valid_losses[-1] if self.valid_losses else None,
            "best_valid_loss": min(self.valid_losses) if self.valid_losses else None,
            "supervised_tokens_per_second": supervised / spent_s,
            "tokens_per_second": sum(m.tokens for m in done) / spent_s,
        }

    def finish(self, out: Path) -> TrainResult:
        """Write the adapter; the result."""
        loaded, tokenizer, sources, config = self.origins
        metrics = self.metrics()
        origin = run.provenance(self.settings, loaded, tokenizer, sources, metrics)
        adapter.save(out, self.learner.model, config, origin)
        metrics.pop("skipped_steps")
        result = TrainResult(
            run=str(self.folder),
            adapter=str(out),
            peak_memory_bytes=mx.get_peak_memory(),
            wall_s=time.monotonic() - self.began,
            **metrics,
        )
        self.tell("end", **dataclasses.asdict(result))
        return result


def _length_limit(settings: TrainSettings, loaded: LoadedModel) -> int:
    context = loaded.config.get("max_position_embeddings")
    return min(settings.max_length, context) if isinstance(context, int) else settings.max_length


def _check_vocabulary(loaded: LoadedModel, examples: Sequence[TokenizedExample]) -> None:
    size = loaded.config.get("vocab_size")
    highest = max(int(example.input_ids.max()) for example in examples)
    if isinstance(size, int) and highest >= size:
        raise ModelError(
            f"the tokenizer makes token {highest}, the model knows {size}",
            where=str(loaded.path),
            hint="the tokenizer is not this model's",
        )
