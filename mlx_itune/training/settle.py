"""What settings leave open, decided by the rows and the base before a run is recorded.

What was decided stands in the run's settings, so that `resume` and its config.toml say it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

from mlx_itune.dataset.batching import planned_steps
from mlx_itune.kit.wording import count
from mlx_itune.model.engine.shapes import chosen, read_shapes
from mlx_itune.training.settings import (
    DEFAULT_BATCH,
    DEFAULT_EPOCHS,
    FEW_STEPS,
    TrainSettings,
    usual_rate,
    warmup_steps,
)
from mlx_itune.training.setup import Material

# A preset's batch is halved where steps are few, as far as this one.
SMALLEST_BATCH = 8
# Few rows are learned so often that they make so many steps, within so many epochs.
_GOOD_STEPS, _MOST_EPOCHS = 100, 20
# Of LoRA+, in a run of minutes.
_RATIO = 8.0
# Of the run, what a preset's warm-up may take.
MOST_WARMUP = 0.1
# Validations of a run, and rows of one: so many, as far as they take a tenth of its time. A token
# that is only validated costs half of one that is learned: the base has no gradients.
VALIDATIONS, MOST_ROWS, FEWEST_ROWS, FEWEST_AT_ENDS = 10, 200, 32, 16
_SHARE = 0.1 * 2


def settled(settings: TrainSettings, material: Material) -> tuple[TrainSettings, tuple[str, ...]]:
    """The settings with nothing but a rate to be searched left open, and a line for each decision
    that is not what a user would take for granted. Raises ModelError."""
    report = material.rows.train.report
    notes = [*material.rows.told.lines(), *report.about_length(material.limit_tokens)]
    notes += report.about_template(material.tokenizer)
    s = replace(settings, batch_size=_batch(settings, material))
    steps = _steps(s, material)
    notes += _on_length(settings, s, steps, material)
    s = replace(s, warmup=_warmup(settings, steps))
    notes += _on_warmup(settings, s, steps)
    if s.adapter == "auto":
        kind, why = kind_for(s, material)
        s = replace(s, adapter=kind)
        notes.append(f"--adapter auto takes {kind}: {why}")
    if s.learning_rate is None:
        s = replace(s, learning_rate=usual(s, material))
    if material.valid:
        every, rows = _validations(s, material)
        return replace(s, eval_every=every, eval_rows=rows), tuple(notes)
    notes.append("no validation rows: the last step is shipped")
    return replace(s, eval_every=0), tuple(notes)


def for_minutes(adapter: str, hidden_size: int) -> dict[str, Any]:
    """The rate of a run of minutes: in LoRA, B learns faster than A (LoRA+; docs/defaults.md)."""
    if adapter != "lora":
        return {}
    return {"lora_plus_ratio": _RATIO, "learning_rate": usual_rate(adapter, hidden_size) / 2}


def enough_epochs(rows: int) -> float:
    """Epochs over few rows that make steps enough for a model to learn something."""
    per_epoch = -(-rows // DEFAULT_BATCH)
    return min(_MOST_EPOCHS, max(DEFAULT_EPOCHS, -(-_GOOD_STEPS // per_epoch)))


def usual(s: TrainSettings, material: Material) -> float:
    """The learning rate for this kind of adapter and a base as wide as this. Raises ModelError."""
    return usual_rate(s.adapter, read_shapes(material.path, material.config).hidden)


def kind_for(s: TrainSettings, material: Material) -> tuple[Literal["grid", "lora"], str]:
    """The kind of adapter for a base, and why. Raises ModelError."""
    told = material.config
    quantization = told.get("quantization") or told.get("quantization_config") or {}
    parts = [quantization, *(part for part in quantization.values() if isinstance(part, dict))]
    layers = chosen(read_shapes(material.path, material.config), s.keys, s.num_layers)
    if any(part.get("mode", "affine") != "affine" for part in parts):
        return "lora", "the base is not quantized in affine mode"
    if not layers or not all(layer.bits for layer in layers):
        return "lora", "not all of the layers to adapt are quantized"
    if s.dropout:
        return "lora", "grid has no dropout"
    return "grid", "the layers to adapt are quantized, and what is learned fuses into their codes"


def affordable_rows(settings: TrainSettings, material: Material) -> int:
    """How many validation rows take a tenth of the run's time."""
    lengths = [[len(row.input_ids) for row in rows] for rows in (material.train, material.valid)]
    learned, validated = (sum(each) / len(each) for each in lengths)
    return int(_SHARE * _steps(settings, material) * settings.rows_per_step * learned / validated)


def validated_rows(settings: TrainSettings, material: Material) -> int:
    """How many rows a run with these settled settings validates, all validations together."""
    if not material.valid:
        return 0
    steps, every, rows = _steps(settings, material), settings.eval_every, settings.eval_rows
    each = min(rows or len(material.valid), len(material.valid))
    times = 1 + (-(-steps // every) if every else 1)
    at_end = min(affordable_rows(settings, material), len(material.valid))
    return times * each + max(0, at_end - each)


def _batch(s: TrainSettings, material: Material) -> int:
    """A preset's batch, halved until the run has steps enough."""

    def steps(size: int) -> int:
        return _steps(replace(s, batch_size=size), material)

    size = s.rows_per_step
    while s.batch_size is None and size > SMALLEST_BATCH and steps(size) < FEW_STEPS:
        if steps(size) == steps(SMALLEST_BATCH):
            # So many steps were asked for.
            break
        size //= 2
    return size


def _on_length(
    asked: TrainSettings, s: TrainSettings, steps: int, material: Material
) -> Iterator[str]:
    rows = count(len(material.train), "row")
    if s.rows_per_step < asked.rows_per_step:
        change = f"batch {asked.rows_per_step} -> {s.rows_per_step}"
        yield f"--preset {s.preset}: {change}, so that {rows} make {count(steps, 'step')}"
    if steps < FEW_STEPS and asked.steps is None:
        per_epoch = -(-len(material.train) // s.rows_per_step)
        enough = f"--epochs {-(-FEW_STEPS // per_epoch)}"
        yield f"{rows} make only {count(steps, 'step')}; {enough} would make {FEW_STEPS} or more"


def _warmup(s: TrainSettings, steps: int) -> float:
    too_long = warmup_steps(steps, s.rise) > MOST_WARMUP * steps
    return MOST_WARMUP if s.warmup is None and too_long else s.rise


def _on_warmup(asked: TrainSettings, s: TrainSettings, steps: int) -> Iterator[str]:
    before, now = (warmup_steps(steps, each.rise) for each in (asked, s))
    if asked.rise != s.rise:
        was = f"{asked.rise:g} steps" if asked.rise >= 1 else f"{before} steps"
        yield f"--preset {s.preset}: warm-up {was} -> {now}, a tenth of the run"
    elif now > MOST_WARMUP * steps and now > 1:
        whole = "all" if now == steps else f"{now} of"
        yield f"{whole} {steps} steps are warm-up, as --warmup says"


def _validations(s: TrainSettings, material: Material) -> tuple[int, int]:
    """How often, and of how many rows; what was asked for stays."""
    affordable, most = affordable_rows(s, material), min(len(material.valid), MOST_ROWS)

    def rows(share: int, fewest: int) -> int:
        chosen = max(fewest, share) if s.eval_rows is None else s.eval_rows
        return min(chosen, most if s.eval_rows is None else len(material.valid))

    if s.eval_every:
        return s.eval_every, rows(most, most)
    # The first, before any step, is one of them.
    each = rows(affordable // (VALIDATIONS + 1), FEWEST_ROWS)
    times = min(VALIDATIONS, affordable // each - 1)
    times = VALIDATIONS if s.early_stopping else times
    if s.eval_every is None and times > 1:
        return -(-_steps(s, material) // times), each
    return 0, rows(affordable // 2, FEWEST_AT_ENDS)


def _steps(s: TrainSettings, material: Material) -> int:
    return planned_steps(
        len(material.train), s.rows_per_step, epochs=s.planned_epochs, steps=s.steps
    )
