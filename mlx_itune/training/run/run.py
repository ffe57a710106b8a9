"""A run on disk: its folder, what it began with, and the provenance of what it makes.

runs/20261122T200000Z-1a2b3c/   mode 0700
    config.toml       the settings in effect       run.json       what it began with
    events.jsonl      what happened                incidents.jsonl  updates that were not made
    checkpoints/      sealed states                result.json    written when all is done
    lock              held by the process that trains
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import math
import platform
import shlex
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval

from mlx_itune import __version__
from mlx_itune.dataset.batching import Batch
from mlx_itune.dataset.importing.inputs import data_licences
from mlx_itune.dataset.sources import Source
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.kit.errors import ItuneError, StorageError, UsageError
from mlx_itune.kit.files import sha256_file, staged_directory, storage_errors, write_durably
from mlx_itune.kit.json_files import plain, read_object, read_record, write_object
from mlx_itune.kit.settings import from_toml, to_toml
from mlx_itune.model.loading.base import LoadedModel
from mlx_itune.training.engine.step import StepMetrics
from mlx_itune.training.settings import TrainSettings

CONFIG, BEGINNING, RESULT, LOCK = "config.toml", "run.json", "result.json", "lock"
NOTE = "note.json"
CHECKPOINTS, EVENTS, INCIDENTS = "checkpoints", "events.jsonl", "incidents.jsonl"
# Steps that the reported train loss is the mean of, and in which skipped ones are counted.
WINDOW_STEPS = 20
SKIPS_IN_A_ROW = 5
SKIPS_IN_WINDOW = 10
# Paths of this machine say nothing about the adapter, and are nobody else's business.
_PRIVATE = {"model", "data", "out", "runs"}


@dataclass(frozen=True)
class DataFile:
    """A file of rows."""

    file: str
    sha256: str


@dataclass(frozen=True)
class How:
    """How steps are computed: a resumed run does it the same way, for the same last bits."""

    processes: int
    lanes: Annotated[int, Interval(ge=1, le=64)]
    compute: str
    micro_batch_tokens: Annotated[int, Interval(ge=1, le=1 << 24)]
    ways: dict[str, str]


@dataclass(frozen=True)
class Machine:
    """What the last bits of a sum depend on."""

    machine: str
    system: str
    cpus: Annotated[int, Interval(ge=1, le=1 << 16)]
    device: str


@dataclass(frozen=True)
class RateTried:
    """A trial of a learning rate: the loss on the rows that come next, None if not finite."""

    learning_rate: float
    loss: float | None


@dataclass(frozen=True)
class RateSearch:
    """The rate that was chosen, and the trials, of so many steps each, that it was chosen by."""

    learning_rate: float
    steps: int
    curve: tuple[RateTried, ...]


@dataclass(frozen=True)
class Beginning:
    """What a run began with: run.json. model: facts about base, tokenizer and rows, by name."""

    id: str
    directory: str
    settings: dict[str, Any]
    data: dict[str, DataFile]
    model: dict[str, Any]
    base: str
    how: How
    machine: Machine
    versions: dict[str, str]
    learning_rate_search: RateSearch | None = None
    v: Literal[1] = 1


def create(settings: TrainSettings, beginning: Beginning, fill: Callable[[Path], None]) -> Path:
    """A new run directory `<UTC time>-<short hash>`, mode 0700, whole or not at all.

    fill: puts more into it before it is there. Raises StorageError.
    """
    moment = datetime.now(timezone.utc)
    text = to_toml(settings)
    short = hashlib.sha256(f"{moment.isoformat()}{text}".encode()).hexdigest()[:6]
    run = Path(settings.runs) / f"{moment:%Y%m%dT%H%M%SZ}-{short}"
    with staged_directory(run) as stage:
        with storage_errors(run):
            stage.chmod(0o700)
        write_durably(stage / CONFIG, text.encode())
        write_object(stage / BEGINNING, dataclasses.replace(beginning, id=run.name))
        fill(stage)
    return run


def repeating(folder: Path, out: Path) -> str:
    """The settings of a run that is done, as TOML: `train --config` makes the same adapter of them,
    at `out`, wherever it is called. Raises StorageError."""
    s = TrainSettings(**from_toml(folder / CONFIG, TrainSettings))  # type: ignore[arg-type]
    places: dict[str, Any] = {"data": Path(s.data).resolve(), "out": out.resolve()}
    if (local := Path(s.model).expanduser()).is_dir():
        places["model"] = str(local.resolve())
    result = result_of(folder)
    if result and s.steps and result.steps < s.steps and not result.stopped_early:
        # The clock ended it.
        places["stop_at"] = result.steps
    return to_toml(dataclasses.replace(s, **places))


def beginning_of(folder: Path) -> Beginning:
    """What a run began with. Raises StorageError."""
    return read_record(folder / BEGINNING, Beginning, error=StorageError)


def id_of(folder: Path) -> str:
    """The id of a run, whatever its folder is called by now. Raises StorageError."""
    return beginning_of(folder).id


def result_of(folder: Path) -> TrainResult | None:
    """The result of a run that is done. Raises StorageError for a torn file."""
    path = folder / RESULT
    return read_record(path, TrainResult, error=StorageError) if path.exists() else None


@dataclass(frozen=True)
class Note:
    """What the user says of a run: note.json."""

    name: str | None = None
    tags: tuple[str, ...] = ()
    note: str | None = None


def note_of(folder: Path) -> Note:
    """What the user said of a run; nothing where nothing was said. Raises StorageError."""
    path = folder / NOTE
    return read_record(path, Note, error=StorageError) if path.exists() else Note()


def keep_note(folder: Path, note: Note, runs: Path) -> None:
    """Raises UsageError for a name that is another run's, or none; StorageError."""
    if note.name is not None and (not note.name.strip() or note.name == "last"):
        raise UsageError(f"{note.name!r} is no name for a run")
    taken = [f for f in all_in(runs) if note.name and f.name.startswith(note.name)]
    taken += [f for f in all_in(runs) if note.name and note_of(f).name == note.name]
    if any(other.resolve() != folder.resolve() for other in taken):
        raise UsageError(f"{note.name!r} is another run", where=str(taken[0]))
    write_object(folder / NOTE, note)


def resume_line(run: str) -> str:
    """What to type to continue a run."""
    return f"mlx-itune resume {shlex.quote(run)}"


def find(name: str, runs: Path = Path("runs")) -> Path:
    """The folder of a run: `last`, a path, its name, an id or its beginning. Raises UsageError."""
    path = Path(name)
    if (path / CONFIG).is_file():
        return path
    known = all_in(runs)
    if name == "last" and known:
        return known[-1]
    matches = [folder for folder in known if note_of(folder).name == name]
    matches = matches or [folder for folder in known if folder.name.startswith(name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UsageError(f"{len(matches)} runs begin with {name!r}", where=str(runs))
    if path.is_dir():
        raise UsageError(f"is no run (no {CONFIG} in it)", where=name)
    raise UsageError("no such run", where=name, hint=f"mlx-itune runs list --runs {runs}")


def could_be(name: str, runs: Path) -> bool:
    """Whether `find` would find a run, or several."""
    known = all_in(runs)
    return any(name in ("last", note_of(f).name) or f.name.startswith(name) for f in known)


def all_in(runs: Path) -> list[Path]:
    """The run folders in a directory, oldest first."""
    with storage_errors(runs):
        found = [*runs.iterdir()] if runs.is_dir() else []
    return sorted(p for p in found if not p.name.startswith(".") and (p / CONFIG).is_file())


def require_free_name(out: Path, *, run: str | None = None) -> bool:
    """Raise StorageError now, not after hours, where an adapter cannot be written.

    True if there is one that the run of that id wrote: it may be replaced.
    """
    with storage_errors(out):
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if not taken:
        return False
    with suppress(StorageError):
        origin = read_object(out / "provenance.json", error=StorageError)
        if run is not None and origin.get("run") == run:
            return True
    raise StorageError(
        "already exists and is not empty",
        where=str(out),
        hint="choose another --out or remove it first",
    )


@dataclass(frozen=True)
class Incident:
    """A skipped step. rows: all of it as file:line; suspects: those whose own loss is not finite.

    There are no suspects where only the gradient was not. A number that is none is a word.
    """

    step: int
    epoch: int = 0
    loss: float | str | None = None
    gradient_norm: float | str | None = None
    rows: tuple[str, ...] = ()
    suspects: tuple[str, ...] = ()


def provenance(
    settings: TrainSettings,
    loaded: LoadedModel,
    tokenizer: ChatTokenizer,
    sources: tuple[Source, ...],
    metrics: Mapping[str, Any],
    *,
    run: str | None = None,
) -> dict[str, Any]:
    """Where an adapter came from; holds no path of this machine. `run` is the id of its run."""
    tokenizer_file = loaded.path / "tokenizer.json"
    licences: dict[str, str | None] = {}
    # A description that went wrong meanwhile leaves the licences unknown, not the run unfinished.
    with suppress(ItuneError):
        licences = data_licences(settings.data)
    return {
        "v": 1,
        "run": run,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "base": {
            **loaded.papers(),
            # A Hub snapshot's directory is named after its commit.
            "revision": loaded.path.name if loaded.path.parent.name == "snapshots" else None,
            "quantization": loaded.config.get("quantization"),
        },
        "tokenizer": {
            "sha256": sha256_file(tokenizer_file) if tokenizer_file.is_file() else None,
            "template": tokenizer.name,
            "template_sha256": tokenizer.template_sha256,
            "options": tokenizer.options,
            "system": tokenizer.system,
        },
        "data": [
            {"path": Path(s.path).name, "rows": s.rows, "sha256": s.sha256, "licences": licences}
            for s in sources
        ],
        "mask": {"learn": settings.learn, "too_long": settings.too_long},
        "config": public_settings(settings),
        "versions": dict(versions()),
        "metrics": metrics,
    }


def public_settings(settings: TrainSettings) -> dict[str, Any]:
    """The settings that may travel: no path of this machine."""
    told = plain(settings).items()
    return {name: value for name, value in told if name not in _PRIVATE and value is not None}


@functools.cache
def versions() -> Mapping[str, str]:
    """Of what the numbers depend on."""
    found = {"mlx_itune": __version__, "python": platform.python_version()}
    for name in ("mlx", "mlx-lm", "transformers", "numpy"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Nats per unit of weight; None: not known (yet), or not finite."""

    train_loss: float | None = None
    valid_loss: float | None = None
    best_valid_loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class Numbers(Losses):
    """What a run has come to, at its end or at a checkpoint."""

    steps: int
    epochs: float
    examples: int
    supervised_tokens: int
    supervised_tokens_per_second: float
    tokens_per_second: float
    best_step: int | None
    stopped_early: bool
    skipped_steps: int


@dataclass(frozen=True, kw_only=True)
class TrainResult(Numbers):
    """What a run did; the keys of `train --json`. adapter_step: the step whose weights the adapter
    holds, and its validation loss on so many rows; rows_not_used: too long and dropped, or without
    anything to learn."""

    run: str
    adapter: str
    adapter_step: int
    peak_memory_bytes: int
    wall_s: float
    rows_used: int = 0
    rows_not_used: int = 0
    adapter_valid_loss: float | None = None
    adapter_valid_rows: int = 0
    learning_rate_search: RateSearch | None = None


@dataclass
class Clock:
    """What no two runs share."""

    spent_s: float = 0.0
    wall_s: float = 0.0
    peak_memory_bytes: int = 0


@dataclass
class Record:
    """The account of a run, as state.json of a checkpoint keeps it."""

    step: int = 0
    epoch: int = 0
    examples: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    skipped_steps: int = 0
    # (loss, weight) of the last steps that were learned; whether each of the last was skipped.
    recent: list[tuple[float, float]] = field(default_factory=list)
    skips: list[bool] = field(default_factory=list)
    valid_step: int | None = None
    valid_loss: float | None = None
    best_valid_loss: float | None = None
    # The best of the steps that learned: its checkpoint is kept.
    best_step: int | None = None
    best_step_loss: float | None = None
    validations_since_best: int = 0
    stopped_early: bool = False
    clock: Clock = field(default_factory=Clock)

    def learned(self, batch: Batch, metrics: StepMetrics, seconds: float) -> None:
        """Count one step."""
        self.step, self.epoch = batch.step, batch.epoch
        self.examples += len(batch.rows)
        self.tokens += metrics.tokens
        self.supervised_tokens += metrics.supervised_tokens
        self.skipped_steps += metrics.skipped
        self.skips = [*self.skips, metrics.skipped][-WINDOW_STEPS:]
        if not metrics.skipped:
            self.recent = [*self.recent, (metrics.loss, metrics.weight)][-WINDOW_STEPS:]
        self.clock.spent_s += seconds

    def validated(self, loss: float) -> bool:
        """Count a validation after `self.step`; whether this step's weights are the best so far."""
        self.valid_step = self.step
        self.valid_loss = loss if math.isfinite(loss) else None
        below = _is_below(self.valid_loss, self.best_valid_loss)
        self.validations_since_best = 0 if below else self.validations_since_best + 1
        if below:
            self.best_valid_loss = self.valid_loss
        best = bool(self.step) and _is_below(self.valid_loss, self.best_step_loss)
        if best:
            self.best_step, self.best_step_loss = self.step, self.valid_loss
        return best

    @property
    def diverged(self) -> str | None:
        """Why the run has to end; None while it may go on."""
        in_a_row = len([*itertools.takewhile(bool, reversed(self.skips))])
        if in_a_row >= SKIPS_IN_A_ROW:
            return f"in {in_a_row} steps in a row"
        if sum(self.skips) >= SKIPS_IN_WINDOW:
            return f"in {sum(self.skips)} of the last {len(self.skips)} steps"
        return None

    @property
    def unusable(self) -> str | None:
        """Why nothing of a run that is done may be shipped; None where it learned."""
        if self.skipped_steps == self.step:
            return f"nothing was learned: loss or gradient was not finite in all {self.step} steps"
        if not self.supervised_tokens:
            return "nothing was learned: no row has a token to learn"
        if self.valid_step is not None and self.valid_loss is None:
            return f"the validation loss after step {self.valid_step} is not finite"
        return None

    def numbers(self, rows: int) -> Numbers:
        """The numbers so far, of a data set of `rows` examples."""
        spent_s = self.clock.spent_s or 1.0
        kept = ("valid_loss", "best_step", "stopped_early", "skipped_steps")
        return Numbers(
            **{name: getattr(self, name) for name in (*kept, "examples", "supervised_tokens")},
            steps=self.step,
            epochs=round(self.examples / rows, 4),
            best_valid_loss=self.best_valid_loss if self.best_step is None else self.best_step_loss,
            train_loss=train_loss(self.recent),
            supervised_tokens_per_second=self.supervised_tokens / spent_s,
            tokens_per_second=self.tokens / spent_s,
        )


def train_loss(steps: Iterable[tuple[float, float]]) -> float | None:
    """What is told as the train loss of a run, everywhere and at any step: the mean over the last
    WINDOW_STEPS of its (loss, weight) that were learned, by weight; None where none was."""
    learned = [item for item in steps if math.isfinite(item[0])][-WINDOW_STEPS:]
    weight = sum(weight for _, weight in learned)
    return sum(loss * weight for loss, weight in learned) / weight if weight else None


def _is_below(loss: float | None, best: float | None) -> bool:
    return loss is not None and (best is None or loss < best)
