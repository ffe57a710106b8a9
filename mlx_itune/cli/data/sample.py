"""``data sample``: the invented clinical sample data."""

from __future__ import annotations

from pathlib import Path

import click

from mlx_itune.cli import options
from mlx_itune.kit.errors import UsageError


@options.command("sample", "mlx-itune data sample --out clinical --seed 1")
@click.option("--out", type=options.DIRECTORY, required=True, metavar="DIR")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--train", type=click.IntRange(1), default=8000, show_default=True)
@click.option("--valid", type=click.IntRange(1), default=400, show_default=True)
@click.option("--test", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--unseen", type=click.IntRange(1), default=400, show_default=True)
def command(
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
