"""``runs prune``: old checkpoints and old runs; shown first, removed with --yes."""

from __future__ import annotations

from pathlib import Path

import click

from mlx_itune.cli import options
from mlx_itune.cli.runs.listing import RUNS


@options.command("prune", "mlx-itune runs prune --keep 1 --yes")
@click.argument("run", nargs=-1)
@RUNS
@click.option(
    "--keep",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Newest checkpoints to keep in each run; the best one stays as well.",
)
@click.option(
    "--keep-runs", type=click.IntRange(0), help="Remove whole runs but for so many of the newest."
)
@click.option("--unfinished", is_flag=True, help="Whole runs that could be resumed go too.")
@click.option(
    "--yes/--dry-run", default=False, help="Do it; without, what would go is only printed."
)
def command(
    run: tuple[str, ...],
    runs: Path,
    keep: int,
    keep_runs: int | None,
    unfinished: bool,
    yes: bool,
    as_json: bool,
    offline: bool,
) -> None:
    """Remove checkpoints that are neither among the newest nor the best; all runs, or each RUN.

    A run that is training is left alone, and adapters are never touched.
    """
    from mlx_itune.cli import report
    from mlx_itune.training.run import catalogue
    from mlx_itune.training.run.run import all_in, find

    folders = [find(name, runs) for name in run] or all_in(runs)
    going = catalogue.prune(
        folders, keep=keep, keep_runs=keep_runs, unfinished=unfinished, really=yes
    )
    total = sum(item.bytes for item in going)
    if as_json:
        report.emit({"removed": yes, "bytes": total, "paths": going})
        return
    for item in going:
        print(f"{report.megabytes(item.bytes):>12}  {item.path}  ({item.why})")
    if not going:
        print("nothing to remove")
    elif yes:
        print(f"removed: {report.megabytes(total)}")
    else:
        print(f"would free {report.megabytes(total)}; --yes removes them")
