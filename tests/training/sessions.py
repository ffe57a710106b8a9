"""Sessions of a run that end early, and what has to be the same in the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)
from mlx_itune.training.engine.loop import train
from mlx_itune.training.run import checkpoint
from mlx_itune.training.run.story import read

Event = dict[str, Any]
CLOCK = frozenset(
    "run adapter wall_s tokens_per_second supervised_tokens_per_second peak_memory_bytes".split()
)


class Cut(BaseException):
    """The end of a session, as sudden as an exception can be."""


def cut_after(kind: str, step: int) -> Any:
    """An observer that ends the session right after an event."""

    def observe(event: Event) -> None:
        if event["event"] == kind and event.get("step") == step:
            raise Cut

    return observe


def the_run(tmp_path: Path) -> Path:
    (run,) = (tmp_path / "runs").iterdir()
    return run


def outcome(run: Path, out: Path) -> dict[str, Any]:
    last = checkpoint.complete(run / "checkpoints")[-1]
    state = json.loads((last / "state.json").read_text())
    result = json.loads((run / "result.json").read_text())
    story = read(run)
    return {
        "adapter": (out / "adapters.safetensors").read_bytes(),
        "optimizer": (last / "optimizer.safetensors").read_bytes(),
        "state": {k: v for k, v in state.items() if k not in ("clock", "run")},
        "result": {k: v for k, v in result.items() if k not in CLOCK},
        "losses": (list(story.steps), story.curve("loss").tobytes()),
        "validations": (list(story.valid_steps), list(story.valid_losses)),
    }


def in_peace(settings: Any, tmp_path: Path, **more: Any) -> dict[str, Any]:
    place = {"out": tmp_path / "peace", "runs": tmp_path / "peace-runs"}
    result = train(settings(**place, **more))
    return outcome(Path(result.run), tmp_path / "peace")


def stopped(settings: Any, tmp_path: Path, **more: Any) -> Path:
    """A run that was cut after its checkpoint of step 4."""
    with pytest.raises(Cut):
        train(settings(**more), observe=cut_after("checkpoint", 4))
    return the_run(tmp_path)
