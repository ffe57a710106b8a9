"""`resume`: go on with a run as if it had never been interrupted, or say why not."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mlx_itune.kit import network
from mlx_itune.kit.errors import DataError, ItuneError, ModelError, StorageError, UsageError
from mlx_itune.kit.files import sweep
from mlx_itune.kit.json_files import plain, to_record
from mlx_itune.kit.lock import locked
from mlx_itune.kit.settings import from_toml
from mlx_itune.model.loading.named import NAMES
from mlx_itune.training.engine.job import Observe
from mlx_itune.training.engine.loop import work
from mlx_itune.training.engine.rank_choice import is_writer, mirrored, own_place
from mlx_itune.training.run import catalogue, checkpoint, run
from mlx_itune.training.run.checkpoint import Checkpoint
from mlx_itune.training.run.run import Beginning, DataFile, Record, TrainResult
from mlx_itune.training.settings import TrainSettings, table
from mlx_itune.training.setup import ROWS, Setup, data_facts, gather, ready, settings_facts

# Settings that decide how steps are computed, not what: a run that did not fit may change them.
HOW = frozenset({"micro_batch_tokens", "memory_gb"})
# What a damaged checkpoint is called when a run goes on from the one before it.
_DAMAGED = "damaged-"
_SHOWN = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resumed(TrainResult):
    """What became of a run. finished_before: it was done already; rewritten: but its adapter was
    missing, and was written again."""

    finished_before: bool = False
    rewritten: bool = False


def resume(
    folder: Path,
    *,
    out: Path | None = None,
    how: Mapping[str, Any] = MappingProxyType({}),
    allow_other_base: bool = False,
    observe: Observe = lambda _: None,
    pause: float | None = None,
) -> Resumed:
    """Continue the run in `folder` from its last undamaged checkpoint, bit for bit; else from step
    0.

    out: another place for the adapter. how: other values for settings in `HOW`; the last bits will
    differ. allow_other_base: go on although base, tokenizer, template or tokens have changed.
    pause: as `train` has it.
    Raises what `train` raises; UsageError, DataError or ModelError naming the field that is not
    what the run began with; StorageError when another process trains it, or no checkpoint is whole.
    """
    began = time.monotonic()
    with mirrored(Path(folder), _needed) as folder, ExitStack() as stack:
        beginning = run.beginning_of(folder)
        name = beginning.id
        stack.enter_context(locked(folder / run.LOCK, f"run {name}"))
        settings = _settings(folder, beginning, out)
        if foreign := how.keys() - HOW:
            raise UsageError(f"{', '.join(sorted(foreign))} cannot change in a run")
        finished = _finished(folder, Path(settings.out), name)
        if finished is not None:
            return finished
        settings = stack.enter_context(own_place(dataclasses.replace(settings, **how)))
        overwrite = run.require_free_name(Path(settings.out), run=name)
        _require_same_data(beginning.data, Path(settings.data))
        changed: list[str] = []

        def differs(facts: Mapping[str, Any]) -> None:
            # A fact that one side lacks is of another version of mlx-lm.
            then = {name: fact for name, fact in beginning.model.items() if name in facts}
            found = _changes(then, {name: facts[name] for name in then})
            changed.extend(found)
            if not allow_other_base:
                _refuse(found, ModelError, settings.model, ", or say --allow-other-base")

        # What costs little is compared before the weights are loaded.
        material = gather(settings, kept_rows=folder)
        differs(material.facts)
        setup = ready(settings, material, began=beginning)
        differs(setup.beginning().model)
        record, resumed = _restore(setup, folder)
        changed += _last_bits(beginning, setup)
        result = work(
            setup,
            folder,
            record,
            observe=observe,
            began=began,
            resumed={**resumed, "changed": [*dict.fromkeys(changed)]},
            overwrite=overwrite,
            pause=pause,
        )
    return Resumed(**vars(result))


def _needed(folder: Path) -> list[str]:
    """What the other processes of a run need of its folder."""
    found, _ = newest(folder / run.CHECKPOINTS, run.id_of(folder))
    files = [folder / n for n in (run.CONFIG, run.BEGINNING, run.RESULT) if (folder / n).is_file()]
    parts = [folder / ROWS]
    if found is not None:
        best = checkpoint.name_of(found.state.get("best_step") or 0)
        parts += dict.fromkeys([found.path, found.path.with_name(best)])
    for part in parts:
        files += (path for path in part.rglob("*") if path.is_file())
    return [str(path.relative_to(folder)) for path in files]


def _settings(folder: Path, beginning: Beginning, out: Path | None) -> TrainSettings:
    """The run's own settings; paths as they were meant in the directory it was started in."""
    config = folder / run.CONFIG
    # config.toml holds every setting in effect, so no preset comes into it again.
    values: dict[str, Any] = from_toml(config, TrainSettings)
    if gone := [name for name in ("model", "data", "out", "runs") if name not in values]:
        raise StorageError(f"has no {' and no '.join(gone)}", where=str(config))
    values["offline"] = network.offline() or bool(values.get("offline"))
    # Relative paths stay relative where they mean the same.
    home = Path(beginning.directory)
    home = Path() if home == Path.cwd() else home
    for name in ("data", "out", "runs"):
        values[name] = home / values[name]
    if out is not None:
        values["out"] = out
    model = values["model"]
    if model not in NAMES and (home / model).is_dir():
        # Not as a Path, to which "./starter" is "starter", another model.
        values["model"] = model if home == Path() else str(home / model)
    settings = TrainSettings(**values)
    _require_same_settings(beginning.settings, settings, str(config))
    return settings


def _last_bits(began: Beginning, setup: Setup) -> list[str]:
    """What else has changed; the run goes on, but its last bits may differ."""
    now = setup.beginning()
    hows = [{**how.ways, **vars(how), "ways": None} for how in (began.how, now.how)]
    # What a setting left open was decided, and how stands in "how".
    return [
        *_changes(began.settings, now.settings, but=hows[1]),
        *_changes(*hows),
        *_changes(began.versions, now.versions),
        *_changes(vars(began.machine), vars(now.machine)),
    ]


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
        where = str(found.path / checkpoint.STATE)
        record = to_record(found.state, Record, where=where, error=StorageError)
    for path in damaged:
        path.rename(path.with_name(_DAMAGED + path.name))
    catalogue.repair(folder / run.EVENTS)
    catalogue.repair(folder / run.INCIDENTS)
    catalogue.forget_incidents_after(folder, record.step)
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
    found = run.result_of(folder)
    if found is None:
        return None
    result = dataclasses.replace(found, run=str(folder), adapter=str(out))
    if not is_writer():
        return Resumed(**vars(result), finished_before=True)
    if out.is_dir() and any(out.iterdir()):
        run.require_free_name(out, run=name)
        return Resumed(**vars(result), finished_before=True)
    path = folder / run.CHECKPOINTS / checkpoint.name_of(result.adapter_step)
    if not path.is_dir():
        raise StorageError(
            f"is gone, and so is {path.name}, which held the adapter too",
            where=str(out),
            hint="train again",
        )
    checkpoint.publish(checkpoint.read(path), out)
    return Resumed(**vars(result), finished_before=True, rewritten=True)


def _require_same_settings(began: Mapping[str, Any], settings: TrainSettings, where: str) -> None:
    """Raise UsageError naming each setting that is not what the run began with."""
    now = settings_facts(settings)
    # A setting that there was not yet when the run began was at its default then.
    defaults = {name: plain(table()[name].default) for name in now}
    _refuse(_changes({**defaults, **began}, now), UsageError, where)


def _require_same_data(began: Mapping[str, DataFile], data: Path) -> None:
    """Raise DataError naming each data file that is not the one the run began with."""
    now = data_facts(data)
    found = []
    for part, file in {**now, **began}.items():
        name = f"data.{part}.sha256 ({file.file})"
        if part in began and part in now:
            found += _changes({name: file.sha256}, {name: now[part].sha256})
        else:
            found.append(f"data.{part} ({file.file}) is {'gone' if part in began else 'new'}")
    _refuse(found, DataError, str(data))


def _changes(
    began: Mapping[str, Any], now: Mapping[str, Any], but: Collection[str] = ()
) -> list[str]:
    """Each value that has changed, `but` for these, as "seed is 1, the run began with 0"."""
    return [
        f"{name} is {_short(now.get(name))}, the run began with {_short(began.get(name))}"
        for name in dict.fromkeys([*began, *now])
        if name not in but and now.get(name) != began.get(name)
    ]


def _refuse(changed: list[str], error: type[ItuneError], where: str, hint: str = "") -> None:
    """Raise `error` where anything has changed."""
    if changed:
        more = [f"and {len(changed) - _SHOWN} more"] if len(changed) > _SHOWN else []
        hint = f"put it back, or start a new run with train{hint}"
        raise error("; ".join([*changed[:_SHOWN], *more]), where=where, hint=hint)


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else repr(value)
