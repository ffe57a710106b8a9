"""``quickstart``: the whole job on the embedded starter, offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_itune.cli import options
from mlx_itune.cli.answer_options import as_record
from mlx_itune.cli.record_options import flag
from mlx_itune.cli.result import Result
from mlx_itune.training.settings import table

if TYPE_CHECKING:
    from mlx_itune.cli.quickstart_run import Recipe


@options.command("quickstart", "mlx-itune quickstart --workdir demo")
@click.option(
    "--workdir", type=options.DIRECTORY, default=Path("demo"), show_default=True, metavar="DIR"
)
@as_record(
    "chosen",
    "mlx_itune.cli.quickstart_run:Recipe",
    flag(table()["adapter"], defaulted=True),
    flag(table()["seed"], defaulted=True),
    click.option(
        "--data-seed", type=options.SEED, default=0, show_default=True, help="Of the sample data."
    ),
    flag(table()["steps"], "Optimizer steps (default: the recipe's)."),
)
def command(workdir: Path, chosen: Recipe) -> Result:
    """The whole job in minutes: data, train, evaluate before and after, fuse, export, one answer.

    Everything is made on this machine and nothing is downloaded. A workdir that exists gets a
    new numbered folder inside.
    """
    from mlx_itune.cli.progress import Progress
    from mlx_itune.cli.quickstart_page import lines
    from mlx_itune.cli.quickstart_run import run_job
    from mlx_itune.kit.network import go_offline

    go_offline()
    with Progress() as progress:
        outcome = run_job(workdir, chosen, progress)
    return Result(outcome, lines(outcome))
