"""What `train` and `resume` print when a run is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlx_itune.cli import report

if TYPE_CHECKING:
    from mlx_itune.training.job import TrainResult


def tell(result: TrainResult) -> None:
    """The result as aligned lines."""
    lines = [
        ("adapter", result.adapter),
        ("run", result.run),
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
    if result.stopped_early or result.adapter_step != result.steps:
        why = "stopped early; " if result.stopped_early else ""
        lines.insert(3, ("kept", f"{why}the adapter is that of step {result.adapter_step:,}"))
    if result.skipped_steps:
        note = f"{result.skipped_steps:,}, not finite; see {result.run}/incidents.jsonl"
        lines.insert(3, ("skipped", note))
    report.pairs(lines)
