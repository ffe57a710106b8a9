"""`resume`: go on with a run as if it had never been interrupted, or say why not."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mlx_itune.kit.config import from_toml
from mlx_itune.kit.errors import StorageError, UsageError
from mlx_itune.kit.files import sweep
from mlx_itune.kit.lock import locked
from mlx_itune.training.engine.job import Observe, TrainResult
from mlx_itune.training.engine.loop import work
from mlx_itune.training.engine.rank_choice import is_writer, mirrored, own_place
from mlx_itune.training.run import checkpoint, identity, incidents, run
from mlx_itune.training.run.checkpoint import Checkpoint
from mlx_itune.training.run.logfile import EVENTS, repair
from mlx_itune.training.run.record import Record
from mlx_itune.training.settings import TrainSettings
from mlx_itune.training.setup import ROWS, Setup, gather, ready

# Settings that decide how steps are computed, not what: a run that did not fit may change them.
HOW = frozenset({"micro_batch_tokens", "memory_gb"})
# What a damaged checkpoint is called when a run goes on from the one before it.
_DAMAGED = "damaged-"


@dataclasses.dataclass(frozen=True)
class Resumed:
    """What became of a run. finished_before: it was done already; rewritten: but its adapter was
    missing, and was written again."""

    result: TrainResult
    finished_before: bool = False
    rewritten: bool = False


def resume(
    folder: Path,
    *,
    out: Path | None = None,
    how: Mapping[str, Any] = MappingProxyType({}),
    offline: bool = False,
    observe: Observe = lambda _: None,
) -> Resumed:
    """Continue the run in `folder` from its last undamaged checkpoint; without one, from step 0.

    The weights, moments and metrics at the end are, bit for bit, those of a run that was never
    interrupted. out: another place for the adapter. how: other values for settings in `HOW`, for a
    run that did not fit; the same function, but its last bits will differ.
    Raises what `train` raises; UsageError, DataError or ModelError naming the field that is not
    what the run began with; StorageError when another process trains it, or no checkpoint is whole.
    """
    with mirrored(Path(folder), _needed) as place:
        return _resume(place, out, how, offline, observe)


def _needed(folder: Path) -> list[str]:
    """What the other processes of a run need of its folder."""
    name = run.id_of(folder)
    found, _ = newest(folder / run.CHECKPOINTS, name)
    files = [folder / n for n in (run.CONFIG, run.BEGINNING, run.RESULT) if (folder / n).is_file()]
    for part in (folder / ROWS, *([found.path] if found else [])):
        files += (path for path in part.rglob("*") if path.is_file())
    return [str(path.relative_to(folder)) for path in files]


def _resume(
    folder: Path, out: Path | None, how: Mapping[str, Any], offline: bool, observe: Observe
) -> Resumed:
    began = time.monotonic()
    name = run.id_of(folder)
    beginning = run.read_json(folder / run.BEGINNING) or {}
    with locked(folder / run.LOCK, f"run {name}"), ExitStack() as stack:
        settings = _settings(folder, beginning, out, offline)
        if foreign := how.keys() - HOW:
            raise UsageError(f"{', '.join(sorted(foreign))} cannot change in a run")
        finished = _finished(folder, Path(settings.out), name)
        if finished is not None:
            return finished
        settings = stack.enter_context(own_place(dataclasses.replace(settings, **how)))
        overwrite = run.require_free_name(Path(settings.out), run=name)
        identity.require_same_data(beginning["data"], Path(settings.data))
        setup = _same_setup(settings, folder, beginning)
        record, resumed = _restore(setup, folder)
        now = {**setup.facts(), "settings": identity.settings_facts(settings)}
        # What a setting left open was decided, and how stands in "how".
        decided = set(now["how"])
        changed = dict.fromkeys(
            line
            for part in ("settings", "how", "versions", "machine")
            for line in identity.differences(
                beginning[part], now[part], decided if part == "settings" else set()
            )
        )
        result = work(
            setup,
            folder,
            record,
            observe=observe,
            began=began,
            resumed={**resumed, "changed": [*changed]},
            overwrite=overwrite,
        )
    return Resumed(result)


def _settings(
    folder: Path, beginning: Mapping[str, Any], out: Path | None, offline: bool
) -> TrainSettings:
    """The run's own settings; paths as they were meant in the directory it was started in."""
    config = folder / run.CONFIG
    # config.toml holds every setting in effect, so no preset comes into it again.
    values: dict[str, Any] = from_toml(config, TrainSettings)
    values["offline"] = offline or bool(values.get("offline"))
    # Relative paths stay relative where they mean the same.
    home = Path(beginning["directory"])
    home = Path() if home == Path.cwd() else home
    for name in ("data", "out", "runs"):
        values[name] = home / values[name]
    if out is not None:
        values["out"] = out
    if (home / values["model"]).is_dir():
        values["model"] = str(home / values["model"])
    settings = TrainSettings(**values)
    identity.require_same_settings(beginning["settings"], settings, str(config))
    return settings


def _same_setup(settings: TrainSettings, folder: Path, beginning: Mapping[str, Any]) -> Setup:
    """What the run began with, loaded again; cheap comparisons come before the weights."""
    expected = beginning["model"]
    material = gather(settings, kept_rows=folder)
    where = str(material.path)
    identity.require_same_model(expected, material.facts, where=where)
    setup = ready(settings, material, began=beginning)
    identity.require_same_model(expected, setup.facts()["model"], where=where)
    return setup


def _restore(setup: Setup, folder: Path) -> tuple[Record, dict[str, Any]]:
    """Put the last undamaged checkpoint into the learner; clean up what came after it."""
    checkpoints = folder / run.CHECKPOINTS
    sweep(folder, every_owner=True)
    sweep(checkpoints, every_owner=True)
    sweep(Path(setup.settings.out).parent, Path(setup.settings.out).name)
    found, damaged = newest(checkpoints, run.id_of(folder))
    record = Record()
    if found is not None:
        checkpoint.restore(found, setup.learner)
        record = Record.from_state(found.state)
    for path in damaged:
        path.rename(path.with_name(_DAMAGED + path.name))
    repair(folder / EVENTS)
    repair(folder / incidents.FILE)
    incidents.forget_after(folder, record.step)
    return record, {
        "step": record.step,
        "checkpoint": found.path.name if found else None,
        "damaged": [path.name for path in damaged],
    }


def newest(checkpoints: Path, name: str) -> tuple[Checkpoint | None, list[Path]]:
    """The last undamaged checkpoint of run `name`, and the damaged ones after it.

    None where there is none at all; StorageError where there are, and every one is damaged.
    """
    damaged: list[Path] = []
    first: StorageError | None = None
    for path in reversed(checkpoint.all_of(checkpoints)):
        try:
            found = checkpoint.read(path)
            if found.state.get("run") != name:
                raise StorageError(
                    f"is of the run {found.state.get('run')}, not of {name}", where=str(path)
                )
            return found, damaged
        except StorageError as error:
            first = first or error
            damaged.append(path)
    if first is not None:
        raise StorageError(
            f"no checkpoint is undamaged: {first.message}",
            where=first.where,
            hint=f"remove {checkpoints} to begin again at step 0",
        )
    return None, damaged


def _finished(folder: Path, out: Path, name: str) -> Resumed | None:
    """The result of a run that was done already, its adapter written again where it is missing."""
    words = run.read_json(folder / run.RESULT)
    if words is None:
        return None
    names = {field.name for field in dataclasses.fields(TrainResult)}
    result = TrainResult(**{name: value for name, value in words.items() if name in names})
    result = dataclasses.replace(result, run=str(folder), adapter=str(out))
    if not is_writer():
        return Resumed(result, finished_before=True)
    if out.is_dir() and any(out.iterdir()):
        run.require_free_name(out, run=name)
        return Resumed(result, finished_before=True)
    path = folder / run.CHECKPOINTS / checkpoint.name_of(result.adapter_step)
    if not path.is_dir():
        raise StorageError(
            f"is gone, and so is {path.name}, which held the adapter too",
            where=str(out),
            hint="train again",
        )
    checkpoint.publish(checkpoint.read(path), out)
    return Resumed(result, finished_before=True, rewritten=True)
