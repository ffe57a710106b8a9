"""Observers that copy a run's numbers to TensorBoard or to Weights & Biases.

Numbers and settings leave, nothing else: no row, no path of this machine, no console output, no
code. What goes wrong with them once a run has begun is told in one line and ends no run.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from mlx_itune.kit.errors import UsageError
from mlx_itune.kit.settings import from_toml
from mlx_itune.kit.wording import brief
from mlx_itune.training.run.run import CONFIG, public_settings
from mlx_itune.training.settings import TrainSettings

Observe = Callable[[dict[str, Any]], None]
Say = Callable[[str], None]

# What of which events is copied, and as what.
_NAMES = {
    "step": {
        "loss": "train/loss",
        "learning_rate": "train/learning_rate",
        "gradient_norm": "train/gradient_norm",
        "supervised_tokens_per_second": "speed/learned_tokens_per_second",
        "tokens_per_second": "speed/tokens_per_second",
        "peak_memory_bytes": "memory/peak_bytes",
        "memory_bytes": "memory/in_use_bytes",
    },
    "valid": {"loss": "valid/loss"},
}
# Files are flushed so often, and at every validation, for a board that is open beside the run.
_FLUSH_S = 30


@contextlib.contextmanager
def attached(
    settings: TrainSettings,
    watch: Observe = lambda _: None,
    *,
    wandb: str | None = None,
    tensorboard: Path | None = None,
    say: Say = lambda _: None,
) -> Iterator[Observe]:
    """An observer for `train`: `watch`, and the boards asked for, which are closed with the block.

    wandb: a project. tensorboard: a directory. `say` is told when a board fails. Raises UsageError
    at once where a package or a login is missing.
    """
    boards: list[Any] = [] if tensorboard is None else [_TensorBoard(tensorboard)]
    if wandb is not None:
        boards.append(_WeightsAndBiases(wandb, settings))
    begun = False
    result: dict[str, float] | None = None

    def tell(method: str, *what: Any) -> None:
        for board in list(boards):
            try:
                getattr(board, method)(*what)
            except Exception as error:
                boards.remove(board)
                reason = brief(error)
                say(f"warning: {board.name} was switched off, training goes on: {reason}")

    def observe(event: dict[str, Any]) -> None:
        nonlocal begun, result
        kind = event.get("event")
        if kind == "start":
            begun = True
            tell("open", str(event["run"]), int(event.get("steps") or 0))
        elif kind == "resume":
            tell("back_to", int(event.get("step") or 0))
        elif kind in _NAMES:
            told = {shown: event.get(name) for name, shown in _NAMES[kind].items()}
            if finite := _finite(told):
                tell("numbers", int(event["step"]), finite)
        elif kind == "end":
            result = _finite(event)
        watch(event)

    try:
        yield observe
    finally:
        if begun:
            tell("close", result)


class _TensorBoard:
    """Event files in `folder/<run id>`, by TensorBoard's own writer."""

    name = "TensorBoard"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers, self._events, self._summaries = (
            _required(f"tensorboard.{module}", "tensorboard")
            for module in (
                "summary.writer.event_file_writer",
                "compat.proto.event_pb2",
                "compat.proto.summary_pb2",
            )
        )

    def open(self, run: str, steps: int) -> None:
        path = self._folder / Path(run).name
        self._writer = self._writers.EventFileWriter(str(path), flush_secs=_FLUSH_S)

    def back_to(self, step: int) -> None:
        # TensorBoard forgets what came after a session's first step.
        session = self._events.SessionLog
        self._add(step=step + 1, session_log=session(status=session.START))

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        summary = self._summaries.Summary
        scalars = [summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._add(step=step, summary=summary(value=scalars))
        if "valid/loss" in values:
            self._writer.flush()

    def close(self, result: Mapping[str, float] | None) -> None:
        self._writer.close()

    def _add(self, **fields: Any) -> None:
        self._writer.add_event(self._events.Event(wall_time=time.time(), **fields))


class _WeightsAndBiases:
    """A run of a project, by the wandb package; kept in the run's folder when offline."""

    name = "Weights & Biases"

    def __init__(self, project: str, settings: TrainSettings) -> None:
        self._wandb = _required("wandb", "wandb")
        self._project, self._settings = project, settings
        self._offline = settings.offline
        quiet = os.environ.get("WANDB_MODE", "online") not in ("online", "run")
        if self._offline or quiet:
            return
        hint = "wandb login, or --offline to keep it here and `wandb sync` later"
        try:
            known = self._wandb.login()
        except Exception as error:
            raise UsageError(f"--wandb: not logged in ({brief(error)})", hint=hint) from error
        if known is False:
            raise UsageError("--wandb: not logged in", hint=hint)

    def open(self, run: str, steps: int) -> None:
        folder = Path(run)
        settings = self._settings
        if (folder / CONFIG).is_file():
            # What was left open is decided by now.
            settings = TrainSettings(**cast("Any", from_toml(folder / CONFIG, TrainSettings)))
        fields = getattr(self._wandb.Settings, "model_fields", _UNSHARED)
        unshared = {name: value for name, value in _UNSHARED.items() if name in fields}
        self._run = self._wandb.init(
            project=self._project,
            id=folder.name,
            name=folder.name,
            resume="allow",
            dir=str(folder),
            config={**shared_settings(settings), "planned_steps": steps},
            mode="offline" if self._offline else None,
            settings=self._wandb.Settings(**unshared),
        )
        # Its own counter only goes up; a resumed run goes back first.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def back_to(self, step: int) -> None:
        """Steps that are made again are logged again, by their number."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self, result: Mapping[str, float] | None) -> None:
        # A run without a result is marked as failed.
        self._run.summary.update(dict(result or {}))
        self._run.finish(exit_code=0 if result is not None else 1)


# What wandb would send besides what it is given.
_UNSHARED: dict[str, Any] = {
    "console": "off",
    "save_code": False,
    "x_save_requirements": False,
    **dict.fromkeys(("disable_code", "disable_git", "silent"), True),
    **dict.fromkeys(("x_disable_machine_info", "x_disable_meta", "x_disable_stats"), True),
}


def shared_settings(settings: TrainSettings) -> dict[str, Any]:
    """The settings without what says where things are on this machine."""
    # A Hub id is as public as the model; a local directory gives its name alone.
    local = re.match(r"[/~.\\]|[A-Za-z]:", settings.model) or Path(settings.model).exists()
    model = Path(settings.model).resolve().name if local else settings.model
    return {"model": model, **public_settings(settings)}


def _required(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        said = f"--{package} needs the {package} package ({error})"
        raise UsageError(said, hint=f"pip install {package}") from error


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among the values."""
    return {n: float(v) for n, v in values.items() if type(v) in (int, float) and abs(v) < math.inf}
