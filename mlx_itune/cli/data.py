"""``data``: check, show and sample data sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_itune.cli import options
from mlx_itune.cli.lazy import LazyGroup
from mlx_itune.kit.errors import DataError, UsageError

if TYPE_CHECKING:
    from mlx_itune.dataset.render import TokenizedExample

_FAULTS_SHOWN = 50


@click.group(
    "data",
    cls=LazyGroup,
    commands_table={
        "check": ("mlx_itune.cli.data", "check", "Every fault of every row, as file:line."),
        "show": ("mlx_itune.cli.data", "show", "Tokens, coloured by whether they are learned."),
        "sample": ("mlx_itune.cli.data", "sample", "Write the invented clinical sample data."),
    },
)
def command() -> None:
    """Check, show and sample data sets."""


@options.command("check", "mlx-itune data check train.jsonl valid.jsonl")
@click.argument("files", nargs=-1, required=True, type=options.ANY_PATH)
@click.pass_context
def check(ctx: click.Context, files: tuple[Path, ...], as_json: bool, offline: bool) -> None:
    """Every fault of every row at once; exit code 3 if there is any.

    FILES are JSONL or JSON files, or folders of them.
    """
    from mlx_itune.cli import report
    from mlx_itune.dataset.sources import Fault, read_rows

    accepted = 0
    faults: list[Fault] = []
    for file in _expanded(files):
        for row in read_rows(file):
            if isinstance(row, Fault):
                faults.append(row)
            else:
                accepted += 1
    rejected = len({(fault.file, fault.line) for fault in faults})
    if as_json:
        report.emit(
            {
                "rows": accepted + rejected,
                "accepted": accepted,
                "rejected": rejected,
                "faults": faults,
            }
        )
    else:
        for fault in faults[:_FAULTS_SHOWN]:
            print(fault)
        if len(faults) > _FAULTS_SHOWN:
            print(f"... and {len(faults) - _FAULTS_SHOWN} more (--json lists all)")
        print(f"{accepted + rejected:,} rows, {accepted:,} accepted, {rejected:,} rejected")
    if faults or not accepted:
        ctx.exit(DataError.exit_code)


def _expanded(paths: tuple[Path, ...]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix in (".jsonl", ".json"))
            # A data folder's own description is no file of rows.
            inside = [p for p in inside if p.name != "dataset.json"]
            if not inside:
                raise DataError("has no .jsonl or .json file", where=str(path))
            files += inside
        else:
            files.append(path)
    return files


@options.command("show", "mlx-itune data show rows.jsonl --model starter --rows 2")
@click.argument("data", type=options.ANY_PATH)
@options.model
@click.option("--rows", "count", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--learn", type=click.Choice(["all", "last", "marked"]), default="all", show_default=True
)
@click.option("--max-length", type=click.IntRange(2), default=2048, show_default=True)
@options.template
def show(
    data: Path,
    model: str,
    count: int,
    learn: Any,
    max_length: int,
    template: str | None,
    as_json: bool,
    offline: bool,
) -> None:
    """The tokens a model would be trained on; learned ones stand out."""
    from mlx_itune.cli import report
    from mlx_itune.cli.opening import rows_of
    from mlx_itune.dataset.prepare import prepare
    from mlx_itune.dataset.tokenizer import load_tokenizer
    from mlx_itune.model.base import resolve, vet

    path = resolve(model, offline=offline)
    vet(path)
    tokenizer = load_tokenizer(path, template=template or "auto")
    rows = rows_of(data)[1][:count]
    examples = prepare(rows, tokenizer, max_length_tokens=max_length, learn=learn).examples
    if as_json:
        report.emit(
            {
                "rows": [
                    {
                        "row": example.origin,
                        "tokens": [
                            {"id": int(i), "text": tokenizer.decode([i]), "weight": float(w)}
                            for i, w in zip(example.input_ids, example.weights, strict=True)
                        ],
                    }
                    for example in examples
                ]
            }
        )
        return
    for example in examples:
        _print_tokens(example, tokenizer)


def _print_tokens(example: TokenizedExample, tokenizer: Any) -> None:
    """One row: learned runs in green (or between brackets where there is no colour)."""
    from rich.text import Text

    from mlx_itune.cli import report

    out = report.console()
    text = Text()
    ids, learned = example.input_ids.tolist(), (example.weights > 0).tolist()
    start = 0
    while start < len(ids):
        stop = start
        while stop < len(ids) and learned[stop] == learned[start]:
            stop += 1
        run = tokenizer.decode(ids[start:stop])
        if learned[start]:
            text.append(run if out.is_terminal else f"[[{run}]]", style="bold green")
        else:
            text.append(run, style="dim")
        start = stop
    out.print(f"{example.origin}: {sum(learned)} of {len(ids)} tokens learned", style="bold")
    out.print(text, soft_wrap=True)
    out.print()


@options.command("sample", "mlx-itune data sample --out clinical --seed 1")
@click.option("--out", type=options.DIRECTORY, required=True, metavar="DIR")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--train", type=click.IntRange(1), default=8000, show_default=True)
@click.option("--valid", type=click.IntRange(1), default=400, show_default=True)
@click.option("--test", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--unseen", type=click.IntRange(1), default=400, show_default=True)
def sample(
    out: Path,
    seed: int,
    train: int,
    valid: int,
    test: int,
    unseen: int,
    as_json: bool,
    offline: bool,
) -> None:
    """Write the clinical sample data: wholly invented notes, twenty kinds of task.

    unseen.jsonl asks in wordings that no other split uses.
    """
    from mlx_itune.cli import report
    from mlx_itune.dataset.clinical import write_dataset

    if out.resolve() == Path.cwd().resolve():
        raise UsageError("is the current directory", where=str(out), hint="name a new folder")
    write_dataset(out, seed=seed, train=train, valid=valid, test=test, unseen=unseen)
    sizes = {"train": train, "valid": valid, "test": test, "unseen": unseen}
    if as_json:
        report.emit({"out": out, "seed": seed, "rows": sizes})
    else:
        print(f"{out}: " + ", ".join(f"{rows:,} {name}" for name, rows in sizes.items()) + " rows")
