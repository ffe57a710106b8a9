"""Several settings on the same rows, by successive halving: all make a few steps, the better half
goes on from where it stands, until one has made them all (Jamieson and Talwalkar, 1502.07943).

Every run has the schedule that all of its steps would have. It waits between two rounds as a run
that was stopped does, and goes on by `resume`, bit for bit: so does a sweep that was stopped.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mlx_itune.kit.errors import DivergedError, ResourceError, UsageError
from mlx_itune.kit.json_files import canonical, plain, read_record, write_object
from mlx_itune.kit.settings import from_toml
from mlx_itune.kit.wording import did_you_mean
from mlx_itune.model.engine.shapes import read_shapes
from mlx_itune.model.loading.base import resolve, vet
from mlx_itune.training.engine.job import Paused
from mlx_itune.training.engine.loop import train
from mlx_itune.training.run import checkpoint, run
from mlx_itune.training.run.resume import newest, resume
from mlx_itune.training.settings import TrainSettings, settings_from, table, usual_rate

STATE = "sweep.json"
# Of the usual rate, and ranks: what is tried where nothing is said.
RATES, RANKS = (0.25, 0.5, 1.0, 2.0), (8, 16, 32)
MOST_TRIALS = 64
# Of a budget, what is planned for training; the rest loads models and measures them.
_FILLED = 0.75
# What makes losses no longer comparable, or belongs to the sweep as a whole.
_FIXED = frozenset("model out runs time offline stop_at preset".split())

Observe = Callable[[str, int, int], None]
# The score of an adapter on a share of the validation rows; higher is better.
Judge = Callable[[Path, TrainSettings, float], float]


@dataclass(frozen=True)
class Trial:
    """One setting: what it has that others have otherwise, and how far its run has come. score: at
    its last step, the loss or the share of right answers; scores: by step; state: waiting, stopped
    (others were better), finished, diverged, does not fit."""

    settings: dict[str, Any]
    run: str | None = None
    score: float | None = None
    step: int = 0
    steps: int | None = None
    scores: dict[str, float | None] = field(default_factory=dict)
    state: Literal["waiting", "stopped", "finished", "diverged", "does not fit"] = "waiting"
    adapter: str | None = None
    spent_s: float = 0.0


@dataclass(frozen=True)
class Sweep:
    """sweep.json. asked: what the sweep was told; round: of halving, from 0."""

    asked: dict[str, Any]
    trials: tuple[Trial, ...]
    round: int = 0
    spent_s: float = 0.0
    v: Literal[1] = 1


def parsed(over: Sequence[str]) -> dict[str, list[Any]]:
    """KEY=V1,V2 texts as values by setting, in the types that settings have. Raises UsageError."""
    found: dict[str, list[Any]] = {}
    problems = []
    for text in over:
        key, separator, values = text.partition("=")
        name = key.strip().replace("-", "_")
        if not separator or not values:
            problems.append(f"{text!r} is not KEY=VALUE,VALUE")
        elif name not in table() or name in _FIXED:
            meant = did_you_mean(name, [each for each in table() if each not in _FIXED])
            why = "cannot differ in a sweep" if name in table() else "is no setting"
            problems.append(f"{key!r} {why}" + (f" ({meant})" if meant else ""))
        else:
            found[name] = [_value(name, each.strip(), problems) for each in values.split(",")]
    if problems:
        raise UsageError("; ".join(problems), hint="for example --over learning_rate=1e-4,3e-4")
    return found


def _value(name: str, text: str, problems: list[str]) -> Any:
    setting = table()[name]
    try:
        value: Any = text
        if setting.kind is bool:
            value = {"true": True, "on": True, "false": False, "off": False}[text.lower()]
        elif text not in setting.words:
            value = (text,) if setting.kind is tuple else setting.kind(text)
    except (ValueError, KeyError):
        problems.append(f"{name}: {text!r} is no {setting.kind.__name__}")
        return None
    if not setting.admits(value):
        problems.append(f"{name} must be {setting.allowed}, not {text}")
    return value


def usual(settings: TrainSettings) -> dict[str, list[Any]]:
    """Rates around the one asked for, or the usual one; and ranks. Raises ModelError."""
    path = resolve(settings.model)
    middle = settings.learning_rate
    if not isinstance(middle, float):
        middle = usual_rate(settings.adapter, read_shapes(path, vet(path)).hidden)
    rates = [float(f"{middle * share:.2g}") for share in RATES if middle * share < 1]
    return {"learning_rate": rates, "rank": [*RANKS]}


def trials_of(over: Mapping[str, Sequence[Any]], base: Mapping[str, Any]) -> tuple[Trial, ...]:
    """Every combination, each checked with the settings that all have. Raises UsageError."""
    total = math.prod(map(len, over.values()))
    if not 2 <= total <= MOST_TRIALS:
        raise UsageError(f"{total} combinations; a sweep takes 2 to {MOST_TRIALS}")
    chosen = [dict(zip(over, each, strict=True)) for each in itertools.product(*over.values())]
    for each in chosen:
        settings_from({**base, **each})
    return tuple(Trial(plain(each)) for each in chosen)


def rounds_of(trials: int) -> list[tuple[int, float]]:
    """(runs, share of the steps that they have made at its end) of every round."""
    last = math.ceil(math.log2(trials))
    return [(math.ceil(trials / 2**n), 0.5 ** (last - n)) for n in range(last + 1)]


def cost(rounds: Sequence[tuple[int, float]]) -> float:
    """How many whole runs the rounds take."""
    before = [0.0, *(share for _, share in rounds)]
    return sum(n * (share - earlier) for (n, share), earlier in zip(rounds, before, strict=False))


@dataclass
class Halving:
    """A sweep in its folder. base: what all runs have; lower: whether a lower score is better;
    budget_s: for all of it."""

    folder: Path
    base: Mapping[str, Any]
    judge: Judge
    lower: bool
    budget_s: float | None
    observe: Observe

    def begin(self, asked: Mapping[str, Any], trials: Sequence[Trial]) -> None:
        """The sweep of this folder as it stands, or a new one. Raises UsageError where the one that
        is there was told something else; StorageError."""
        self.state = Sweep(plain(asked), tuple(trials))
        if (self.folder / STATE).is_file():
            found = read_record(self.folder / STATE, Sweep, error=UsageError)
            if canonical(found.asked) != canonical(self.state.asked):
                then, now = found.asked, self.state.asked
                names = [n for n in {**then, **now} if then.get(n) != now.get(n)]
                what = f"holds a sweep with another {', '.join(names)}"
                raise UsageError(what, where=str(self.folder), hint="choose another --out")
            self.state = found
        self._keep()

    def run(self) -> Sweep:
        """All rounds that are left. Raises what `train` raises, but for runs that diverge or do not
        fit: these are out."""
        rounds = rounds_of(len(self.state.trials))
        while self.state.round < len(rounds):
            number = self.state.round
            share = rounds[number][1]
            for place in self.ranked()[: self._affordable(rounds)]:
                self._advance(place, share, f"round {number + 1} of {len(rounds)}")
            self.state = replace(self.state, round=number + 1)
            self._keep()
        stopped = (
            replace(t, state="stopped") if t.state == "waiting" else t for t in self.state.trials
        )
        self.state = replace(self.state, trials=tuple(stopped))
        self._keep()
        return self.state

    def ranked(self) -> list[int]:
        """The places of the trials that can go on: of those that came furthest, the best first."""
        trials = self.state.trials
        sign = 1 if self.lower else -1
        measured = self.state.round - 1

        def key(place: int) -> tuple[int, float]:
            # Within a round some have moved on already: what counts is the round before.
            scores = [*trials[place].scores.values()][: measured + 1]
            last = scores[-1] if scores else None
            return -len(scores), math.inf if last is None else sign * last

        going = [n for n, t in enumerate(trials) if t.state in ("waiting", "finished")]
        return sorted(going, key=key)

    def _affordable(self, rounds: Sequence[tuple[int, float]]) -> int:
        """How many runs go into this round: as planned, or as many as the budget still pays for."""
        number = self.state.round
        planned, share = rounds[number]
        per_step = [t.spent_s / t.step for t in self.state.trials if t.step]
        steps = max((t.steps or 0 for t in self.state.trials), default=0)
        if self.budget_s is None or not number or not per_step:
            return planned
        whole_s = steps * sum(per_step) / len(per_step)
        left_s = self.budget_s - self.state.spent_s - (1 - share) * whole_s
        return max(1, min(planned, int(left_s / ((share - rounds[number - 1][1]) * whole_s))))

    def _advance(self, place: int, share: float, label: str) -> None:
        """One run up to this share of its steps, and its score there."""
        trial = self.state.trials[place]
        if len(trial.scores) > self.state.round:
            return
        label = f"{label}, {', '.join(f'{n} {v}' for n, v in trial.settings.items())}"
        began = time.monotonic()
        adapter: Path | None = None
        try:
            adapter = self._trained(place, share, label)
            step = self.state.trials[place].step
            judged = self.judge(adapter, self.settings_of(place), share)
            told: dict[str, Any] = {"score": judged if math.isfinite(judged) else None}
            told["scores"] = {**trial.scores, str(step): told["score"]}
            if share == 1:
                told |= {"state": "finished", "adapter": str(adapter)}
        except DivergedError:
            told = {"state": "diverged", "score": None}
        except ResourceError as error:
            if not self.state.trials[place].step and self.state.trials[place].run is None:
                told = {"state": "does not fit", "score": None}
            else:
                raise error
        seconds = time.monotonic() - began
        self._told(place, **told, spent_s=trial.spent_s + seconds)
        self.state = replace(self.state, spent_s=self.state.spent_s + seconds)
        self._keep()

    def _trained(self, place: int, share: float, label: str) -> Path:
        """Make the steps; where the adapter of the last one is."""
        trial = self.state.trials[place]

        def seen(event: dict[str, Any]) -> None:
            if event["event"] == "start":
                self._told(place, run=event["run"], steps=event["steps"])
                self._keep()
            elif event["event"] == "step":
                self.observe(label, event["step"], event["steps"])

        pause = share if share < 1 else None
        try:
            if trial.run is None:
                result = train(self.settings_of(place), observe=seen, pause=pause)
            else:
                result = resume(Path(trial.run), observe=seen, pause=pause)
        except Paused as waiting:
            folder = Path(str(waiting))
            found, _ = newest(folder / run.CHECKPOINTS, run.id_of(folder))
            if found is None:
                raise
            self._told(place, step=checkpoint.step_of(found.path))
            return found.path
        self._told(place, step=result.steps)
        return Path(result.adapter)

    def settings_of(self, place: int) -> TrainSettings:
        """Of a run. With a budget, the first one says how many steps fit for all."""
        trial = self.state.trials[place]
        values = {**self.base, "out": self.folder / "adapters" / f"{place + 1:02}"}
        first = next((t.run for t in self.state.trials if t.run), None)
        if self.budget_s is not None and trial.run is None:
            if first is None:
                rounds = rounds_of(len(self.state.trials))
                values["time"] = f"{max(1.0, _FILLED * self.budget_s / cost(rounds)):.1f}s"
            else:
                told = from_toml(Path(first) / run.CONFIG, TrainSettings)
                values |= {"steps": told["steps"], "batch_size": told["batch_size"], "epochs": None}
        own = {
            name: tuple(value) if table()[name].kind is tuple else value
            for name, value in trial.settings.items()
        }
        values |= own
        values["data"] = Path(values["data"])
        return settings_from({name: value for name, value in values.items() if value is not None})

    def _told(self, place: int, **fields: Any) -> None:
        trials = [*self.state.trials]
        trials[place] = replace(trials[place], **fields)
        self.state = replace(self.state, trials=tuple(trials))

    def _keep(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_object(self.folder / STATE, self.state)
