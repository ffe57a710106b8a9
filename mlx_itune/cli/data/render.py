"""``data render``: rows with named fields into prompts, through task templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_itune.cli import options
from mlx_itune.kit.errors import UsageError, closest

if TYPE_CHECKING:
    from mlx_itune.dataset.templating.outcome import Outcome
    from mlx_itune.dataset.templating.tasks import Task

_WARNINGS_SHOWN = 10


def _numbers(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """Whole numbers >= 0 between commas: 0,1,2,5."""
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 4 for part in parts):
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 0,1,2,5")
    return tuple(map(int, parts))


@options.command(
    "render",
    "mlx-itune data render gsm8k.jsonl --templates data/templates/grade_school_math.toml "
    "--out rendered",
)
@click.argument("source", type=options.ANY_PATH, metavar="SRC")
@click.option(
    "--templates",
    type=options.ANY_PATH,
    required=True,
    metavar="FILE",
    help="Task file (TOML): fields and the templates that lay them out; see docs/templates.md.",
)
@click.option("--out", type=options.DIRECTORY, required=True, metavar="DIR")
@click.option(
    "--task",
    "names",
    multiple=True,
    metavar="NAME",
    help="Render this task only (repeatable); without it, every task of the file.",
)
@click.option(
    "--draws",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Examples per row and task.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--shots",
    callback=_numbers,
    default="0",
    show_default=True,
    metavar="N,N,...",
    help="Numbers of exemplars; each example draws one of them.",
)
@click.option(
    "--shot-budget",
    type=click.IntRange(1),
    default=1920,
    show_default=True,
    metavar="TOKENS",
    help="Exemplars are taken out of a prompt until it is this short.",
)
@click.option(
    "--model",
    metavar="MODEL",
    help="Whose tokenizer measures the budget: 'starter', a directory or a Hub id.",
)
@click.option(
    "--inverse-weight",
    type=click.FloatRange(0),
    default=0.3,
    show_default=True,
    help="How often inverse templates are drawn, to 1 for the others.",
)
@click.option(
    "--options",
    "mode",
    type=click.Choice(["random", "lines", "letters", "none"]),
    default="lines",
    show_default=True,
    help="How answer options are laid out; with letters the answer is the letter.",
)
@click.option(
    "--split",
    metavar="SHARES",
    help="train/valid/test, such as 0.9/0.05/0.05; without it, every row is a training row.",
)
@click.option(
    "--columns",
    metavar="NAME,NAME,...",
    help="Names of the columns of a table without a header line.",
)
@click.option(
    "--keep-going",
    is_flag=True,
    help="Leave out rows that cannot be rendered; rejected.jsonl lists them.",
)
def command(
    source: Path,
    templates: Path,
    out: Path,
    names: tuple[str, ...],
    draws: int,
    seed: int,
    shots: tuple[int, ...],
    shot_budget: int,
    model: str | None,
    inverse_weight: float,
    mode: Any,
    split: str | None,
    columns: str | None,
    keep_going: bool,
    as_json: bool,
    offline: bool,
) -> None:
    """Write rows with named fields as prompts and replies, through many templates per task.

    SRC is a file of rows (JSONL, JSON, CSV, TSV, Parquet, XLSX) or a folder of them; a folder with
    a train file is read by splits. The choice of a template depends on the row's content and the
    seed alone. Exemplars come from training rows.
    """
    from mlx_itune.cli.progress import Progress
    from mlx_itune.dataset.importing.splitting import parse_shares
    from mlx_itune.dataset.templating.lints import lint
    from mlx_itune.dataset.templating.raw import raw_files
    from mlx_itune.dataset.templating.render import Settings
    from mlx_itune.dataset.templating.run import Plan, run
    from mlx_itune.dataset.templating.task_file import load_tasks
    from mlx_itune.kit.files import sha256_file

    settings = Settings(draws, seed, mode, inverse_weight, shots, shot_budget)
    shares = parse_shares(split) if split else None
    if settings.wants_exemplars and model is None:
        raise UsageError(
            "--shots needs --model, whose tokenizer measures the budget",
            hint="such as --model starter",
        )
    if model is not None and not settings.wants_exemplars:
        raise UsageError("--model has no effect without --shots above 0")
    tasks = _chosen(load_tasks(templates), names, templates)
    files, left_out = raw_files(source, out)
    if shares and files[0].split:
        raise UsageError(f"{source} has splits of its own", hint="leave out --split")
    warnings = lint(tasks)
    measure = _measure_with(model, offline) if model else None
    plan = Plan(files, tasks, settings, shares, _names(columns), keep_going)
    recorded = {
        "templates": templates.name,
        "templates_sha256": sha256_file(templates),
        "tasks": [task.name for task in tasks],
        "split": split,
        **({"model": model} if model else {}),
    }
    with Progress() as progress:
        for warning in warnings[:_WARNINGS_SHOWN]:
            progress.say(f"warning: {warning}")
        if len(warnings) > _WARNINGS_SHOWN:
            progress.say(f"... and {len(warnings) - _WARNINGS_SHOWN} more (--json lists all)")
        for path in left_out:
            progress.say(f"note: {path.name} is no split of {source} and is left out")
        outcome = run(plan, out, measure=measure, recorded=recorded, on_bytes=progress.update)
    _report(outcome, out, warnings, as_json)


def _chosen(tasks: tuple[Task, ...], names: tuple[str, ...], file: Path) -> tuple[Task, ...]:
    known = {task.name: task for task in tasks}
    for name in names:
        if name not in known:
            near = closest(name, known)
            hint = f"did you mean {near}?" if near else "it has " + ", ".join(known)
            raise UsageError(f"no task {name!r} in {file}", hint=hint)
    return tuple(known[name] for name in dict.fromkeys(names)) if names else tasks


def _names(columns: str | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in columns.split(",")) if columns is not None else ()
    if not all(names) or len(set(names)) < len(names):
        raise UsageError(f"--columns {columns!r} must be different names between commas")
    return names


def _measure_with(model: str, offline: bool) -> Callable[[Sequence[str]], list[int]]:
    """Counts tokens with a model's own tokenizer."""
    from mlx_itune.dataset.tokens.tokenizer import load_tokenizer
    from mlx_itune.model.loading.base import resolve

    # Any chat template would do: only plain text is counted.
    tokenizer = load_tokenizer(resolve(model, offline=offline), template="chatml")
    return lambda texts: [len(encoded.ids) for encoded in tokenizer.encode_many(texts)]


def _report(outcome: Outcome, out: Path, warnings: Sequence[object], as_json: bool) -> None:
    from mlx_itune.cli import report

    if as_json:
        report.emit(
            {
                "out": out,
                "rows": outcome.rows,
                "examples": outcome.examples,
                "rejected": outcome.rejected,
                "dropped": outcome.dropped,
                "splits": outcome.splits,
                "tasks": outcome.tables,
                "warnings": warnings,
                "faults": outcome.faults,
                "ledger": outcome.ledger,
            }
        )
        return
    for fault in outcome.faults:
        print(fault)
    for table in outcome.tables:
        rows = [
            (
                f"{each['template']}",
                each["kind"],
                report.percent(each["requested"]),
                report.percent(each["achieved"]),
            )
            for each in table["templates"]
        ]
        title = f"{table['task']}: {table['examples']:,} examples"
        report.console().print(
            report.table(("template", "kind", "requested", "achieved"), rows, title=title)
        )
        if set(table["shots"]) != {"0"}:
            listed = ", ".join(f"{n} with {shots}" for shots, n in table["shots"].items())
            print(f"exemplars: {listed}; {table['dropped']} dropped that could keep none")
    sizes = ", ".join(f"{count:,} {name}" for name, count in outcome.splits.items())
    print(
        f"{out}: {outcome.rows:,} rows, {outcome.rejected:,} rejected; {sizes} examples, "
        f"{outcome.dropped:,} dropped"
    )
