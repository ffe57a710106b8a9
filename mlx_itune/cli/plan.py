"""``plan``: what a run would take, before any weight is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlx_itune.cli import options, setting_flags
from mlx_itune.cli.result import Result, pairs
from mlx_itune.kit.errors import ResourceError
from mlx_itune.kit.wording import duration, size


@options.command("plan", "mlx-itune plan --model starter --data rows.jsonl --batch-size 16")
@setting_flags.flags
def command(config: Path | None, offline: bool, **flags: Any) -> Result:
    """Predict peak memory and time of a run of `train` with the same flags; exit 7: will not fit.

    Nothing is trained and no weight is loaded: sizes are read from the headers of the model's
    files, lengths from the tokenized rows.
    """
    from mlx_itune.training.plan.memory_plan import make_plan, workload
    from mlx_itune.training.setup import gather

    anywhere = {"out": Path("adapter")}
    settings = setting_flags.settings_of(config, flags, offline=offline, instead=anywhere)
    material = gather(settings)
    plan = make_plan(workload(settings, material.path, material.config, material.train))
    return Result(plan, _lines(plan), exit_code=0 if plan.fits else ResourceError.exit_code)


def _lines(plan: Any) -> Iterator[str]:
    verdict = "fits" if plan.fits else "does not fit"
    yield from pairs(
        [
            ("peak memory", f"{size(plan.peak_memory_bytes)}, {verdict}"),
            *((f"  {name}", size(count_bytes)) for name, count_bytes in plan.breakdown.items()),
            ("may take", f"{size(plan.limit_bytes)} ({plan.limit_from})"),
            ("time per epoch", f"about {duration(plan.time_per_epoch_s)}"),
            ("steps per epoch", f"{plan.steps_per_epoch:,} ({plan.tokens_per_epoch:,} tokens)"),
            ("longest row", f"{plan.longest_tokens:,} tokens"),
            ("trains", f"{plan.trainable_parameters:,} parameters"),
            ("compute", plan.compute),
            ("checkpointing", "on" if plan.gradient_checkpointing else "off"),
        ]
    )
    for suggestion in plan.suggestions:
        verdict = "fits" if suggestion.fits else "still too much"
        yield f"try {suggestion.change}: {size(suggestion.peak_memory_bytes)}, {verdict}"
