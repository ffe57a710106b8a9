"""``plan``: what a run would take, before any weight is loaded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mlx_itune.cli import options, setting_flags
from mlx_itune.kit.errors import ResourceError


@options.command("plan", "mlx-itune plan --model starter --data rows.jsonl --batch-size 16")
@setting_flags.flags
def command(config: Path | None, as_json: bool, offline: bool, **flags: Any) -> None:
    """Predict peak memory and time of a run of `train` with the same flags; exit 7: will not fit.

    Nothing is trained and no weight is loaded: sizes are read from the headers of the model's
    files, lengths from the tokenized rows.
    """
    from mlx_itune.training.plan.memory_plan import make_plan
    from mlx_itune.training.setup import gather

    anywhere = {"out": Path("adapter")}
    settings = setting_flags.settings_of(config, flags, offline=offline, instead=anywhere)
    material = gather(settings)
    plan = make_plan(settings, material.path, material.config, material.train)
    from mlx_itune.cli import report

    if as_json:
        report.emit(plan)
    else:
        _print(plan)
    if not plan.fits:
        # The answer is printed; the exit code says the same.
        sys.exit(ResourceError.exit_code)


def _print(plan: Any) -> None:
    from mlx_itune.cli import report

    verdict = "fits" if plan.fits else "does not fit"
    report.pairs(
        [
            ("peak memory", f"{report.megabytes(plan.peak_memory_bytes)}, {verdict}"),
            *((f"  {name}", report.megabytes(size)) for name, size in plan.breakdown.items()),
            ("may take", f"{report.megabytes(plan.limit_bytes)} ({plan.limit_from})"),
            ("time per epoch", f"about {report.seconds(plan.time_per_epoch_s)}"),
            ("steps per epoch", f"{plan.steps_per_epoch:,} ({plan.tokens_per_epoch:,} tokens)"),
            ("longest row", f"{plan.longest_tokens:,} tokens"),
            ("trains", f"{plan.trainable_parameters:,} parameters"),
            ("compute", plan.compute),
            ("checkpointing", "on" if plan.gradient_checkpointing else "off"),
        ]
    )
    for suggestion in plan.suggestions:
        size, fits = report.megabytes(suggestion.peak_memory_bytes), suggestion.fits
        print(f"try {suggestion.change}: {size}{', fits' if fits else ', still too much'}")
