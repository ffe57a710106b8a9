"""What `train` and `resume` say when a run is done."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_itune.cli.result import pairs
from mlx_itune.kit.wording import count, duration, number, size

if TYPE_CHECKING:
    from mlx_itune.training.run.record import TrainResult


def lines(result: TrainResult) -> Iterator[str]:
    """The result as aligned lines, and what to type next."""
    from mlx_itune.kit.config import from_toml
    from mlx_itune.training.run.run import CONFIG
    from mlx_itune.training.settings import TrainSettings

    not_used = f", {result.rows_not_used:,} not used" if result.rows_not_used else ""
    speed = f"{result.supervised_tokens_per_second:,.0f} per second"
    facts = [
        ("adapter", f"{result.adapter} ({_shipped(result)})"),
        ("run", result.run),
        ("report", str(Path(result.run) / "report.html")),
        ("rows", f"{result.rows_used:,} used{not_used}"),
        ("steps", f"{result.steps:,} ({result.epochs:g} epochs, {count(result.examples, 'row')})"),
        ("train loss", number(result.train_loss)),
        ("valid loss", number(result.valid_loss)),
        ("learned", f"{result.supervised_tokens:,} tokens, {speed}"),
        ("peak memory", size(result.peak_memory_bytes)),
        ("time", duration(result.wall_s)),
    ]
    if result.skipped_steps:
        note = f"{result.skipped_steps:,}, not finite; see {result.run}/incidents.jsonl"
        facts.insert(5, ("skipped", note))
    yield from pairs(facts)
    settings = from_toml(Path(result.run) / CONFIG, TrainSettings)
    flags = {"model": settings["model"], "adapter": result.adapter, "data": settings["data"]}
    typed = " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in flags.items())
    yield f"next: mlx-itune eval {typed}"


def _shipped(result: TrainResult) -> str:
    """Which step's weights the adapter holds."""
    if result.adapter_step != result.steps:
        why = ", stopped early" if result.stopped_early else ""
        return f"of step {result.adapter_step:,}, the best{why}"
    if result.best_step not in (None, result.steps):
        lower = f"step {result.best_step:,} had a lower validation loss: see --early-stopping"
        return f"of step {result.steps:,}, the last; {lower}"
    return f"of step {result.steps:,}, the last"
