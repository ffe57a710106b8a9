"""Training: what a run would take, a run, and how runs stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mlx_itune.api.rows import labelled
from mlx_itune.api.tune import keep_samples
from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.sources import load_splits
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.inference.before_after import before_and_after
from mlx_itune.inference.evaluate import question
from mlx_itune.inference.opening import Opening, open_tokenizer
from mlx_itune.kit.errors import DataError, UsageError
from mlx_itune.kit.network import go_offline
from mlx_itune.kit.settings import from_toml, values_of
from mlx_itune.training.engine.loop import train as train_one
from mlx_itune.training.engine.memory_plan import Plan, make_plan, workload
from mlx_itune.training.engine.rank_choice import is_writer
from mlx_itune.training.hooks import attached
from mlx_itune.training.run import catalogue
from mlx_itune.training.run import resume as resuming
from mlx_itune.training.run.catalogue import Standing
from mlx_itune.training.run.resume import Resumed
from mlx_itune.training.run.run import TrainResult, all_in, find
from mlx_itune.training.settings import TrainSettings, settings_from, table
from mlx_itune.training.settle import settled
from mlx_itune.training.setup import gather

# One event of a run, as its events.jsonl has them.
Observe = Callable[[dict[str, Any]], None]
PathLike = str | Path
_BOARDS = ("tensorboard", "wandb")
# Rows of the validation split that are looked at for different tasks.
_LOOKED_AT = 500


def plan(
    model: str | None = None,
    data: PathLike | None = None,
    *,
    config: PathLike | None = None,
    **settings: Any,
) -> Plan:
    """What `train` with the same settings would take, before any weight is loaded: peak memory in
    bytes, seconds an epoch, and what to change where it does not fit. Raises UsageError, DataError,
    ModelError, StorageError."""
    given = {"out": "adapter", **settings, "model": model, "data": data}
    return planned(settings_of(config, values_of(given, TrainSettings)))


def planned(asked: TrainSettings) -> Plan:
    """`plan`, of settings at hand."""
    material = gather(asked)
    asked, notes = settled(asked, material)
    if unused := material.rows_not_used:
        rows = f"{unused:,} of {unused + material.rows_used:,} rows are not used"
        limit = f"longer than {material.limit_tokens:,} tokens, or nothing to learn in them"
        notes = (f"{rows}: {limit}", *notes)
    made = make_plan(workload(asked, material.path, material.config, material.train))
    return replace(made, notes=notes)


def train(
    model: str | None = None,
    data: PathLike | None = None,
    out: PathLike | None = None,
    *,
    config: PathLike | None = None,
    observe: Observe = lambda _: None,
    **settings: Any,
) -> TrainResult:
    """Train an adapter on a file or folder of rows and write it to `out`, whole or not at all; only
    the assistant's words are learned. `settings`: those of `mlx_itune.TrainSettings`, such as
    steps=200, batch_size=8, adapter="grid", over those of `config`, a TOML file, over defaults; and
    samples (validation rows answered before and after, for the report), tensorboard (a folder),
    wandb (a project). `observe` is told every event of the run ("start", "step", "valid", "end",
    ...), between two steps. An interrupt (Ctrl-C, in the main thread) ends the run after its step,
    sealed for `resume`. Raises UsageError, DataError, ModelError, StorageError, DivergedError,
    ResourceError."""
    given = {**settings, "model": model, "data": data, "out": out}
    shown = {name: given.pop(name) for name in ("samples", *_BOARDS) if name in given}
    return trained(settings_of(config, values_of(given, TrainSettings)), observe, **shown)


def trained(
    settings: TrainSettings,
    observe: Observe,
    *,
    samples: int = 0,
    tensorboard: PathLike | None = None,
    wandb: str | None = None,
) -> TrainResult:
    """`train`, of settings at hand."""
    if not is_writer():
        return train_one(settings)

    def say(text: str) -> None:
        observe({"event": "warning", "message": text.removeprefix("warning: ")})

    board = Path(tensorboard) if tensorboard is not None else None
    with attached(settings, observe, wandb=wandb, tensorboard=board, say=say) as watch:
        result = train_one(settings, observe=watch)
    add_samples(settings, result, samples, observe)
    return result


def add_samples(settings: TrainSettings, result: TrainResult, count: int, observe: Observe) -> int:
    """Answer `count` validation rows before and after, as `sample` events in run/events.jsonl and
    in run/report.html; the number answered. What goes wrong is told as a warning."""

    def seen(stage: str, done: int, total: int) -> None:
        observe({"event": "progress", "stage": stage, "done": done, "total": total})

    try:
        if not count:
            return 0
        place = Path(result.adapter)
        opening = Opening(settings.model, place, settings.template, settings.compute)
        rows = _chosen(settings, open_tokenizer(opening), count)
        if not rows:
            raise DataError("no validation row has an answer to compare with")
        told = partial(labelled, seen)
        keep_samples(Path(result.run), before_and_after(opening, rows, told))
        return len(rows)
    except Exception as error:
        # The adapter is written and hours are spent: nothing about a page may fail the run.
        observe({"event": "warning", "message": f"no answers for the report: {error}"})
        return 0


def _chosen(settings: TrainSettings, tokenizer: ChatTokenizer, count: int) -> list[Conversation]:
    """The first rows of different tasks, then the first others, with an answer each."""
    first: dict[str, Conversation] = {}
    others: list[Conversation] = []
    held_out = load_splits(settings.data, seed=settings.seed, how=settings.reading).valid
    for row in held_out[:_LOOKED_AT]:
        prompt, reference = question(row, tokenizer) or ([], "")
        if prompt and reference.strip() and len(prompt) < settings.max_length:
            task = row.tags.get("task", "")
            if task in first:
                others.append(row)
            first.setdefault(task, row)
    return [*first.values(), *others][:count]


def settings_of(config: PathLike | None, given: Mapping[str, Any]) -> TrainSettings:
    """What is given over a config file's values over defaults. Raises UsageError, StorageError."""
    values: dict[str, Any] = dict(from_toml(Path(config), TrainSettings)) if config else {}
    values |= {name: value for name, value in given.items() if value not in (None, ())}
    if values.get("offline"):
        go_offline()
    if missing := [s.flag for name, s in table().items() if s.required and name not in values]:
        raise UsageError(f"missing {', '.join(missing)}", hint="see mlx-itune train --help")
    return settings_from(values)


def resume(
    run: PathLike,
    *,
    runs: PathLike = "runs",
    out: PathLike | None = None,
    allow_other_base: bool = False,
    observe: Observe = lambda _: None,
    **how: Any,
) -> Resumed:
    """Continue a run (its folder, `last`, or the beginning of its id) from its last checkpoint, bit
    for bit. `out`: another place for the adapter. `how`: micro_batch_tokens, memory_gb. Raises what
    `train` raises; UsageError, DataError or ModelError naming what is not as the run began."""
    how = values_of(how, (TrainSettings, "micro_batch_tokens memory_gb"))
    # In a run of several processes the folder comes from the first.
    folder = find(str(run), Path(runs)) if is_writer() else Path(run)
    place = Path(out) if out is not None else None
    return resuming.resume(
        folder, out=place, how=how, allow_other_base=allow_other_base, observe=observe
    )


def runs(runs: PathLike = "runs") -> tuple[Standing, ...]:
    """How every run in a folder stands, oldest first. Raises StorageError."""
    return tuple(catalogue.standing(folder) for folder in all_in(Path(runs)))
