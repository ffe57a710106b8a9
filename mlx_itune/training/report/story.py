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
import orjson
from numpy.typing import NDArray

from mlx_itune.kit.files import storage_errors

# A start event lists the rows that were cut, so it may be long; nothing honest is longer than this.
_LONGEST_LINE_BYTES = 64_000_000
_KEPT = 500
_LARGEST_STEP = 1 << 53
CURVES = (
    "loss",
    "learning_rate",
    "gradient_norm",
    "supervised_tokens_per_second",
    "tokens_per_second",
    "peak_memory_bytes",
    "memory_bytes",
)
_COUNTS = ("supervised_tokens", "tokens")

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
    """A run. `start`, `end`, `stopped` and `failed` hold the fields of the last such event; the
    three endings are empty while there is none, and again when the run was resumed.

    Arrays of all steps take some 60 bytes a step; lists hold the last 500 of their kind, and
    `counts` how many there were.
    """

    start: dict[str, Any] = field(default_factory=dict)
    end: dict[str, Any] = field(default_factory=dict)
    stopped: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, Any] = field(default_factory=dict)
    sessions: deque[Session] = field(default_factory=lambda: deque(maxlen=_KEPT))
    checkpoints: deque[Event] = field(default_factory=lambda: deque(maxlen=_KEPT))
    incidents: deque[Event] = field(default_factory=lambda: deque(maxlen=_KEPT))
    samples: deque[Event] = field(default_factory=lambda: deque(maxlen=_KEPT))
    counts: dict[str, int] = field(default_factory=dict)
    unreadable_lines: int = 0
    planned_steps: int | None = None
    epoch: float | None = None
    steps: array[int] = field(default_factory=lambda: array("q"))
    valid_steps: array[int] = field(default_factory=lambda: array("q"))
    valid_losses: array[float] = field(default_factory=lambda: array("d"))
    _curves: dict[str, array[float]] = field(
        default_factory=lambda: {name: array("f") for name in CURVES}
    )
    _counted: dict[str, array[float]] = field(
        default_factory=lambda: {name: array("d") for name in (*_COUNTS, "skipped")}
    )

    def curve(self, name: str) -> NDArray[np.float32]:
        """A value per step of `steps`, float32; NaN where it was not finite or not told."""
        values = np.array(self._curves[name], dtype=np.float32)
        values[~np.isfinite(values)] = np.nan
        return values

    def total(self, name: str) -> int:
        """`supervised_tokens`, `tokens` or `skipped` (steps), over all steps."""
        return int(np.nansum(np.array(self._counted[name], dtype=np.float64)))

    def weights(self) -> NDArray[np.float64]:
        """How many tokens each step learned, float64."""
        return np.array(self._counted["supervised_tokens"], dtype=np.float64)

    def best_valid(self) -> tuple[int, float] | None:
        """(step, loss) of the lowest validation loss."""
        pairs = zip(self.valid_losses, self.valid_steps, strict=True)
        found = min((pair for pair in pairs if pair[0] == pair[0]), default=None)
        return (found[1], found[0]) if found else None

    def add(self, event: Event) -> None:
        """Take in the next event; one that is unknown changes nothing."""
        kind, time = event.get("event"), event.get("time")
        told_at = time if isinstance(time, str) else ""
        # An answer may be added days later, and is no part of the training's time.
        if kind != "sample":
            if kind == "start" or not self.sessions:
                self.sessions.append(Session(told_at, told_at))
            self.sessions[-1].last = told_at or self.sessions[-1].last
        if isinstance(kind, str) and kind in _KINDS:
            self.counts[kind] = self.counts.get(kind, 0) + 1
            getattr(self, f"_{kind}")(event)

    def _start(self, event: Event) -> None:
        self.start |= {k: v for k, v in event.items() if k not in ("v", "time", "event")}
        self.end, self.stopped, self.failed = {}, {}, {}
        self.planned_steps = _whole(event.get("steps")) or self.planned_steps

    def _resume(self, event: Event) -> None:
        self.end, self.stopped, self.failed = {}, {}, {}
        if (step := _whole(event.get("step"))) is not None:
            self._back_to(step + 1)

    def _step(self, event: Event) -> None:
        step = _whole(event.get("step"))
        if step is None:
            return
        if self.steps and step <= self.steps[-1]:
            self._back_to(step)
        self.steps.append(step)
        get = event.get
        for name, values in self._curves.items():
            value = get(name)
            values.append(value if type(value) is float else _number(value))
        for name in _COUNTS:
            self._counted[name].append(_whole(get(name)) or 0)
        self._counted["skipped"].append(get("skipped") is True)
        self.planned_steps = _whole(event.get("steps")) or self.planned_steps
        self.epoch = _number(event.get("epoch"))
        session = self.sessions[-1]
        session.first_step = step if session.first_step is None else session.first_step
        session.last_step = step

    def _valid(self, event: Event) -> None:
        step = _whole(event.get("step"))
        if step is None:
            return
        self._forget_valid(step)
        self.valid_steps.append(step)
        self.valid_losses.append(_number(event.get("loss")))

    def _checkpoint(self, event: Event) -> None:
        self.checkpoints.append(event)

    def _incident(self, event: Event) -> None:
        self.incidents.append(event)

    def _sample(self, event: Event) -> None:
        for told in [s for s in self.samples if s.get("row") == event.get("row")]:
            self.samples.remove(told)
        self.samples.append(event)

    def _stopped(self, event: Event) -> None:
        self.stopped = dict(event)
        self.sessions[-1].ending = "stopped by a signal"

    def _failed(self, event: Event) -> None:
        self.failed = dict(event)
        self.sessions[-1].ending = "ended by an error"

    def _end(self, event: Event) -> None:
        self.end = {k: v for k, v in event.items() if k not in ("v", "time", "event")}
        self.sessions[-1].ending = "finished" if not self.stopped else "stopped by a signal"

    def _back_to(self, step: int) -> None:
        """Forget `step` and all after it."""
        at = bisect_left(self.steps, step)
        columns: list[array[Any]] = [*self._curves.values(), *self._counted.values()]
        for column in (self.steps, *columns):
            del column[at:]
        self._forget_valid(step)
        for listed in (self.checkpoints, self.incidents):
            while listed and (_whole(listed[-1].get("step")) or 0) >= step:
                listed.pop()

    def _forget_valid(self, step: int) -> None:
        at = bisect_left(self.valid_steps, step)
        del self.valid_steps[at:]
        del self.valid_losses[at:]


_KINDS = frozenset("start resume step valid checkpoint incident sample stopped failed end".split())


def read(run: Path) -> Story:
    """The story of `runs/<id>/events.jsonl`; lines that are no events are counted and passed over.

    A last line that was cut off by a power cut is such a line. Raises StorageError.
    """
    story = Story()
    path = Path(run) / "events.jsonl"
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
        value = orjson.loads(line)
    except ValueError:
        # Slower, but it knows the words NaN and Infinity, which some writers use.
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _whole(value: Any) -> int | None:
    ok = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST_STEP
    return value if ok else None


def _number(value: Any) -> float:
    """A finite float32, or NaN."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 3e38:
        return float(value)
    return float("nan")
