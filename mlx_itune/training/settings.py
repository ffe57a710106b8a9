"""Everything a training run can be told, validated at once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mlx_itune.kit.errors import UsageError, closest
from mlx_itune.training.engine import optimizers

Preset = Literal["alpaca", "vicuna", "hermes", "small-data"]

Switch = Literal["auto", "on", "off"]

# The published recipes (Stanford Alpaca, FastChat's Vicuna, Hermes 3: 2408.11857), with ten times
# their learning rates of 2e-5, 2e-5 and 7e-6: those are for full fine-tuning. docs/defaults.md.
PRESETS: dict[str, dict[str, object]] = {
    "alpaca": {
        "epochs": 3.0,
        "batch_size": 128,
        "learning_rate": 2e-4,
        "max_length": 512,
        "warmup": 0.03,
    },
    "vicuna": {
        "epochs": 3.0,
        "batch_size": 128,
        "learning_rate": 2e-4,
        "max_length": 2048,
        "warmup": 0.04,
    },
    "hermes": {
        "epochs": 3.0,
        "batch_size": 128,
        "learning_rate": 7e-5,
        "weight_decay": 0.01,
        "max_length": 4096,
        "warmup": 300.0,
    },
    "small-data": {"epochs": 5.0, "batch_size": 8, "learning_rate": 1e-4, "dropout": 0.05},
}
DEFAULT_EPOCHS = 3.0


@dataclass(frozen=True)
class TrainSettings:
    """One run. Raises UsageError that lists every field out of range.

    epochs and steps: the shorter of both ends the run; with neither, three epochs. warmup: below 1
    a share of the run, else a number of steps. alpha: 2 * rank unless given. keys: see
    model/targets.choose; none is every linear layer. num_layers: of the last blocks; -1 is all.
    lora_plus_ratio: learning rate of B over that of A. early_stopping: validations without a new
    best that end the run; 0 is never. memory_gb: what the run may take; unset, what is there.
    """

    model: str
    data: Path
    out: Path
    runs: Path = Path("runs")
    epochs: float | None = None
    steps: int | None = None
    batch_size: int = 8
    learning_rate: float = 2e-4
    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    adapter: Literal["lora", "rslora", "dora", "grid", "qalora"] = "lora"
    keys: tuple[str, ...] = ()
    num_layers: int = -1
    preset: Preset | None = None
    format: str | None = None
    map: tuple[str, ...] = ()
    template: Literal["auto", "chatml", "alpaca", "vicuna"] = "auto"
    max_length: int = 2048
    learn: Literal["all", "last", "marked"] = "all"
    too_long: Literal["split", "truncate", "drop", "error"] = "split"
    compute: Literal["auto", "dequantized", "quantized"] = "auto"
    save_every: int = 200
    save_every_s: float = 300.0
    keep: int = 2
    seed: int = 0
    optimizer: Literal[
        "adamw",
        "adam",
        "adamax",
        "lion",
        "sgd",
        "rmsprop",
        "adagrad",
        "adadelta",
        "adafactor",
        "muon",
    ] = "adamw"
    optimizer_options: tuple[str, ...] = ()
    lora_plus_ratio: float = 1.0
    weight_decay: float = 0.0
    warmup: float = 0.03
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    clip_norm: float = 1.0
    eval_every: int = 0
    early_stopping: int = 0
    micro_batch_tokens: int | None = None
    memory_gb: float | None = None
    packing: Switch = "auto"
    prefix_sharing: Switch = "auto"
    gradient_checkpointing: Switch = "auto"
    offline: bool = False

    def __post_init__(self) -> None:
        problems = [*_ranges(self), *_choices(self), *_conflicts(self)]
        if problems:
            raise UsageError("; ".join(problems))

    @property
    def scale(self) -> float:
        """What multiplies the low-rank update; rsLoRA divides by sqrt(rank) (2312.03732)."""
        alpha = 2.0 * self.rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.rank) if self.adapter == "rslora" else self.rank)

    @property
    def columns(self) -> dict[str, str] | None:
        """`map` as field -> column; None where nothing is mapped."""
        return {f: c for f, _, c in (pair.partition("=") for pair in self.map)} or None

    @property
    def patience(self) -> int:
        """Validations without a new best that end the run; 0 is no limit."""
        return self.early_stopping

    @property
    def optimizer_settings(self) -> optimizers.OptimizerSettings:
        """What `optimizers.make` needs."""
        return optimizers.OptimizerSettings(
            self.optimizer, self.optimizer_options, self.weight_decay, self.lora_plus_ratio
        )

    @property
    def planned_epochs(self) -> float | None:
        """The limit in epochs: None only when `steps` alone ends the run."""
        if self.epochs is None and self.steps is None:
            return DEFAULT_EPOCHS
        return self.epochs


def settings_from(values: Mapping[str, Any]) -> TrainSettings:
    """Settings of explicit values over their preset's over the defaults. Raises UsageError."""
    names = [field.name for field in dataclasses.fields(TrainSettings)]
    for name in values:
        if name not in names:
            near = closest(name, names)
            hint = f"did you mean {near}?" if near else None
            raise UsageError(f"unknown setting {name!r}", hint=hint)
    chosen = values.get("preset")
    if chosen is not None and chosen not in PRESETS:
        near = closest(str(chosen), PRESETS)
        hint = f"did you mean {near}?" if near else "one of " + ", ".join(PRESETS)
        raise UsageError(f"unknown preset {chosen!r}", hint=hint)
    preset = dict(PRESETS.get(chosen or "", {}))
    # Steps that somebody asked for are not cut short by a preset's epochs.
    if values.get("steps") is not None:
        preset.pop("epochs", None)
    # Nor is a preset's dropout or decay forced on what has none; asking for it is an error.
    if values.get("adapter") == "grid":
        preset.pop("dropout", None)
    if not optimizers.has_weight_decay(str(values.get("optimizer", "adamw"))):
        preset.pop("weight_decay", None)
    return TrainSettings(**{**preset, **values})


def _ranges(s: TrainSettings) -> list[str]:
    finite = math.isfinite
    checks = {
        "epochs must be above 0": s.epochs is None or (finite(s.epochs) and s.epochs > 0),
        "steps must be at least 1": s.steps is None or s.steps >= 1,
        "batch_size must be at least 1": s.batch_size >= 1,
        "learning_rate must be above 0 and below 1": 0 < s.learning_rate < 1,
        "rank must be from 1 to 1024": 1 <= s.rank <= 1024,
        "alpha must be above 0": s.alpha is None or (finite(s.alpha) and s.alpha > 0),
        "dropout must be at least 0 and below 1": 0 <= s.dropout < 1,
        "max_length must be at least 2": s.max_length >= 2,
        "num_layers must be at least 1, or -1 for all": s.num_layers == -1 or s.num_layers >= 1,
        "save_every must be at least 0 (0: never)": s.save_every >= 0,
        "save_every_s must be at least 0 (0: never)": finite(s.save_every_s)
        and s.save_every_s >= 0,
        "keep must be at least 1": s.keep >= 1,
        "early_stopping must be at least 0 (0: never)": s.early_stopping >= 0,
        "memory_gb must be above 0": s.memory_gb is None
        or (finite(s.memory_gb) and s.memory_gb > 0),
        "lora_plus_ratio must be above 0": finite(s.lora_plus_ratio) and s.lora_plus_ratio > 0,
        "lora_plus_ratio times learning_rate must be below 1": s.lora_plus_ratio * s.learning_rate
        < 1,
        "eval_every must be at least 0 (0: only at start and end)": s.eval_every >= 0,
        "weight_decay must be at least 0": finite(s.weight_decay) and s.weight_decay >= 0,
        "warmup must be at least 0": finite(s.warmup) and s.warmup >= 0,
        "clip_norm must be at least 0 (0: no clipping)": finite(s.clip_norm) and s.clip_norm >= 0,
        "micro_batch_tokens must be at least 1": s.micro_batch_tokens is None
        or s.micro_batch_tokens >= 1,
        "seed must be at least 0": s.seed >= 0,
        "map must be field=column pairs": all("=" in pair for pair in s.map),
    }
    return [
        f"{rule}, not {getattr(s, rule.split()[0])}" for rule, holds in checks.items() if not holds
    ]


def _choices(s: TrainSettings) -> list[str]:
    hints = get_type_hints(TrainSettings)
    options = {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}
    return [
        f"{name} must be one of {', '.join(allowed)}, not {getattr(s, name)!r}"
        for name, allowed in options.items()
        if getattr(s, name) not in allowed
    ]


def _conflicts(s: TrainSettings) -> list[str]:
    """What would have no effect, or none that was meant."""
    problems = []
    if s.adapter == "grid" and s.dropout:
        problems.append("dropout must be 0 with adapter grid, which has none")
    if s.early_stopping and not s.eval_every:
        problems.append("early_stopping needs eval_every, the steps between validations")
    if s.optimizer in optimizers.NAMES:
        if s.weight_decay and not optimizers.has_weight_decay(s.optimizer):
            problems.append(f"weight_decay must be 0 with {s.optimizer}, which has none")
        try:
            optimizers.options_from(s.optimizer, s.optimizer_options)
        except UsageError as error:
            problems.append(str(error))
    return problems
