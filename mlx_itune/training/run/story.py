"""What a run's events.jsonl tells, with every step once: the last time it was made.

A run that was resumed from an earlier checkpoint made some steps twice; what came after the step
it went back to never became part of the adapter, and is left out of the story.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlx_itune.kit.files import storage_errors
from mlx_itune.training.run.run import EVENTS, train_loss

_LARGEST_STEP = 1 << 53
_COLUMNS = (
    "loss learning_rate gradient_norm supervised_tokens_per_second tokens_per_second "
    "peak_memory_bytes memory_bytes supervised_tokens weight skipped"
).split()
# How the last session stands after its last event.
_ENDINGS = {"stopped": "stopped by a signal", "failed": "ended by an error", "end": "finished"}

Event = Mapping[str, Any]


@dataclass
class Session:
    """One process that worked on the run: its first and last event's time, and how it ended."""

    began: str
    last: str
    first_step: int | None = None
    last_step: int | None = None
    ending: str = "no end was written"


@dataclass
class Story:
    """A run. `ending` is the kind of the event that ended it, and `end` its fields; both are empty
    while there is none, and again when the run was resumed. validations: loss by step."""

    start: dict[str, Any] = field(default_factory=dict)
    ending: str = ""
    end: dict[str, Any] = field(default_factory=dict)
    sessions: list[Session] = field(default_factory=list)
    checkpoints: list[Event] = field(default_factory=list)
    incidents: list[Event] = field(default_factory=list)
    samples: dict[str, Event] = field(default_factory=dict)
    validations: dict[int, float] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)
    values: list[tuple[float, ...]] = field(default_factory=list)
    planned_steps: int | None = None

    def curve(self, name: str) -> NDArray[np.float64]:
        """A value per step of `steps`, float64; NaN where it was not finite or not told."""
        column = _COLUMNS.index(name)
        return np.array([values[column] for values in self.values], dtype=np.float64)

    def tokens(self) -> NDArray[np.float64]:
        """How many tokens each step learned, float64."""
        return np.nan_to_num(self.curve("supervised_tokens"))

    @property
    def train_loss(self) -> float | None:
        """As of the last step; see `run.train_loss`."""
        weights = self.curve("weight")
        # Runs of before it was told weigh by tokens.
        weights = np.where(np.isnan(weights), self.tokens(), weights)
        losses = np.where(self.curve("skipped") > 0, np.nan, self.curve("loss"))
        return train_loss(zip(losses.tolist(), weights.tolist(), strict=True))

    @property
    def skipped(self) -> int:
        """Steps that were not learned."""
        return int(self.curve("skipped").sum())

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, loss) of the lowest validation loss."""
        finite = [item for item in self.validations.items() if item[1] == item[1]]
        return min(finite, key=lambda item: item[1], default=None)

    @property
    def best_learned(self) -> tuple[int, float] | None:
        """The same of the steps that learned: what may be shipped."""
        finite = [item for item in self.validations.items() if item[0] and item[1] == item[1]]
        return min(finite, key=lambda item: item[1], default=None)

    def add(self, event: Event) -> None:
        """Take in the next event; one that is unknown, or says no step, changes nothing."""
        kind, time, step = event.get("event"), event.get("time"), _whole(event.get("step"))
        told_at = time if isinstance(time, str) else ""
        # An answer may be added days later, and is no part of the training's time.
        if kind != "sample":
            if kind == "start" or not self.sessions:
                self.sessions.append(Session(told_at, told_at))
            self.sessions[-1].last = told_at or self.sessions[-1].last
        if kind in ("start", "resume"):
            self.ending, self.end = "", {}
        if kind in ("start", "step"):
            self.planned_steps = _whole(event.get("steps")) or self.planned_steps
        if kind == "start":
            self.start |= _fields(event)
        elif kind == "resume" and step is not None:
            self._back_to(step + 1)
        elif kind == "step" and step is not None:
            self._step(step, event)
        elif kind == "valid" and step is not None:
            self.validations[step] = _number(event.get("loss"))
        elif kind == "checkpoint":
            self.checkpoints.append(event)
        elif kind == "incident":
            self.incidents.append(event)
        elif kind == "sample":
            self.samples.pop(str(event.get("row")), None)
            self.samples[str(event.get("row"))] = event
        elif isinstance(kind, str) and kind in _ENDINGS:
            self.ending, self.end = kind, _fields(event)
            self.sessions[-1].ending = _ENDINGS[kind]

    def _step(self, step: int, event: Event) -> None:
        if self.steps and step <= self.steps[-1]:
            self._back_to(step)
        self.steps.append(step)
        told = {**event, "skipped": int(event.get("skipped") is True)}
        self.values.append(tuple(_number(told.get(name)) for name in _COLUMNS))
        session = self.sessions[-1]
        session.first_step = step if session.first_step is None else session.first_step
        session.last_step = step

    def _back_to(self, step: int) -> None:
        """Forget `step` and all after it."""
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            self.values.pop()
        self.validations = {at: loss for at, loss in self.validations.items() if at < step}
        for listed in (self.checkpoints, self.incidents):
            listed[:] = [event for event in listed if (_whole(event.get("step")) or 0) < step]


def read(run: Path) -> Story:
    """The story of `runs/<id>/events.jsonl`; lines that are no events are passed over.

    A last line that was cut off by a power cut is such a line. Raises StorageError.
    """
    story = Story()
    path = Path(run) / EVENTS
    with storage_errors(path), path.open("rb") as file:
        for line in file:
            with contextlib.suppress(ValueError, RecursionError):
                if isinstance(event := json.loads(line), dict):
                    story.add(event)
    return story


def _fields(event: Event) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name not in ("v", "time", "event")}


def _whole(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < _LARGEST_STEP else None


def _number(value: Any) -> float:
    """A finite float32, or NaN."""
    return float(value) if type(value) in (int, float) and abs(value) < 3e38 else float("nan")
