"""Sessions of a run that end early, and what has to be the same in the end."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)
from mlx_itune.training.engine.footprint import Row
from mlx_itune.training.engine.loop import train
from mlx_itune.training.engine.step import Learner
from mlx_itune.training.run.resume import resume
from tests.crash.small_run import outcome

__all__ = ["outcome"]
Event = dict[str, Any]


class Cut(BaseException):
    """The end of a session, as sudden as an exception can be."""


def poison(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """These steps of the process, counted from 1, are not finite; all of them if none is named."""
    real, seen = Learner.step, itertools.count(1)

    def step(self: Learner, examples: Any, rate: float, **options: Any) -> Any:
        if next(seen) in steps or not steps:
            examples = [Row(e.input_ids, e.weights * np.float32("inf")) for e in examples]
        return real(self, examples, rate, **options)

    monkeypatch.setattr(Learner, "step", step)


def cut_after(kind: str, step: int) -> Any:
    """An observer that ends the session right after an event."""

    def observe(event: Event) -> None:
        if event["event"] == kind and event.get("step") == step:
            raise Cut

    return observe


def the_run(tmp_path: Path) -> Path:
    (run,) = (tmp_path / "runs").iterdir()
    return run


def in_peace(settings: Any, tmp_path: Path, **more: Any) -> dict[str, Any]:
    """The outcome of a run that nothing interrupts."""
    result = train(settings(out=tmp_path / "peace", runs=tmp_path / "peace-runs", **more))
    return outcome(Path(result.run), tmp_path / "peace")


def stopped(settings: Any, tmp_path: Path, **more: Any) -> Path:
    """A run that was cut after its checkpoint of step 4."""
    with pytest.raises(Cut):
        train(settings(**more), observe=cut_after("checkpoint", 4))
    return the_run(tmp_path)


def resumed(run: Path, **how: Any) -> Event:
    """Go on with a run to its end; its resume event."""
    events: list[Event] = []
    resume(run, observe=events.append, **how)
    (event,) = [event for event in events if event["event"] == "resume"]
    return event
