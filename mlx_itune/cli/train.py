"""``train``: settings from flags and a config file, one run, one adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mlx_itune.cli import options, setting_flags
from mlx_itune.cli.result import Result


@options.command(
    "train", "mlx-itune train --model starter --data rows.jsonl --out adapter --epochs 2"
)
@setting_flags.flags
@click.option(
    "--samples",
    type=click.IntRange(0),
    default=0,
    help="Answer so many validation rows before and after, for the report (default 0).",
)
@click.option("--tensorboard", type=options.DIRECTORY, help="Event files there, for TensorBoard.")
@click.option("--wandb", metavar="PROJECT", help="Numbers and settings to Weights & Biases.")
def command(
    config: Path | None,
    samples: int,
    tensorboard: Path | None,
    wandb: str | None,
    offline: bool,
    **flags: Any,
) -> Result | None:
    """Tune a model on a data set by an adapter; only the assistant's words are learned."""
    from mlx_itune.cli import trained
    from mlx_itune.cli.progress import Progress
    from mlx_itune.cli.samples import add as answered
    from mlx_itune.training.engine.loop import train
    from mlx_itune.training.engine.rank_choice import is_writer
    from mlx_itune.training.hooks import attached

    settings = setting_flags.settings_of(config, flags, offline=offline)
    if not is_writer():
        train(settings)
        return None
    with Progress() as progress:
        with attached(
            settings, progress.training, wandb=wandb, tensorboard=tensorboard, say=progress.say
        ) as observe:
            result = train(settings, observe=observe)
        answered(settings, Path(result.run), Path(result.adapter), samples, progress)
    return Result(result, trained.lines(result))
