"""What a run's events.jsonl tells, with every step once: the last time it was made.

A run that was resumed from an earlier checkpoint made some steps twice; what came after the step
it went back to never became part of the adapter, and is left out of the story.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlx_itune.kit.files import storage_errors
from mlx_itune.training.run.run import EVENTS

# A start event lists the rows that were cut, so it may be long; nothing honest is longer than this.
_LONGEST_LINE_BYTES = 64_000_000
_KEPT = 500
_LARGEST_STEP = 1 << 53
_CURVES = (
    "loss",
    "learning_rate",
    "gradient_norm",
    "supervised_tokens_per_second",
    "tokens_per_second",
    "peak_memory_bytes",
    "memory_bytes",
)
_COUNTS = ("supervised_tokens", "skipped")
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


def _last_ones() -> deque[Any]:
    return deque(maxlen=_KEPT)


@dataclass
class Story:
    """A run. `ending` is the kind of the event that ended it, and `end` its fields; both are empty
    while there is none, and again when the run was resumed.

    Columns of all steps take some 50 bytes a step; lists hold the last 500 of their kind, and
    `counts` how many there were.
    """

    start: dict[str, Any] = field(default_factory=dict)
    ending: str = ""
    end: dict[str, Any] = field(default_factory=dict)
    sessions: deque[Session] = field(default_factory=_last_ones)
    checkpoints: deque[Event] = field(default_factory=_last_ones)
    incidents: deque[Event] = field(default_factory=_last_ones)
    samples: deque[Event] = field(default_factory=_last_ones)
    counts: dict[str, int] = field(default_factory=dict)
    unreadable_lines: int = 0
    planned_steps: int | None = None
    steps: array[int] = field(default_factory=lambda: array("q"))
    columns: dict[str, array[float]] = field(
        default_factory=lambda: {
            **{name: array("f") for name in _CURVES},
            **{name: array("d") for name in _COUNTS},
        }
    )
    valid_steps: array[int] = field(default_factory=lambda: array("q"))
    valid_losses: array[float] = field(default_factory=lambda: array("d"))

    def curve(self, name: str) -> NDArray[np.float32]:
        """A value per step of `steps`, float32; NaN where it was not finite or not told."""
        values = np.array(self.columns[name], dtype=np.float32)
        values[~np.isfinite(values)] = np.nan
        return values

    def total(self, name: str) -> int:
        """`supervised_tokens` or `skipped` (steps), over all steps."""
        return int(self.weights(name).sum())

    def weights(self, name: str = "supervised_tokens") -> NDArray[np.float64]:
        """How many tokens each step learned, float64."""
        return np.array(self.columns[name], dtype=np.float64)

    def best_valid(self) -> tuple[int, float] | None:
        """(step, loss) of the lowest validation loss."""
        pairs = zip(self.valid_losses, self.valid_steps, strict=True)
        found = min((pair for pair in pairs if pair[0] == pair[0]), default=None)
        return (found[1], found[0]) if found else None

    def add(self, event: Event) -> None:
        """Take in the next event; one that is unknown, or says no step, changes nothing."""
        kind, time, step = event.get("event"), event.get("time"), _whole(event.get("step"))
        told_at = time if isinstance(time, str) else ""
        # An answer may be added days later, and is no part of the training's time.
        if kind != "sample":
            if kind == "start" or not self.sessions:
                self.sessions.append(Session(told_at, told_at))
            self.sessions[-1].last = told_at or self.sessions[-1].last
        if not isinstance(kind, str):
            return
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if kind in ("start", "resume"):
            self.ending, self.end = "", {}
        if kind == "start":
            self.start |= _fields(event)
            self.planned_steps = _whole(event.get("steps")) or self.planned_steps
        elif kind == "resume" and step is not None:
            self._back_to(step + 1)
        elif kind == "step" and step is not None:
            self._step(step, event)
        elif kind == "valid" and step is not None:
            self._forget_valid(step)
            self.valid_steps.append(step)
            self.valid_losses.append(_number(event.get("loss")))
        elif kind == "checkpoint":
            self.checkpoints.append(event)
        elif kind == "incident":
            self.incidents.append(event)
        elif kind == "sample":
            again = [s for s in self.samples if s.get("row") != event.get("row")]
            self.samples = deque([*again, event], _KEPT)
        elif kind in _ENDINGS:
            self.ending, self.end = kind, _fields(event)
            self.sessions[-1].ending = _ENDINGS[kind]

    def _step(self, step: int, event: Event) -> None:
        if self.steps and step <= self.steps[-1]:
            self._back_to(step)
        self.steps.append(step)
        for name in _CURVES:
            self.columns[name].append(_number(event.get(name)))
        self.columns["supervised_tokens"].append(_whole(event.get("supervised_tokens")) or 0)
        self.columns["skipped"].append(event.get("skipped") is True)
        self.planned_steps = _whole(event.get("steps")) or self.planned_steps
        session = self.sessions[-1]
        session.first_step = step if session.first_step is None else session.first_step
        session.last_step = step

    def _back_to(self, step: int) -> None:
        """Forget `step` and all after it."""
        at = bisect_left(self.steps, step)
        columns: list[array[Any]] = [self.steps, *self.columns.values()]
        for column in columns:
            del column[at:]
        self._forget_valid(step)
        for listed in (self.checkpoints, self.incidents):
            while listed and (_whole(listed[-1].get("step")) or 0) >= step:
                listed.pop()

    def _forget_valid(self, step: int) -> None:
        at = bisect_left(self.valid_steps, step)
        del self.valid_steps[at:]
        del self.valid_losses[at:]


def read(run: Path) -> Story:
    """The story of `runs/<id>/events.jsonl`; lines that are no events are counted and passed over.

    A last line that was cut off by a power cut is such a line. Raises StorageError.
    """
    story = Story()
    path = Path(run) / EVENTS
    with storage_errors(path):
        for event in _events(path):
            if event is None:
                story.unreadable_lines += 1
            else:
                story.add(event)
    return story


def _events(path: Path) -> Iterator[Event | None]:
    with path.open("rb") as file:
        while line := file.readline(_LONGEST_LINE_BYTES):
            if not line.endswith(b"\n") and len(line) == _LONGEST_LINE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = file.readline(_LONGEST_LINE_BYTES)
                yield None
            elif line.strip():
                yield _event(line)


def _event(line: bytes) -> Event | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _fields(event: Event) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name not in ("v", "time", "event")}


def _whole(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < _LARGEST_STEP else None


def _number(value: Any) -> float:
    """A finite float32, or NaN."""
    return float(value) if type(value) in (int, float) and abs(value) < 3e38 else float("nan")
