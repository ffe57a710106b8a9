"""What `train` and `resume` print when a run is done."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_itune.cli import report

if TYPE_CHECKING:
    from mlx_itune.training.engine.job import TrainResult


def tell(result: TrainResult) -> None:
    """The result as aligned lines, and what to type next."""
    not_used = f", {result.rows_not_used:,} not used" if result.rows_not_used else ""
    lines = [
        ("adapter", f"{result.adapter} ({_shipped(result)})"),
        ("run", result.run),
        ("report", str(Path(result.run) / "report.html")),
        ("rows", f"{result.rows_used:,} used{not_used}"),
        ("steps", f"{result.steps:,} ({result.epochs:g} epochs, {result.examples:,} rows)"),
        ("train loss", report.number(result.train_loss)),
        ("valid loss", report.number(result.valid_loss)),
        (
            "learned",
            f"{result.supervised_tokens:,} tokens, "
            f"{result.supervised_tokens_per_second:,.0f} per second",
        ),
        ("peak memory", report.megabytes(result.peak_memory_bytes)),
        ("time", report.seconds(result.wall_s)),
    ]
    if result.skipped_steps:
        note = f"{result.skipped_steps:,}, not finite; see {result.run}/incidents.jsonl"
        lines.insert(5, ("skipped", note))
    report.pairs(lines)
    print(f"next: {_next(result)}")


def _shipped(result: TrainResult) -> str:
    """Which step's weights the adapter holds."""
    if result.adapter_step != result.steps:
        why = ", stopped early" if result.stopped_early else ""
        return f"of step {result.adapter_step:,}, the best{why}"
    if result.best_step not in (None, result.steps):
        lower = f"step {result.best_step:,} had a lower validation loss: see --early-stopping"
        return f"of step {result.steps:,}, the last; {lower}"
    return f"of step {result.steps:,}, the last"


def _next(result: TrainResult) -> str:
    from mlx_itune.kit.config import from_toml
    from mlx_itune.training.run.run import CONFIG
    from mlx_itune.training.settings import TrainSettings

    settings = from_toml(Path(result.run) / CONFIG, TrainSettings)
    flags = {"model": settings["model"], "adapter": result.adapter, "data": settings["data"]}
    return "mlx-itune eval " + " ".join(f"--{k} {shlex.quote(str(v))}" for k, v in flags.items())
