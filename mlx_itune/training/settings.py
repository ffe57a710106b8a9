"""Everything a training run can be told: each setting's type, range, default and help, once.

The flags of the command line, the keys of a config file, the checks below and the table of
docs/defaults.md are all made of the fields of `TrainSettings`. Nothing heavy is imported here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval

from mlx_itune.dataset.conversation import SystemMode, SystemPrompt, system_prompt
from mlx_itune.dataset.how import Reading
from mlx_itune.kit.errors import UsageError
from mlx_itune.kit.settings import Help, Setting, out_of_range, table_of
from mlx_itune.kit.wording import did_you_mean, seconds_of

# The published recipes (Stanford Alpaca, FastChat's Vicuna, Hermes 3: 2408.11857), with ten times
# their learning rates of 2e-5, 2e-5 and 7e-6: those are for full fine-tuning. docs/defaults.md.
_LARGE: dict[str, Any] = {"epochs": 3.0, "batch_size": 128}
PRESETS: dict[str, dict[str, Any]] = {
    "alpaca": {**_LARGE, "learning_rate": 2e-4, "max_length": 512, "warmup": 0.03},
    "vicuna": {**_LARGE, "learning_rate": 2e-4, "max_length": 2048, "warmup": 0.04},
    "hermes": {
        **_LARGE,
        "learning_rate": 7e-5,
        "weight_decay": 0.01,
        "max_length": 4096,
        "warmup": 300.0,
    },
    "small-data": {"epochs": 5.0, "batch_size": 8, "learning_rate": 1e-4, "dropout": 0.05},
}
DEFAULT_EPOCHS = 3.0
DEFAULT_BATCH = 8
DEFAULT_WARMUP = 0.03
# A run of fewer steps than this teaches little.
FEW_STEPS = 50
# What a preset says of these is a beginning: few rows make it less (training/settle.py).
_ADAPTED = ("batch_size", "warmup")

Adapter = Literal["lora", "rslora", "dora", "grid", "qalora", "auto"]
# The usual peak learning rate of each kind for a model of this width, and the highest; a wider
# model wants a lower one. docs/defaults.md has the measurements.
RATES = {"lora": 1.2e-3, "rslora": 3e-4, "dora": 1.2e-3, "grid": 2.4e-3, "qalora": 2.4e-3}
RATES_WIDTH, HIGHEST_SHARE = 1024, 2.0
Switch = Literal["auto", "on", "off"]
_MANY = 10**9
# Bounds on both sides leave out infinity and NaN.
Count = Annotated[int, Interval(ge=1, le=_MANY)]
CountOrNever = Annotated[int, Interval(ge=0, le=_MANY)]
Positive = Annotated[float, Interval(gt=0, le=1e6)]
NotNegative = Annotated[float, Interval(ge=0, le=1e9)]
Share = Annotated[float, Interval(ge=0, lt=1)]


@dataclass(frozen=True)
class TrainSettings:
    """One run. Raises UsageError that lists every field that is out of range or without effect."""

    model: Annotated[str, Help("'starter', a model directory or a Hub id.")]
    data: Annotated[Path, Help("A file of rows, or a folder with train.jsonl.")]
    out: Annotated[Path, Help("Where the adapter goes.")]
    runs: Annotated[Path, Help("Where runs are kept.")] = Path("runs")
    epochs: Annotated[
        Positive | None, Help("Times through the data (default 3, or what --steps says).")
    ] = None
    steps: Annotated[Count | None, Help("Stop after so many optimizer steps.")] = None
    stop_at: Annotated[
        Count | None, Help("End after this step, with the schedule that all steps would have.")
    ] = None
    time: Annotated[
        str | None,
        Help("Train for so long at most, such as 10m or 1h30m: the steps are fitted.", "DURATION"),
    ] = None
    batch_size: Annotated[
        Annotated[int, Interval(ge=1, le=10**6)] | None,
        Help("Rows per optimizer step (default 8, or the preset's as far as the rows go)."),
    ] = None
    learning_rate: Annotated[
        Annotated[float, Interval(gt=0, lt=1)] | Literal["auto"] | None,
        Help("Peak learning rate; auto: searched on the run's rows (default: by kind and width)."),
    ] = None
    rank: Annotated[int, Interval(ge=1, le=1024), Help("Rank of the adapter.")] = 16
    alpha: Annotated[
        Positive | None, Help("The update is scaled by alpha / rank (default 2 * rank).")
    ] = None
    dropout: Annotated[Share, Help("Dropout before the low-rank update.")] = 0.0
    adapter: Annotated[
        Adapter,
        Help(
            "Kind of adapter; grid and qalora fuse into a quantized base without loss; auto: grid "
            "or lora, by the base."
        ),
    ] = "lora"
    keys: Annotated[
        tuple[str, ...],
        Help(
            "Layers to adapt: a name (q_proj), a glob ('*.mlp.*') or re:REGEX; default all linear.",
            "NAME",
        ),
    ] = ()
    num_layers: Annotated[
        int, Interval(ge=-1, le=10**6), Help("Adapt the last so many blocks only; -1 is all.")
    ] = -1
    preset: Annotated[
        Literal["alpaca", "vicuna", "hermes", "small-data"] | None,
        Help("A published recipe; other flags win over it."),
    ] = None
    format: Annotated[
        str | None, Help("Format of raw rows (default: found per row); see data import --help.")
    ] = None
    map: Annotated[
        tuple[str, ...],
        Help("Where a raw file keeps a field, for example question=1.", "FIELD=COLUMN"),
    ] = ()
    roles: Annotated[
        tuple[str, ...], Help("What an unusual role is, such as environment=tool.", "NAME=ROLE")
    ] = ()
    encoding: Annotated[
        str | None, Help("Of text files, such as cp1252 (default: found out).", "NAME")
    ] = None
    template: Annotated[Literal["auto", "alpaca", "chatml", "vicuna"], Help("Chat template.")] = (
        "auto"
    )
    template_option: Annotated[
        tuple[str, ...],
        Help("Told to the template, for example enable_thinking=false.", "NAME=VALUE"),
    ] = ()
    system: Annotated[
        str | None, Help("A system prompt for rows, or a file that holds one.", "TEXT|@FILE")
    ] = None
    system_mode: Annotated[
        SystemMode,
        Help("Rows that get it: those without one, or all, instead of theirs or before."),
    ] = "missing"
    max_length: Annotated[int, Interval(ge=2, le=1 << 24), Help("Longest row in tokens.")] = 2048
    learn: Annotated[Literal["all", "last", "marked"], Help("Assistant turns to learn.")] = "all"
    too_long: Annotated[
        Literal["split", "truncate", "drop", "error"], Help("What happens to longer rows.")
    ] = "split"
    overlap: Annotated[
        int,
        Interval(ge=0, le=1000),
        Help("Exchanges that a later piece of a split row begins with, read and not learned."),
    ] = 0
    strict: Annotated[
        bool,
        Help(
            "Refuse rows of which a part is not learned, because it has no place or the template "
            "shows none."
        ),
    ] = False
    compute: Annotated[
        Literal["auto", "dequantized", "quantized"],
        Help("How quantized layers are computed; the function is the same."),
    ] = "auto"
    save_every: Annotated[CountOrNever, Help("Steps between checkpoints; 0 is never.")] = 200
    save_every_s: Annotated[NotNegative, Help("Seconds between checkpoints; 0 is never.")] = 300.0
    keep_checkpoints: Annotated[
        Count, Help("Newest checkpoints that stay; the best does, too.")
    ] = 2
    keep: Annotated[
        Literal["best", "last"],
        Help("The step that is shipped: of lowest validation loss, or last."),
    ] = "best"
    seed: Annotated[
        int, Interval(ge=0, le=2**63 - 1), Help("Seed of order, initialization and dropout.")
    ] = 0
    optimizer: Annotated[
        Literal[
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
        ],
        Help("What updates the adapter."),
    ] = "adamw"
    optimizer_options: Annotated[
        tuple[str, ...], Help("Of the optimizer, for example betas=0.9,0.95.", "KEY=VALUE")
    ] = ()
    lora_plus_ratio: Annotated[Positive, Help("LoRA+: learning rate of B over that of A.")] = 1.0
    weight_decay: Annotated[
        float, Interval(ge=0, le=1000.0), Help("Decay of adamw, lion, sgd, adafactor and muon.")
    ] = 0.0
    warmup: Annotated[
        NotNegative | None,
        Help("Warm-up: below 1 a share of the run, else steps (default 0.03, or the preset's)."),
    ] = None
    schedule: Annotated[
        Literal["cosine", "linear", "constant"],
        Help("How the learning rate falls after the warm-up."),
    ] = "cosine"
    clip_norm: Annotated[NotNegative, Help("Largest gradient norm; 0 is no clipping.")] = 1.0
    eval_every: Annotated[
        CountOrNever | None,
        Help("Steps between validations; 0 is start and end only (default: some ten in a run)."),
    ] = None
    eval_rows: Annotated[
        Count | None,
        Help("Rows of a validation (default: at most 200, and what takes a tenth of the run)."),
    ] = None
    early_stopping: Annotated[
        CountOrNever, Help("End after so many validations without a new best; 0 is never.")
    ] = 0
    micro_batch_tokens: Annotated[
        Annotated[int, Interval(ge=1, le=1 << 24)] | None,
        Help("Tokens computed at once (default: by device and memory)."),
    ] = None
    memory_gb: Annotated[
        Positive | None, Help("Memory that the run may take (default: what this machine has).")
    ] = None
    packing: Annotated[Switch, Help("Rows side by side, without padding.")] = "auto"
    prefix_sharing: Annotated[Switch, Help("Common beginnings computed once.")] = "auto"
    group_by_length: Annotated[
        Switch, Help("Rows of like length in one step, within windows of the random order.")
    ] = "auto"
    gradient_checkpointing: Annotated[Switch, Help("Activations computed twice, not kept.")] = (
        "auto"
    )
    offline: Annotated[bool, Help("Open no socket; Hub models come from the local cache only.")] = (
        False
    )

    def __post_init__(self) -> None:
        problems = [*out_of_range(self), *_without_effect(self)]
        if problems:
            counted = str(self.keep).isdigit()
            hint = "how many checkpoints stay is --keep-checkpoints" if counted else None
            raise UsageError("; ".join(problems), hint=hint)

    @property
    def scale(self) -> float:
        """What multiplies the low-rank update; rsLoRA divides by sqrt(rank) (2312.03732)."""
        alpha = 2.0 * self.rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.rank) if self.adapter == "rslora" else self.rank)

    @property
    def reading(self) -> Reading:
        """How the rows are read. Raises UsageError."""
        return Reading.of(self)

    @property
    def system_prompt(self) -> SystemPrompt | None:
        """What `system`, a text, asks for."""
        return None if self.system is None else SystemPrompt(self.system, self.system_mode)

    @property
    def planned_epochs(self) -> float | None:
        """The limit in epochs: None only when `steps` alone ends the run."""
        if self.epochs is None and self.steps is None:
            return DEFAULT_EPOCHS
        return self.epochs

    @property
    def time_s(self) -> float | None:
        """`time`, in seconds. Raises UsageError."""
        return None if self.time is None else seconds_of(self.time)

    @property
    def memory_bytes(self) -> int | None:
        """`memory_gb`, of 10**9 bytes."""
        return None if self.memory_gb is None else int(self.memory_gb * 1e9)

    @property
    def peak(self) -> float:
        """`learning_rate`, or what is usual for the kind of adapter on a model of `RATES_WIDTH`."""
        rate = self.learning_rate
        return rate if isinstance(rate, float) else usual_rate(self.adapter, RATES_WIDTH)

    @property
    def rows_per_step(self) -> int:
        """`batch_size`, or what a preset says, or 8."""
        return int(self._said("batch_size", DEFAULT_BATCH))

    @property
    def rise(self) -> float:
        """`warmup`, or what a preset says, or 3 %."""
        return float(self._said("warmup", DEFAULT_WARMUP))

    def _said(self, name: str, default: float) -> float:
        value: float | None = getattr(self, name)
        return PRESETS.get(self.preset or "", {}).get(name, default) if value is None else value

    @property
    def keeps_best(self) -> bool:
        """Whether a step before the last one may be shipped."""
        return self.keep == "best" and bool(self.eval_every)

    def lengths_of(self, rows: Sequence[Any]) -> list[int] | None:
        """What rows are put in order by; None where their order is only random."""
        return None if self.group_by_length == "off" else [len(row.input_ids) for row in rows]

    @property
    def saves(self) -> bool:
        """Whether checkpoints are made without being asked for by a signal."""
        return self.save_every > 0 or self.save_every_s > 0


@functools.cache
def table() -> Mapping[str, Setting]:
    """Every setting by name, in the order of the flags."""
    return table_of(TrainSettings)


def settings_from(values: Mapping[str, Any]) -> TrainSettings:
    """Settings of explicit values over their preset's over the defaults. Raises UsageError."""
    for name in values:
        if name not in table():
            raise UsageError(f"unknown setting {name!r}", hint=did_you_mean(name, table()))
    chosen = values.get("preset")
    if chosen is not None and chosen not in PRESETS:
        hint = did_you_mean(str(chosen), PRESETS) or "one of " + ", ".join(PRESETS)
        raise UsageError(f"unknown preset {chosen!r}", hint=hint)
    if prompt := system_prompt(values.get("system")):
        values = {**values, "system": prompt.text}
    preset = {k: v for k, v in PRESETS.get(chosen or "", {}).items() if k not in _ADAPTED}
    # Steps that somebody asked for are not cut short by a preset's epochs.
    if values.get("steps") is not None:
        preset.pop("epochs", None)
    # Nor is a preset's dropout or decay forced on what has none; asking for it is an error.
    if values.get("adapter") == "grid":
        preset.pop("dropout", None)
    if "weight_decay" in preset and not _decays(values.get("optimizer", "adamw")):
        preset.pop("weight_decay")
    return TrainSettings(**{**preset, **values})


def _without_effect(s: TrainSettings) -> Iterator[str]:
    """What would have no effect, or none that was meant."""
    if s.time is not None:
        try:
            if not s.time_s:
                yield "time must be above 0"
        except UsageError as error:
            yield f"time: {error}"
    if s.num_layers == 0:
        yield "num_layers must be at least 1, or -1 for all, not 0"
    if s.lora_plus_ratio * s.peak >= 1:
        yield "lora_plus_ratio times learning_rate must be below 1"
    if s.adapter == "grid" and s.dropout:
        yield "dropout must be 0 with adapter grid, which has none"
    if s.early_stopping and s.eval_every == 0:
        yield "early_stopping needs eval_every, the steps between validations"
    if table()["optimizer"].admits(s.optimizer):
        if s.weight_decay and not _decays(s.optimizer):
            yield f"weight_decay must be 0 with {s.optimizer}, which has none"
        if s.optimizer_options:
            from mlx_itune.training.engine import optimizers

            try:
                optimizers.options_from(s.optimizer, s.optimizer_options)
            except UsageError as error:
                yield str(error)


def _decays(optimizer: str) -> bool:
    return optimizer in ("adamw", "lion", "sgd", "adafactor", "muon")


def usual_rate(adapter: str, hidden_size: int) -> float:
    """The peak learning rate of an adapter of this kind, where none is asked for; of one digit."""
    share = min(HIGHEST_SHARE, RATES_WIDTH / hidden_size)
    return float(f"{RATES.get(adapter, RATES['lora']) * share:.0e}")


def warmup_steps(steps: int, warmup: float) -> int:
    """How many of the steps the rate rises in."""
    return min(steps, round(warmup * steps) if warmup < 1 else int(warmup))
