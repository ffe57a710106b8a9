"""``runs list``: every run, one line each."""

from __future__ import annotations

from pathlib import Path

import click

from mlx_itune.cli import options

RUNS = click.option(
    "--runs", type=options.DIRECTORY, default=Path("runs"), help="Where runs are (default: runs)."
)


@options.command("list", "mlx-itune runs list")
@RUNS
def command(runs: Path, as_json: bool, offline: bool) -> None:
    """Every run: running, finished, stopped (by a signal), killed, failed or diverged."""
    from mlx_itune.cli import report
    from mlx_itune.cli.training_view import size
    from mlx_itune.training.run import catalogue
    from mlx_itune.training.run.run import all_in

    lines = [catalogue.line_of(folder) for folder in all_in(runs)]
    if as_json:
        report.emit({"runs": lines})
        return
    if not lines:
        print(f"no runs in {runs}")
        return
    rows = [
        [
            Path(line.run).name,
            line.state,
            f"{line.step}/{line.steps}" if line.steps else f"{line.step}",
            report.number(line.train_loss, 3),
            report.number(line.valid_loss, 3),
            report.number(line.best_valid_loss, 3),
            size(line.bytes),
        ]
        for line in lines
    ]
    columns = ["run", "state", "step", "train", "valid", "best", "size"]
    report.console().print(report.table(columns, rows))
    for line in lines:
        if line.resume:
            print(f"{line.state}, continue with:\n  {line.resume}")
