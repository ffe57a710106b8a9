"""The runs in a folder: how each stands, whether its checkpoints are whole, what may go."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_itune.kit.config import from_toml
from mlx_itune.kit.errors import StorageError
from mlx_itune.kit.files import remove_directory, sweep
from mlx_itune.kit.lock import holder, locked
from mlx_itune.training.run import checkpoint, incidents, run
from mlx_itune.training.run.logfile import EVENTS, tail
from mlx_itune.training.run.macos import resume_line
from mlx_itune.training.settings import TrainSettings

_DIVERGED = 6
# States in which a run can be resumed.
UNFINISHED = frozenset({"stopped", "killed", "failed"})


@dataclass(frozen=True)
class RunLine:
    """One run in a list. state: running, finished, stopped (by a signal), killed (it ended without
    a word), failed or diverged. Losses in nats, None where nothing was measured. resume: what
    continues it, None where nothing is left to do."""

    run: str
    state: str
    step: int
    steps: int | None
    train_loss: float | None
    valid_loss: float | None
    best_valid_loss: float | None
    checkpoints: int
    incidents: int
    bytes: int
    resume: str | None


@dataclass(frozen=True)
class Seal:
    """One checkpoint; `fault` says what differs from its manifest, None if nothing does."""

    path: str
    step: int
    bytes: int
    best: bool
    fault: str | None = None


@dataclass(frozen=True)
class Going:
    """Something that `prune` removes, and why."""

    path: str
    bytes: int
    why: str


def line_of(folder: Path) -> RunLine:
    """How a run stands. Raises StorageError where its folder cannot be read."""
    events = tail(folder / EVENTS)
    state = "running" if holder(folder / run.LOCK) else _ending(folder, events)
    numbers: dict[str, Any] = {}
    for path in checkpoint.all_of(folder / run.CHECKPOINTS)[-1:]:
        with contextlib.suppress(StorageError):
            numbers |= run.read_json(path / checkpoint.STATE) or {}
    for event in events:
        kind = event.get("event")
        if kind in ("start", "resume", "step"):
            numbers |= {k: event[k] for k in ("step", "steps") if event.get(k) is not None}
        if kind == "step" and event.get("loss") is not None:
            numbers["train_loss"] = event["loss"]
        if kind == "valid" and event.get("loss") is not None:
            numbers["valid_loss"] = event["loss"]
            best = numbers.get("best_valid_loss")
            numbers["best_valid_loss"] = min(event["loss"], best or event["loss"])
    result = run.read_json(folder / run.RESULT) or {}
    numbers |= {k: result[k] for k in result.keys() & RunLine.__dataclass_fields__.keys()}
    if result:
        numbers["step"] = result["steps"]
    return RunLine(
        run=str(folder),
        state=state,
        step=int(numbers.get("step") or 0),
        steps=numbers.get("steps"),
        train_loss=numbers.get("train_loss"),
        valid_loss=numbers.get("valid_loss"),
        best_valid_loss=numbers.get("best_valid_loss"),
        checkpoints=len(checkpoint.complete(folder / run.CHECKPOINTS)),
        incidents=len(incidents.read(folder)),
        bytes=size_of(folder),
        resume=resume_line(str(folder)) if state in UNFINISHED else None,
    )


def details(folder: Path) -> dict[str, Any]:
    """All that a run's folder says: its line, settings, result, checkpoints and incidents."""
    line = line_of(folder)
    who = holder(folder / run.LOCK)
    return {
        **vars(line),
        "held_by": str(who) if who else None,
        "config": from_toml(folder / run.CONFIG, TrainSettings),
        "result": run.read_json(folder / run.RESULT),
        "checkpoint_list": seals(folder, verify=False),
        "incident_list": incidents.read(folder),
    }


def seals(folder: Path, *, verify: bool = True) -> list[Seal]:
    """A run's checkpoints, oldest first; with `verify` each file is read and compared."""
    found = []
    newest: dict[str, Any] = {}
    for path in checkpoint.all_of(folder / run.CHECKPOINTS):
        fault = None
        try:
            state = (
                checkpoint.read(path).state if verify else run.read_json(path / checkpoint.STATE)
            )
            newest = dict(state or newest)
        except StorageError as error:
            fault = str(error)
        found.append((path, fault))
    return [
        Seal(str(p), step, size_of(p), step == newest.get("best_step"), fault)
        for p, fault in found
        if (step := checkpoint.step_of(p)) >= 0
    ]


def prune(
    folders: Sequence[Path],
    *,
    keep: int,
    keep_runs: int | None = None,
    unfinished: bool = False,
    really: bool = False,
) -> list[Going]:
    """Remove checkpoints but the newest `keep` and the best of each run; what goes, or would go.

    keep_runs: whole runs go too, but for so many of the newest; those that could be resumed stay
    unless `unfinished`. A run that is training is left alone.
    """
    going: list[Going] = []
    ordered = sorted(folders, key=lambda folder: folder.name)
    old = ordered[: max(0, len(ordered) - keep_runs)] if keep_runs is not None else []
    for folder in ordered:
        with _held(folder) as free:
            if not free:
                continue
            finished = _ending(folder, tail(folder / EVENTS)) not in UNFINISHED
            if folder in old and (finished or unfinished):
                why = "a whole run" if finished else "a whole run, not finished"
                going.append(Going(str(folder), size_of(folder), why))
                if really:
                    remove_directory(folder)
                continue
            going += _prune_checkpoints(folder, keep, really)
    return going


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _prune_checkpoints(folder: Path, keep: int, really: bool) -> list[Going]:
    checkpoints = folder / run.CHECKPOINTS
    best: int | None = None
    for path in checkpoint.complete(checkpoints)[-1:]:
        try:
            best = checkpoint.read(path).state.get("best_step")
        except StorageError:
            # An older one is what this run would go on from: nothing goes.
            return []
    newest = max(map(checkpoint.step_of, checkpoint.complete(checkpoints)), default=0)
    gone = checkpoint.rotate(checkpoints, keep=keep, best_step=best, newest=newest, dry_run=True)
    going = [Going(str(path), size_of(path), "an older checkpoint") for path in gone]
    leftovers = [*checkpoints.glob(".*.partial")] if checkpoints.is_dir() else []
    going += [Going(str(path), size_of(path), "left by a killed process") for path in leftovers]
    if really:
        checkpoint.rotate(checkpoints, keep=keep, best_step=best, newest=newest)
        sweep(checkpoints, every_owner=True)
    return going


def _ending(folder: Path, events: Sequence[dict[str, Any]]) -> str:
    """How a run stands that nobody trains."""
    if (folder / run.RESULT).is_file():
        return "finished"
    told = (e for e in reversed(events) if e.get("event") not in ("warning", "sample"))
    last: dict[str, Any] = next(told, {})
    if last.get("event") == "failed":
        return "diverged" if last.get("exit_code") == _DIVERGED else "failed"
    return "stopped" if last.get("event") == "stopped" else "killed"


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """The run's lock for the block; False, and no lock, where another process has it."""
    if holder(folder / run.LOCK) is not None:
        yield False
        return
    with locked(folder / run.LOCK, f"run {run.id_of(folder)}"):
        yield True
