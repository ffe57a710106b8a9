"""``runs verify``: are the checkpoints what was sealed?"""

from __future__ import annotations

from pathlib import Path

import click

from mlx_itune.cli import options
from mlx_itune.cli.runs.listing import RUNS
from mlx_itune.kit.errors import StorageError


@options.command("verify", "mlx-itune runs verify")
@click.argument("run", nargs=-1)
@RUNS
def command(run: tuple[str, ...], runs: Path, as_json: bool, offline: bool) -> None:
    """Compare every file of every checkpoint with its manifest; all runs unless RUN names some.

    Exit code 5 if any differs.
    """
    from mlx_itune.cli import report
    from mlx_itune.training.run import catalogue
    from mlx_itune.training.run.run import all_in, find

    folders = [find(name, runs) for name in run] or all_in(runs)
    seals = [seal for folder in folders for seal in catalogue.seals(folder)]
    broken = [seal for seal in seals if seal.fault]
    if as_json:
        report.emit({"checkpoints": seals, "broken": len(broken)})
        if broken:
            raise click.exceptions.Exit(StorageError.exit_code)
        return
    for seal in seals:
        print(f"{'broken' if seal.fault else 'ok':<7} {seal.path}")
    if broken:
        more = f", and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise StorageError(
            f"{broken[0].fault}{more}", hint="resume goes on from the last undamaged checkpoint"
        )
    print(f"{len(seals)} checkpoints of {len(folders)} runs are what was sealed")
