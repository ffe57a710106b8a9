"""What is meant by --adapter and, where it is left out, by --model: a run has an adapter, and an
adapter knows its base."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mlx_itune.dataset.sources import Splits, load_splits
from mlx_itune.kit.errors import ItuneError, ModelError, StorageError
from mlx_itune.kit.json_files import read_object
from mlx_itune.kit.settings import from_toml
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.adapters.adapter import Adapter, Origin
from mlx_itune.model.loading import base
from mlx_itune.model.loading.named import NAMES
from mlx_itune.training.run import run
from mlx_itune.training.settings import TrainSettings, settings_from

RUNS = Path("runs")
# What the id of a named model begins with.
_OURS = "mlx-itune/"


def adapter_at(name: str, runs: Path = RUNS) -> Path:
    """The directory of an adapter, or of the one that a run has made: `last`, a run's folder, an
    id or its beginning. Raises ModelError, UsageError where several ids begin so."""
    path = Path(name)
    if path.exists() and not (path / run.CONFIG).is_file():
        return path
    listing = f"mlx-itune runs list --runs {shlex.quote(str(runs))}"
    if not (path.exists() or run.could_be(name, runs)):
        raise ModelError("no such adapter, and no such run", where=name, hint=listing)
    folder = run.find(name, runs)
    done, again = run.result_of(folder), run.resume_line(str(folder))
    if done is None:
        raise ModelError("this run has no adapter yet", where=str(folder), hint=again)
    # From where the run began, or from here.
    home = Path(run.beginning_of(folder).directory)
    places = (Path(done.adapter), home / done.adapter)
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        what = f"its adapter {done.adapter} is gone"
        raise ModelError(what, where=str(folder), hint=f"{again} writes it again")
    return found


def run_of(origin: Origin, beside: Path | None, runs: Path = RUNS) -> Path | None:
    """The folder of the run that made the adapter `beside` it, where it is at hand."""
    if (name := origin.run) is None or Path(name).name != name:
        return None
    places = [runs, *([beside.parent / "runs"] if beside else [])]
    return next((p / name for p in places if (p / name / run.CONFIG).is_file()), None)


def rows_of_run(adapter: Adapter, runs: Path = RUNS) -> tuple[TrainSettings, Splits] | None:
    """The settings and the rows of the run that made an adapter, where both are at hand."""
    with suppress(ItuneError):
        if folder := run_of(adapter.origin, adapter.path, runs):
            settings = settings_from(from_toml(folder / run.CONFIG, TrainSettings))
            # As it was named where the run began, which is, most often, where its runs are.
            began = Path(run.beginning_of(folder).directory) / settings.data
            data = began if began.exists() else folder.parent.parent / settings.data
            return settings, load_splits(data, seed=settings.seed, how=settings.reading)
    return None


def base_of(adapter: Path, runs: Path = RUNS) -> str:
    """The model that an adapter was trained on, as --model takes it: a named one, that of its run,
    or one of the Hub's cache; nothing is fetched. Raises ModelError where none is at hand."""
    origin = adapters.origin_of(adapter)
    known = origin.base.id or ""
    if known.startswith(_OURS) and known.removeprefix(_OURS) in NAMES:
        return known.removeprefix(_OURS)
    told = [*_of_run(run_of(origin, adapter, runs)), *filter(None, [known]), *_of_mlx_lm(adapter)]
    found = next(filter(base.is_here, told), None)
    if found is None:
        what = f"its base, {told[0]}, is not at hand" if told else "does not say what its base is"
        raise ModelError(what, where=str(adapter), hint="name it with --model")
    return found


def _of_run(folder: Path | None) -> Iterator[str]:
    with suppress(StorageError):
        if folder:
            model = str(from_toml(folder / run.CONFIG, TrainSettings)["model"])
            yield str(Path(run.beginning_of(folder).directory) / model)
            yield model


def _of_mlx_lm(adapter: Path) -> Iterator[str]:
    """mlx-lm notes in the configuration what was typed."""
    with suppress(ModelError):
        model = read_object(adapter / adapters.CONFIG, error=ModelError).get("model")
        if isinstance(model, str):
            yield model
