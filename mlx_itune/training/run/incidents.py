"""incidents.jsonl: every update that was not made, with the rows that were to be learned."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlx_itune.dataset.rendering.render import TokenizedExample
from mlx_itune.kit.events import EventLog
from mlx_itune.kit.files import write_durably
from mlx_itune.training.run.logfile import objects

FILE = "incidents.jsonl"
# Rows that are computed one by one to find out which of them it was.
_ROWS_EXAMINED = 64


def describe(
    step: int,
    epoch: int,
    loss: float,
    gradient_norm: float,
    rows: Sequence[TokenizedExample],
    loss_of: Callable[[TokenizedExample], float],
) -> dict[str, Any]:
    """The incident of one skipped step.

    `rows` names every row of the step as file:line; `suspects` those among them whose own loss
    (`loss_of`) is not finite. There are none where only the gradient was not.
    """
    suspects = [row.origin for row in rows[:_ROWS_EXAMINED] if not math.isfinite(loss_of(row))]
    return {
        "step": step,
        "epoch": epoch,
        "loss": _word(loss),
        "gradient_norm": _word(gradient_norm),
        "rows": [row.origin for row in rows],
        "suspects": suspects,
    }


def append(folder: Path, incident: dict[str, Any]) -> None:
    """Add an incident to the run's file. Raises StorageError."""
    with EventLog(folder / FILE) as log:
        log.emit("incident", **incident)


def read(folder: Path) -> list[dict[str, Any]]:
    """The incidents of a run, oldest first."""
    return [value for value in objects(folder / FILE) if isinstance(value.get("step"), int)]


def forget_after(folder: Path, step: int) -> None:
    """Keep the incidents up to `step`: later steps are about to be made again."""
    if (folder / FILE).exists():
        kept = [incident for incident in read(folder) if incident["step"] <= step]
        write_durably(folder / FILE, "".join(json.dumps(k) + "\n" for k in kept).encode())


def _word(number: float) -> float | str:
    """JSON has no NaN: what is not finite is written as a word."""
    return number if math.isfinite(number) else str(number)
