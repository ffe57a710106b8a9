"""`tune`: a file of rows in; a tuned model, scored beside its base, out."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from mlx_itune.api.rows import FORM, Observe, PathLike, labelled, told_bytes
from mlx_itune.dataset.batching import epoch_order
from mlx_itune.dataset.checking.task import FEWEST_ROWS, Task, task_of
from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.importing.first_look import FirstLook, held_out, look
from mlx_itune.dataset.importing.plan import ImportPlan
from mlx_itune.dataset.importing.run import import_rows
from mlx_itune.dataset.rendering.prepare import prepare
from mlx_itune.dataset.rendering.show_rows import pieces, shown_examples
from mlx_itune.dataset.schema import infer
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.inference.before_after import Compared, before_and_after
from mlx_itune.inference.opening import Opening, open_tokenizer, rows_of
from mlx_itune.inference.prompts import asked_words
from mlx_itune.inference.scoring import Pair, exact_match, json_score, token_f1
from mlx_itune.kit.errors import DataError, ItuneError
from mlx_itune.kit.events import EventLog
from mlx_itune.kit.files import refuse_occupied, write_new
from mlx_itune.kit.settings import records
from mlx_itune.kit.wording import count
from mlx_itune.model.engine.shapes import read_shapes
from mlx_itune.model.loading.base import resolve, vet
from mlx_itune.training.engine.footprint import Workload
from mlx_itune.training.engine.loop import train
from mlx_itune.training.engine.memory_plan import made_to_fit, workload
from mlx_itune.training.run import report
from mlx_itune.training.run.run import EVENTS, TrainResult, repeating
from mlx_itune.training.settings import FEW_STEPS, TrainSettings, settings_from
from mlx_itune.training.settle import enough_epochs, for_minutes

CONFIG, SCHEMA = "run.toml", "schema.json"
TIME = "10m"
# Held-out rows that are scored, and answers that are kept; rows that are shown before.
_SCORED, _KEPT, _SHOWN = 300, 5, 3
# Answers in the run's report, and characters of each.
_REPORTED, _MOST_CHARACTERS = 12, 4000
# Rows that say how much memory a run takes.
_LONGEST = 500


@dataclass(frozen=True)
class Job:
    """What is tuned on what, before anything is written. system: what rows without a system prompt
    get; shown: of some rows their place, what the model reads and what it learns."""

    file: Path
    out: Path
    looked: FirstLook
    task: Task
    system: str | None
    settings: TrainSettings
    shown: tuple[tuple[str, str, str], ...]
    # What it takes and may take of memory, and what was changed so that it fits.
    peak_memory_bytes: int
    limit_bytes: int
    change: str


@dataclass(frozen=True)
class Tuned:
    """What was made, the keys of `tune --json`. Scores are means over `test_rows` held-out rows, by
    `metric`. Where the answers are JSON, schema is the file of theirs, which those of both models
    are held to, as `chat --schema` and `serve` hold them; config: what `train --config` repeats."""

    adapter: str
    run: str
    base_score: float
    tuned_score: float
    metric: str
    rows_used: int
    rows_not_used: int
    wall_s: float
    test_rows: int
    base_valid_json: float | None
    tuned_valid_json: float | None
    model: str
    task: Literal["labels", "json", "text"]
    columns: Mapping[str, str]
    system: str | None
    data: str
    config: str
    schema: str | None
    report: str
    warnings: tuple[str, ...]
    answers: tuple[Mapping[str, str], ...]
    train: TrainResult


def tune(
    file: PathLike | Job,
    *,
    model: str = "smollm2",
    out: PathLike | None = None,
    observe: Observe | None = None,
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
    **settings: Any,
) -> Tuned:
    """Import, train and score. file: any that `read_rows` reads, or what `decide` says of it.
    observe and on_event: are told of progress, and of the run's events. settings: those of `tune`,
    such as time="10m", system, map, adapter, seed. Raises what `decide` and `train` raise."""
    began = time.monotonic()
    job = file if isinstance(file, Job) else decide(file, model=model, out=out, **settings)
    data = job.out / "data"
    tell = partial(told_bytes, observe)
    made = import_rows([str(job.file)], data, job.looked.plan, tell=tell)
    epochs = enough_epochs(made.splits["train"])
    result = train(replace(job.settings, epochs=epochs), observe=on_event)
    write_new(job.out / CONFIG, repeating(Path(result.run), job.out / "adapter-again").encode())
    s = job.settings
    rows = rows_of(data, "test")[1]
    chosen = sorted(epoch_order(len(rows), s.seed, 0)[:_SCORED].tolist())

    opening = Opening(s.model, Path(result.adapter), s.template, s.compute)
    schema = infer(rows_of(data, "train")[1]).schema if job.task.kind == "json" else None
    if schema is not None:
        write_new(job.out / SCHEMA, json.dumps(schema, ensure_ascii=False, indent=2).encode())
    answers = before_and_after(
        opening, [rows[place] for place in chosen], partial(labelled, observe), schema
    )
    # The adapter is written and scored: nothing about a page may fail the command.
    with contextlib.suppress(ItuneError, OSError):
        keep_samples(Path(result.run), answers[:_REPORTED])
    warnings = [*job.task.warnings()]
    if result.steps < FEW_STEPS:
        warnings.append(f"only {count(result.steps, 'step')}: a longer --time makes more")
    return Tuned(
        adapter=result.adapter,
        run=result.run,
        **_scores(job.task, answers),
        rows_used=result.rows_used,
        rows_not_used=made.rejected + result.rows_not_used,
        wall_s=time.monotonic() - began,
        test_rows=len(answers),
        model=s.model,
        task=job.task.kind,
        columns=dict(job.looked.guessed),
        system=job.system,
        data=str(data),
        config=str(job.out / CONFIG),
        schema=None if schema is None else str(job.out / SCHEMA),
        report=str(Path(result.run) / "report.html"),
        warnings=tuple(warnings),
        answers=tuple(_kept(each) for each in answers[:_KEPT]),
        train=result,
    )


def decide(
    file: PathLike, *, model: str = "smollm2", out: PathLike | None = None, **settings: Any
) -> Job:
    """What `tune` would do with a file; nothing is written, and no weight loaded. Raises DataError
    for a file that nothing can be learned from, ModelError, UsageError, StorageError."""
    file = Path(file)
    out = Path(out) if out is not None else free_name(file)
    refuse_occupied(out)
    form = {name: settings.pop(name) for name in FORM.split() if name in settings}
    system, time_limit = settings.pop("system", None), settings.pop("time", None) or TIME
    places = {"model": model, "data": out / "data", "out": out / "adapter"}
    kind = settings_from({**places, **settings, "time": time_limit}).adapter
    path = resolve(model)
    short = for_minutes(kind, read_shapes(path, vet(path)).hidden)
    s = settings_from({**places, **short, **settings, "time": time_limit})
    tokenizer = open_tokenizer(Opening(model, template=s.template))
    (plan,) = records(form, (ImportPlan, FORM))
    looked = look(file, plan)
    rows = looked.rows
    if len(rows) < FEWEST_ROWS:
        what = f"{count(len(rows), 'row')}: too few to learn from and to hold some out"
        raise DataError(what, where=str(file), hint="50 or more are a beginning")
    task = task_of(rows)
    if system is None and not task.systems:
        system = task.system
    split = held_out(file, len(rows))
    group = "first-turn" if split else None
    plan = replace(looked.plan, system=system, split=split, group_by=group, seed=s.seed)
    prompt = plan.system_prompt
    some = [rows[place * (len(rows) - 1) // (_SHOWN - 1)] for place in range(_SHOWN)]
    shown = tuple(_shown(prompt.on(row) if prompt else row, tokenizer) for row in some)
    system = prompt.text if prompt else None
    work = _workload(s, [prompt.on(row) for row in rows] if prompt else rows, tokenizer)
    s, change = made_to_fit(work)
    return Job(
        *(file, out, replace(looked, plan=plan), task, system, s, shown),
        peak_memory_bytes=work.otherwise(**vars(s)).peak_bytes if change else work.peak_bytes,
        limit_bytes=work.machine.limit_bytes,
        change=change,
    )


def _workload(s: TrainSettings, rows: Sequence[Conversation], tokenizer: ChatTokenizer) -> Workload:
    """The run's, judged by its longest rows: the memory that it takes is theirs."""
    longest = sorted(rows, key=lambda row: -sum(len(turn.content) for turn in row.turns))[:_LONGEST]
    examples = prepare(longest, tokenizer, max_length_tokens=s.max_length, too_long=s.too_long)
    path = resolve(s.model)
    return workload(s, path, vet(path), examples.examples)


def free_name(file: Path) -> Path:
    """The first free folder that is called after a file."""
    stem = file.resolve().stem
    names = (f"{stem}-tuned{'' if n == 1 else f'-{n}'}" for n in itertools.count(1))
    return next(Path(name) for name in names if not Path(name).exists())


def _shown(row: Conversation, tokenizer: ChatTokenizer) -> tuple[str, str, str]:
    shown = shown_examples(row, tokenizer, max_length=1 << 24)[0]
    parts = {True: "", False: ""}
    for piece in pieces(shown.tokens, tokenizer):
        parts[piece.weight > 0] += piece.text
    return Path(shown.title).name, parts[False], parts[True]


def keep_samples(run: Path, compared: Sequence[Compared]) -> None:
    """Answers before and after as `sample` events of a run, and in its report. Raises
    StorageError."""
    with EventLog(run / EVENTS) as log:
        for row, old, new, reference in compared:
            last = max(i for i, turn in enumerate(row.turns) if turn.role == "assistant")
            log.emit(
                "sample",
                # `valid.jsonl:12`, without the folder.
                row=Path(row.origin).name,
                task=row.tags.get("task"),
                prompt=asked_words(row.turns[:last])[-_MOST_CHARACTERS:],
                reference=reference[:_MOST_CHARACTERS],
                before=old[:_MOST_CHARACTERS],
                after=new[:_MOST_CHARACTERS],
            )
    report.write(run)


def _scores(task: Task, answers: Sequence[Compared]) -> dict[str, Any]:
    """By how many answers are right; of free text, where none is the same, by the words shared."""
    pairs = {
        "base": [Pair(each.before, each.reference) for each in answers],
        "tuned": [Pair(each.after, each.reference) for each in answers],
    }
    is_text = task.kind == "text"
    measure = token_f1 if is_text else exact_match
    scores: dict[str, Any] = {"metric": "token_f1" if is_text else "exact_match"}
    for name, given in pairs.items():
        scores[f"{name}_score"] = fmean(measure(each.answer, each.reference) for each in given)
        is_json = task.kind == "json"
        scores[f"{name}_valid_json"] = json_score(given).valid if is_json else None
    return scores


def _kept(each: Compared) -> dict[str, str]:
    asked = [turn.content for turn in each.row.turns if turn.role == "user"][-1]
    told = {"row": each.row.origin, "asked": asked, "reference": each.reference}
    return {**told, "base": each.before, "tuned": each.after}
