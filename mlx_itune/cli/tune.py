"""``tune``: a file of rows in; a tuned model, scored beside its base, out."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_itune.cli import options
from mlx_itune.cli.data import reading
from mlx_itune.cli.quickstart import told_answers
from mlx_itune.cli.result import Result, pairs, table
from mlx_itune.kit import network
from mlx_itune.kit.errors import ModelError, StorageError, UsageError, one_line
from mlx_itune.kit.wording import count, duration, listing, percent, size
from mlx_itune.training.settings import table as settings_table

if TYPE_CHECKING:
    from mlx_itune.api.tune import Job, Tuned
    from mlx_itune.dataset.checking.task import Task
    from mlx_itune.dataset.importing.first_look import FirstLook

_BEST = "smollm2"
_ANSWERS_SHOWN, _LABELS_SHOWN, _SHOWN_CHARS = 2, 5, 300


@options.command("tune")
@options.flags("file-to-tune model-or-best out-of-tune")
@options.flag(settings_table()["time"], "Train for so long at most (default 10m).")
@options.flag(settings_table()["system"])
@reading.form
@options.flag(settings_table()["adapter"], defaulted=True)
@options.flag(settings_table()["template"], defaulted=True)
@options.flag(settings_table()["seed"], defaulted=True)
@options.flag(settings_table()["runs"], defaulted=True)
@options.flags("yes-to-tune")
def command(file: Path, model: str | None, yes: bool, offline: bool, **chosen: Any) -> Result:
    """A file of rows in; a tuned model, scored beside its base, out.

    FILE is a table, a file of rows of any format, or a data folder. Columns, system prompt, model
    and settings are chosen by looking at it, shown with three rows as they will be learned, and
    asked about once. Held-out rows, which training never sees, are answered before and after.
    Everything that was decided stands in run.toml of the new folder.
    """
    from mlx_itune.api.tune import decide, tune
    from mlx_itune.cli.progress import Progress

    job = decide(file, model=_base(model), offline=offline, **chosen)
    for line in _preview(job):
        click.echo(one_line(line), err=True)
    if not yes:
        _ask()
    with Progress() as progress:
        made = tune(job, observe=progress.update, on_event=progress.training)
    return Result(made, _lines(made))


def _base(asked: str | None) -> str:
    """The model to tune: the one that is asked for, else the best that is here, or may be got."""
    from mlx_itune.cli.progress import Progress
    from mlx_itune.model.loading.base import resolve, vet
    from mlx_itune.model.loading.named import CARRIED, STARTER, get

    if asked is None:
        try:
            resolve(_BEST)
            return _BEST
        except (ModelError, StorageError) as error:
            told, fetch = CARRIED[_BEST], False
            if sys.stdin.isatty() and not network.offline():
                what = f"{_BEST} ({told.about}) is not here yet. Get it, {size(told.bytes)}?"
                fetch = click.confirm(what, default=True, err=True)
            if not fetch:
                options.tell([f"tuning {STARTER}, a toy that knows invented notes: {error}"])
                return STARTER
        with Progress() as progress:
            get(_BEST, progress.bytes_of("fetching", told.bytes))
        return _BEST
    # Its name and files are checked before the rows are read.
    vet(resolve(asked))
    return asked


def _ask() -> None:
    """Go on only if the user says so. Raises UsageError."""
    if not sys.stdin.isatty():
        what = "nobody can be asked here: standard input is no terminal"
        raise UsageError(what, hint="say --yes to tune like this")
    if not click.confirm("Tune like this?", default=True, err=True):
        raise UsageError("nothing was written", hint="--map, --system and --model say otherwise")


def _preview(job: Job) -> Iterator[str]:
    """What was decided, what will disappoint, and some rows as they will be learned."""
    looked, task = job.looked, job.task
    yield f"{job.file}: {_rows_told(looked)}"
    if looked.guessed:
        asks, answers = list(looked.guessed.values())[:2]
        other = " ".join(
            f"--map {shlex.quote(f'{field}={name}')}"
            for field, name in (("instruction", answers), ("output", asks))
        )
        yield f"columns  {asks!r} asks, {answers!r} answers, by their looks; else, say: {other}"
    yield f"answers  {_answers_told(task)}"
    if job.system:
        yield f"system   {job.system} (else: --system TEXT)"
    s = job.settings
    yield f"model    {s.model}, {s.adapter}, at most {s.time} of training, else: --model, --time"
    fits = f"about {size(job.peak_memory_bytes)} of the {size(job.limit_bytes)} it may take"
    yield f"memory   {fits}{f', by {job.change}' if job.change else ''}"
    yield f"out      {job.out}"
    for warning in task.warnings():
        yield f"warning: {warning}"
    for line in looked.how.told.lines():
        yield f"note: {line}"
    for place, reads, learns in job.shown:
        yield f"row {place}"
        yield f"  reads   {_cut(reads)}"
        yield f"  learns  {_cut(learns)}"


def _rows_told(looked: FirstLook) -> str:
    rows, broken = len(looked.rows), [f for f in looked.faults if f.severity == "error"]
    told = count(rows, "row")
    if looked.files:
        told += f" of {count(len(looked.files), 'file')}, as one data set: {listing(looked.files)}"
    if broken:
        told += f", {len(broken):,} more cannot be used, the first: {broken[0]}"
    return told


def _answers_told(task: Task) -> str:
    if task.kind == "labels":
        named = listing((f"{label} ({n:,})" for label, n in task.labels), _LABELS_SHOWN)
        return f"{count(len(task.labels), 'label')}: {named}"
    if task.kind == "json":
        keys = f", of the keys {listing(task.keys, _LABELS_SHOWN)}" if task.keys else ""
        return f"JSON{keys}"
    return f"text, {count(len(task.labels), 'different answer')}"


def _cut(text: str) -> str:
    """Of a long text both ends."""
    half = _SHOWN_CHARS // 2
    return text if len(text) <= 2 * half else f"{text[:half]} ... {text[-half:]}"


def _lines(made: Tuned) -> Iterator[Any]:
    """The scores, some answers, what was made, and what to do next."""
    metric, rows = made.metric.replace("_", " "), count(made.test_rows, "held-out row")
    scores = [[metric, percent(made.base_score), percent(made.tuned_score)]]
    if made.tuned_valid_json is not None:
        scores.append(["valid JSON", *map(percent, (made.base_valid_json, made.tuned_valid_json))])
    yield table([rows, "base", "tuned"], scores)
    for each in made.answers[:_ANSWERS_SHOWN]:
        title = f"{Path(each['row']).name}: {each['asked']}"
        yield from (*told_answers(title, each["reference"], each["base"], each["tuned"]), "")
    trained = made.train
    learned, used = min(trained.examples, made.rows_used), made.rows_used
    not_used = f", {made.rows_not_used:,} not used" if made.rows_not_used else ""
    yield from pairs(
        [
            ("adapter", f"{made.adapter} (step {trained.adapter_step:,} of {trained.steps:,})"),
            ("report", made.report),
            *([("schema", f"{made.schema} (answers are held to it)")] if made.schema else []),
            ("settings", f"{made.config} (train --config repeats this run)"),
            ("rows", f"{learned:,} of {used:,} learned{not_used}; {made.data}"),
            ("time", f"{duration(made.wall_s)}, {duration(trained.wall_s)} of it training"),
        ]
    )
    yield from (f"warning: {warning}" for warning in made.warnings)
    out = Path(made.adapter).parent
    model = f"--model {shlex.quote(made.model)}"
    tuned = f"{model} --adapter {shlex.quote(str(made.adapter))}"
    data, fused = (shlex.quote(str(place)) for place in (made.data, out / "fused"))
    yield from ("", "Next:")
    held = f" --schema {shlex.quote(made.schema)}" if made.schema else ""
    yield f"  mlx-itune chat {tuned}{held}"
    yield f"  mlx-itune eval {tuned} --data {data}"
    export = (
        f"mlx-itune export --model {fused} --to gguf --out {shlex.quote(str(out / 'tuned.gguf'))}"
    )
    yield f"  mlx-itune fuse {tuned} --data {data} --out {fused} && {export}"
