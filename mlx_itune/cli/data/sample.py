"""``data sample``: the invented clinical sample data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from mlx_itune.cli import options
from mlx_itune.cli.result import Result
from mlx_itune.kit.errors import UsageError, one_line

F = TypeVar("F", bound=Callable[..., Any])


def _rows(split: str, most: int) -> Callable[[F], F]:
    return click.option(
        f"--{split}", type=click.IntRange(1, most), default=most, show_default=True, metavar="N"
    )


@options.command("sample", "mlx-itune data sample --out clinical --seed 1")
@click.option("--out", type=options.DIRECTORY, required=True, metavar="DIR")
@click.option(
    "--seed", type=options.SEED, default=0, show_default=True, help="Another: in another order."
)
@_rows("train", 8000)
@_rows("valid", 400)
@_rows("test", 1000)
@_rows("unseen", 400)
def command(out: Path, seed: int, **sizes: int) -> Result:
    """Write the clinical sample data: wholly invented notes, twenty kinds of task.

    unseen.jsonl asks in wordings that no other split uses. With fewer rows than there are, every
    seed takes others, and as many of each task.
    """
    from mlx_itune.dataset.sample_data import write_sample

    if out.resolve() == Path.cwd().resolve():
        raise UsageError("is the current directory", where=str(out), hint="name a new folder")
    write_sample(out, seed=seed, sizes=sizes)
    told = ", ".join(f"{rows:,} {name}" for name, rows in sizes.items())
    return Result({"out": out, "seed": seed, "rows": sizes}, [f"{one_line(str(out))}: {told} rows"])
