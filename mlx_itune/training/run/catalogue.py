"""The runs in a folder: how each stands, whether its checkpoints are whole, what may go.

A run's files of JSON lines outlive crashes: a torn line is passed over, a torn end is cut off.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_itune.kit.errors import DivergedError, StorageError
from mlx_itune.kit.files import remove_directory, storage_errors, write_durably
from mlx_itune.kit.json_files import plain, read_bytes, read_record, to_record
from mlx_itune.kit.lock import holder, locked
from mlx_itune.kit.settings import from_toml
from mlx_itune.training.run import checkpoint, run
from mlx_itune.training.run.run import Incident, Losses, Record, resume_line
from mlx_itune.training.run.story import Story, read
from mlx_itune.training.run.verdict import verdict
from mlx_itune.training.settings import TrainSettings

# States in which a run can be resumed.
UNFINISHED = frozenset({"stopped", "killed", "failed"})
_LIMIT_BYTES = 4 << 30


@dataclass(frozen=True, kw_only=True)
class Standing(Losses):
    """How a run stands. state: running, finished, stopped (by a signal), killed (it ended without
    a word), failed or diverged. resume: what continues it, None where nothing is left to do."""

    run: str
    state: str
    step: int = 0
    steps: int | None = None
    checkpoints: int
    incidents: int
    bytes: int
    resume: str | None
    name: str | None = None
    tags: tuple[str, ...] = ()
    note: str | None = None


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


def standing(folder: Path) -> Standing:
    """How a run stands. Raises StorageError where its folder cannot be read."""
    story = _story_of(folder)
    state = "running" if holder(folder / run.LOCK) else _ending(folder, story)
    result = None
    with contextlib.suppress(StorageError):
        result = run.result_of(folder)
    valid = [*story.validations.values()][-1:]
    known = Losses(
        train_loss=story.train_loss,
        valid_loss=valid[0] if valid and valid[0] == valid[0] else None,
        best_valid_loss=story.best[1] if story.best else None,
    )
    return Standing(
        run=str(folder),
        state=state,
        checkpoints=len(checkpoint.complete(folder / run.CHECKPOINTS)),
        incidents=len(incidents(folder)),
        bytes=size_of(folder),
        resume=resume_line(str(folder)) if state in UNFINISHED else None,
        step=story.steps[-1] if story.steps else 0,
        steps=story.planned_steps,
        **vars(run.note_of(folder)),
        **{name: getattr(result or known, name) for name in vars(known)},
    )


def details(folder: Path) -> dict[str, Any]:
    """All that a run's folder says: its standing, settings, result, checkpoints and incidents."""
    who = holder(folder / run.LOCK)
    return {
        **vars(standing(folder)),
        "verdict": verdict(_story_of(folder)),
        "held_by": str(who) if who else None,
        "config": from_toml(folder / run.CONFIG, TrainSettings),
        "result": run.result_of(folder),
        "checkpoint_list": seals(folder, verify=False),
        "incident_list": incidents(folder),
    }


def seals(folder: Path, *, verify: bool = True) -> list[Seal]:
    """A run's checkpoints, oldest first; with `verify` each file is read and compared."""
    found: list[Seal] = []
    best: int | None = None
    for path in checkpoint.all_of(folder / run.CHECKPOINTS):
        fault = None
        try:
            if verify:
                checkpoint.read(path)
            best = _record_of(path).best_step
        except StorageError as error:
            fault = str(error)
        found.append(Seal(str(path), checkpoint.step_of(path), size_of(path), False, fault))
    return [replace(seal, best=seal.step == best) for seal in found]


def prune(
    folders: Sequence[Path],
    *,
    keep: int,
    keep_runs: int | None = None,
    unfinished: bool = False,
    really: bool = False,
) -> list[Going]:
    """Remove checkpoints but the newest `keep` and the best of each run; what goes, or would go.

    keep_runs: whole runs go too, but for the newest, and unless `unfinished` those to be resumed.
    """
    going: list[Going] = []
    ordered = sorted(folders, key=lambda folder: folder.name)
    old = ordered[: max(0, len(ordered) - keep_runs)] if keep_runs is not None else []
    for folder in ordered:
        with _held(folder) as free:
            if not free:
                continue
            finished = _ending(folder, _story_of(folder)) not in UNFINISHED
            if folder in old and (finished or unfinished):
                why = "a whole run" if finished else "a whole run, not finished"
                going.append(Going(str(folder), size_of(folder), why))
                if really:
                    remove_directory(folder)
                continue
            going += _prune_checkpoints(folder, keep, really)
    return going


def incidents(folder: Path) -> list[Incident]:
    """The incidents of a run, oldest first; a line that is none is passed over."""
    path, found = folder / run.INCIDENTS, []
    text = read_bytes(path, limit_bytes=_LIMIT_BYTES) if path.exists() else b""
    for line in text.splitlines():
        with contextlib.suppress(ValueError, RecursionError, StorageError):
            told = json.loads(line)
            found.append(to_record(told, Incident, where=None, error=StorageError))
    return found


def forget_incidents_after(folder: Path, step: int) -> None:
    """Keep the incidents up to `step`: later steps are about to be made again."""
    if (folder / run.INCIDENTS).exists():
        kept = [incident for incident in incidents(folder) if incident.step <= step]
        lines = "".join(json.dumps(plain(incident)) + "\n" for incident in kept)
        write_durably(folder / run.INCIDENTS, lines.encode())


def repair(path: Path) -> None:
    """Cut off a last line that a crash left unfinished."""
    if not path.is_file():
        return
    with storage_errors(path), path.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
        os.fsync(file.fileno())


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _record_of(path: Path) -> Record:
    return read_record(path / checkpoint.STATE, Record, error=StorageError)


def _prune_checkpoints(folder: Path, keep: int, really: bool) -> list[Going]:
    checkpoints = folder / run.CHECKPOINTS
    sealed = checkpoint.complete(checkpoints)
    best: int | None = None
    for path in sealed[-1:]:
        try:
            checkpoint.read(path)
            best = _record_of(path).best_step
        except StorageError:
            # An older one is what this run would go on from: nothing goes.
            return []
    gone = checkpoint.rotate(checkpoints, keep=keep, best_step=best, dry_run=True)
    going = [Going(str(path), size_of(path), "an older checkpoint") for path in gone]
    leftovers = checkpoints.glob(".*.partial")
    going += [Going(str(path), size_of(path), "left by a killed process") for path in leftovers]
    if really:
        checkpoint.rotate(checkpoints, keep=keep, best_step=best)
    return going


def _story_of(folder: Path) -> Story:
    return read(folder) if (folder / run.EVENTS).is_file() else Story()


def _ending(folder: Path, story: Story) -> str:
    """How a run stands that nobody trains."""
    if (folder / run.RESULT).is_file():
        return "finished"
    if story.ending == "failed":
        diverged = story.end.get("exit_code") == DivergedError.exit_code
        return "diverged" if diverged else "failed"
    return "stopped" if story.ending == "stopped" else "killed"


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """The run's lock for the block; False, and no lock, where another process has it."""
    if holder(folder / run.LOCK) is not None:
        yield False
        return
    with locked(folder / run.LOCK, f"run {run.id_of(folder)}"):
        yield True
