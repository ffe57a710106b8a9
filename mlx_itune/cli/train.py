"""``train``: settings from flags and a config file, one run, one adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mlx_itune.cli import options
from mlx_itune.kit.errors import UsageError

_FLAGS: tuple[tuple[str, Any, str], ...] = (
    ("--model", str, "'starter', a model directory or a Hub id."),
    ("--data", options.ANY_PATH, "A file of rows, or a folder with train.jsonl."),
    ("--out", options.DIRECTORY, "Where the adapter goes."),
    ("--runs", options.DIRECTORY, "Where runs are kept (default: runs)."),
    ("--epochs", float, "Times through the data (default 3, or what --steps says)."),
    ("--steps", int, "Stop after so many optimizer steps."),
    ("--batch-size", int, "Rows per optimizer step (default 8)."),
    ("--learning-rate", float, "Peak learning rate (default 2e-4)."),
    (
        "--adapter",
        click.Choice(["lora", "rslora", "dora", "grid", "qalora"]),
        "Kind of adapter (default lora). grid and qalora fuse into a quantized base without loss.",
    ),
    ("--rank", int, "Rank of the adapter (default 16)."),
    ("--alpha", float, "The update is scaled by alpha / rank (default 2 * rank)."),
    ("--dropout", float, "Dropout before the low-rank update (default 0)."),
    ("--num-layers", int, "Adapt the last so many blocks only (default -1, all)."),
    (
        "--preset",
        click.Choice(["alpaca", "vicuna", "hermes", "small-data"]),
        "A published recipe; other flags win over it.",
    ),
    ("--format", str, "Format of raw rows (default: found per row); see data import --help."),
    (
        "--template",
        click.Choice(["auto", "alpaca", "chatml", "vicuna"]),
        "Chat template (default auto).",
    ),
    ("--max-length", int, "Longest row in tokens (default 2048)."),
    ("--learn", click.Choice(["all", "last", "marked"]), "Assistant turns to learn (all)."),
    (
        "--too-long",
        click.Choice(["split", "truncate", "drop", "error"]),
        "What happens to longer rows (default split).",
    ),
    ("--compute", click.Choice(["auto", "dequantized", "quantized"]), "(default auto)."),
    ("--save-every", int, "Steps between checkpoints; 0 is never (default 200)."),
    ("--save-every-s", float, "Seconds between checkpoints; 0 is never (default 300)."),
    ("--keep", int, "Newest checkpoints that stay (default 2)."),
    ("--eval-every", int, "Steps between validations; 0 is start and end only."),
    ("--early-stopping", int, "End after so many validations without a new best; 0 is never."),
    ("--seed", int, "Seed of order, initialization and dropout (default 0)."),
    (
        "--optimizer",
        click.Choice("adamw adam adamax lion sgd rmsprop adagrad adadelta adafactor muon".split()),
        "(default adamw).",
    ),
    ("--weight-decay", float, "Decay of adamw, lion, sgd, adafactor and muon (default 0)."),
    ("--lora-plus-ratio", float, "LoRA+: learning rate of B over that of A (default 1)."),
    ("--warmup", float, "Warm-up: below 1 a share of the run, else steps (default 0.03)."),
    ("--schedule", click.Choice(["cosine", "linear", "constant"]), "(default cosine)."),
    ("--clip-norm", float, "Largest gradient norm; 0 is no clipping (default 1)."),
    ("--micro-batch-tokens", int, "Tokens computed at once (default: by device and memory)."),
    ("--memory-gb", float, "Memory that the run may take (default: what this machine has)."),
    *(
        (flag, click.Choice(["auto", "on", "off"]), f"{what}.")
        for flag, what in (
            ("--packing", "Rows side by side, without padding (default auto)"),
            ("--prefix-sharing", "Common beginnings computed once (default auto)"),
            ("--gradient-checkpointing", "Activations computed twice, not kept (default auto)"),
        )
    ),
)
# Flags that may be repeated.
_LISTS: tuple[tuple[str, str, str], ...] = (
    (
        "--map",
        "FIELD=COLUMN",
        "Where a raw file keeps a field, for example question=1 (may be repeated).",
    ),
    (
        "--keys",
        "NAME",
        "Layers to adapt: a name (q_proj), a glob ('*.mlp.*') or re:REGEX; default all linear "
        "layers (may be repeated).",
    ),
    (
        "--optimizer-options",
        "KEY=VALUE",
        "Of the optimizer, for example betas=0.9,0.95 (may be repeated).",
    ),
)


def _flags(function: Callable[..., Any]) -> Callable[..., Any]:
    for flag, metavar, help_line in reversed(_LISTS):
        function = click.option(flag, multiple=True, metavar=metavar, help=help_line)(function)
    for flag, kind, help_line in reversed(_FLAGS):
        function = click.option(flag, type=kind, help=help_line)(function)
    return function


@options.command(
    "train", "mlx-itune train --model starter --data rows.jsonl --out adapter --epochs 2"
)
@click.option(
    "--config",
    type=options.ANY_PATH,
    metavar="TOML",
    help="The same settings in a file; flags win over it.",
)
@_flags
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
    as_json: bool,
    offline: bool,
    **flags: Any,
) -> None:
    """Tune a model on a data set by an adapter; only the assistant's words are learned."""
    from mlx_itune.cli import report, trained
    from mlx_itune.cli.progress import Progress
    from mlx_itune.cli.samples import add as answered
    from mlx_itune.kit.config import from_toml
    from mlx_itune.training.engine.loop import train
    from mlx_itune.training.engine.rank_choice import is_writer
    from mlx_itune.training.hooks import attached
    from mlx_itune.training.settings import TrainSettings, settings_from

    values: dict[str, Any] = from_toml(config, TrainSettings) if config else {}
    values |= {name: value for name, value in flags.items() if value not in (None, ())}
    if offline:
        values["offline"] = True
    missing = [f"--{name}" for name in ("model", "data", "out") if name not in values]
    if missing:
        raise UsageError(f"missing {', '.join(missing)}", hint="see mlx-itune train --help")
    if values.get("offline"):
        from mlx_itune.kit.network import go_offline

        go_offline()
    settings = settings_from(values)
    if not is_writer():
        train(settings)
        return
    with Progress() as progress:
        with attached(
            settings, progress.training, wandb=wandb, tensorboard=tensorboard, say=progress.say
        ) as observe:
            result = train(settings, observe=observe)
        answered(settings, Path(result.run), Path(result.adapter), samples, progress)
    if as_json:
        report.emit(result)
    else:
        trained.tell(result)
