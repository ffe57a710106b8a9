"""What settings leave open, decided by the rows and the base before a run is recorded.

What was decided stands in the run's settings, so that `resume` and its config.toml say it again.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from mlx_itune.dataset.batching import planned_steps
from mlx_itune.training.settings import TrainSettings
from mlx_itune.training.setup import Material

# Validations of a run, and rows of one: so many, as far as they take a tenth of its time. A token
# that is only validated costs a third of one that is learned.
VALIDATIONS, MOST_ROWS, FEWEST_ROWS = 10, 200, 32
_SHARE = 0.1 * 3


def settled(settings: TrainSettings, material: Material) -> tuple[TrainSettings, tuple[str, ...]]:
    """The settings with nothing left open, and a line for each that is not what was asked for."""
    notes: list[str] = []
    chosen: dict[str, Any] = {"batch_size": settings.rows_per_step, "warmup": settings.rise}
    now = dataclasses.replace(settings, **chosen)
    if not material.valid:
        notes.append("no validation rows: the last step is shipped")
        return dataclasses.replace(now, eval_every=0), tuple(notes)
    every, rows = _validations(now, material)
    return dataclasses.replace(now, eval_every=every, eval_rows=rows), tuple(notes)


def affordable_rows(settings: TrainSettings, material: Material) -> int:
    """How many validation rows take a tenth of the run's time."""
    lengths = [[len(row.input_ids) for row in rows] for rows in (material.train, material.valid)]
    learned, validated = (sum(each) / len(each) for each in lengths)
    return int(_SHARE * _steps(settings, material) * settings.rows_per_step * learned / validated)


def _validations(s: TrainSettings, material: Material) -> tuple[int, int]:
    """How often, and of how many rows; what was asked for stays."""
    rows, every = s.eval_rows, s.eval_every
    affordable, most = affordable_rows(s, material), min(len(material.valid), MOST_ROWS)
    if rows is None:
        share = most if every else affordable // (VALIDATIONS + 1 if every is None else 2)
        rows = min(most, max(share, FEWEST_ROWS))
    rows = min(rows, len(material.valid))
    if every is None:
        # The first, before any step, is one of them.
        times = min(VALIDATIONS, affordable // rows - 1)
        every = -(-_steps(s, material) // times) if times > 1 else 0
    return every, rows


def _steps(s: TrainSettings, material: Material) -> int:
    return planned_steps(
        len(material.train), s.rows_per_step, epochs=s.planned_epochs, steps=s.steps
    )
