"""`sweep`: several settings on the same rows, the hopeless ones stopped early."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_itune.api.rows import Observe, PathLike
from mlx_itune.dataset.batching import epoch_order
from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.rendering.prepare import prepare
from mlx_itune.dataset.sources import load_splits
from mlx_itune.inference.evaluate import answer_questions, scored
from mlx_itune.inference.opening import Opening, open_model
from mlx_itune.inference.row_losses import Losses, interval, mean_of, row_losses
from mlx_itune.kit.errors import DivergedError, ItuneError, UsageError
from mlx_itune.kit.files import write_durably
from mlx_itune.kit.json_files import plain
from mlx_itune.kit.page import cards, element, join, page, section, table
from mlx_itune.kit.settings import values_of
from mlx_itune.kit.wording import count, duration, known, number, seconds_of
from mlx_itune.training import sweeping
from mlx_itune.training.run.comparison import STYLE, compared, labels, overlaid, told
from mlx_itune.training.settings import FEW_STEPS, TrainSettings, settings_from
from mlx_itune.training.sweeping import Halving, Trial

PAGE = "sweep.html"
BY = ("loss", "score")
# Validation rows: at most so many at the end, and so few in the first round.
_MOST_ROWS, _FEWEST_ROWS = 500, 32


@dataclass(frozen=True)
class Best(Trial):
    """The run that won. low, high: the 95 % interval of its score over the validation rows."""

    low: float | None = None
    high: float | None = None
    rows: int = 0


@dataclass(frozen=True)
class Swept:
    """The runs, the best first, and the best one; the keys of `sweep --json`. by: what a score is,
    loss (lower is better) or score (the share of right answers)."""

    by: str
    runs: tuple[Trial, ...]
    best: Best
    out: str
    page: str
    wall_s: float
    notes: tuple[str, ...] = ()


@dataclass
class _Measure:
    """Adapters on the validation rows of the sweep, whatever rows a run was trained on."""

    rows: Sequence[Conversation]
    by: str

    def __call__(self, adapter: Path, settings: TrainSettings, share: float) -> float:
        many = max(_FEWEST_ROWS, round(share * len(self.rows)))
        return mean_of(self.values(adapter, settings, many))

    def values(self, adapter: Path, settings: TrainSettings, many: int) -> Losses:
        """(N, 2) values and weights of the first rows."""
        opening = Opening(settings.model, adapter, settings.template, settings.compute)
        loaded, tokenizer = open_model(opening)
        rows = self.rows[:many]
        if self.by == "score":
            right, _ = scored(answer_questions(loaded, tokenizer, rows))
            return np.array([[each.is_right, 1.0] for each in right]).reshape(-1, 2)
        return row_losses(loaded, prepare(rows, tokenizer).examples)


def sweep(
    model: str,
    data: PathLike,
    *,
    over: Mapping[str, Sequence[Any]] | Sequence[str] = (),
    by: str = "loss",
    budget: str | None = None,
    out: PathLike = "sweep",
    observe: Observe = lambda stage, done, total: None,
    **settings: Any,
) -> Swept:
    """Train every combination of `over` a little, the better half of them twice as far, and so on,
    until one is through; where nothing is said, rates around the usual one and ranks. over:
    {"learning_rate": [1e-4, 3e-4]}, or texts such as "rank=8,32"; by: "loss" or "score" (answers
    that are right) on the validation rows of `data`; budget: a time, such as "30m", for all of it.
    out: a new folder; one of the same sweep goes on. settings: those of `train`. Raises what
    `train` raises."""
    folder = Path(out)
    known("by", by, BY)
    budget_s = None if budget is None else seconds_of(budget)
    if budget_s is not None and not budget_s:
        raise UsageError("budget must be above 0")
    given = values_of({**settings, "model": model, "data": data}, TrainSettings)
    if wrong := {"time", "stop_at"} & given.keys():
        raise UsageError(f"{', '.join(sorted(wrong))} has no effect in a sweep", hint="budget has")
    given.setdefault("runs", folder / "runs")
    first = settings_from({**given, "out": folder / "adapter"})
    rows = load_splits(first.data, seed=first.seed, how=first.reading).valid
    if not rows:
        raise UsageError("there is no validation row to compare with", where=str(data))
    order = epoch_order(len(rows), first.seed, 0)[:_MOST_ROWS].tolist()
    if isinstance(over, Mapping):
        over = [f"{name}={','.join(map(str, values))}" for name, values in over.items()]
    lists = sweeping.parsed(over) or sweeping.usual(first)
    asked = {**plain(given), "over": plain(lists), "by": by, "budget": budget}
    measure = _Measure([rows[place] for place in order], by)
    halving = Halving(folder, given, measure, by == "loss", budget_s, observe)
    halving.begin(asked, sweeping.trials_of(lists, {**given, "out": folder / "adapter"}))
    state = halving.run()
    return _swept(halving, state.trials, measure, state.spent_s)


def _swept(halving: Halving, trials: Sequence[Trial], measure: _Measure, spent_s: float) -> Swept:
    done = [trials[place] for place in halving.ranked() if trials[place].state == "finished"]
    out = [t for t in trials if t.state in ("diverged", "does not fit")]
    if not done:
        what = f"no run came to its end: {count(len(out), 'run')} diverged or did not fit"
        raise DivergedError(what, where=str(halving.folder), hint="lower rates or ranks")
    sign = 1 if halving.lower else -1
    others = sorted(
        (t for t in trials if t not in done and t not in out),
        key=lambda t: (-len(t.scores), sign * (t.score if t.score is not None else float("inf"))),
    )
    winner = done[0]
    settings = halving.settings_of(trials.index(winner))
    values = measure.values(Path(str(winner.adapter)), settings, len(measure.rows))
    low, high = interval(values)
    best = Best(**vars(winner), low=low, high=high, rows=len(values))
    page = halving.folder / PAGE
    made = Swept(
        *(measure.by, (*done, *others, *out), best, str(halving.folder), str(page), spent_s),
        notes=tuple(_notes(best, halving)),
    )
    # The runs are made: nothing about a page may fail the command.
    with contextlib.suppress(ItuneError, OSError):
        write_durably(page, page_of(made).encode("utf-8", errors="backslashreplace"))
    return made


def _notes(best: Best, halving: Halving) -> list[str]:
    """Where the best is at an end of what was tried, the next may be better still."""
    notes = []
    tried = [trial.settings for trial in halving.state.trials]
    for name, value in best.settings.items():
        values = sorted({each[name] for each in tried if type(each[name]) in (int, float)})
        if len(values) > 2 and value in (values[0], values[-1]):
            way = "low" if value == values[0] else "high"
            notes.append(f"{name} {told(value)} is the {way}est that was tried: try {way}er ones")
    if best.steps is not None and best.steps < FEW_STEPS:
        notes.append(f"only {count(best.steps, 'step')}: more tell settings apart better")
    return notes


def rows_of_table(swept: Swept) -> list[list[str]]:
    """Number, settings, state, step and score of every run, the best first."""
    return [
        [str(n), *map(told, run.settings.values()), run.state, f"{run.step:,}", number(run.score)]
        for n, run in enumerate(swept.runs, 1)
    ]


def verdict(swept: Swept) -> str:
    """The best run in a sentence."""
    best = swept.best
    chosen = ", ".join(f"{n.replace('_', '-')} {told(v)}" for n, v in best.settings.items())
    what = "validation loss" if swept.by == "loss" else "right answers"
    inside = f"95 % interval {number(best.low)} to {number(best.high)}"
    rows = count(best.rows, "validation row")
    return f"{chosen}: {what} {number(best.score)} on {rows}, {inside}"


def page_of(swept: Swept) -> str:
    """sweep.html: the verdict, a table, and the curves of the best runs over each other."""
    began = [run for run in swept.runs if run.run]
    sides = compared([Path(str(run.run)) for run in began[:12]])
    points = {
        name: [(int(step), score) for step, score in run.scores.items() if score is not None]
        for name, run in zip(labels(sides), began, strict=False)
    }
    columns = ["", *(name.replace("_", "-") for name in swept.best.settings), "", "step", swept.by]
    saved = [("runs", f"{len(swept.runs)}"), ("time", duration(swept.wall_s))]
    rounds = "Each round goes on with the better half; a score is of the run's last step."
    parts = [
        element("p", {"class": "verdict"}, verdict(swept)),
        *(element("p", None, note) for note in swept.notes),
        cards([*saved, ("best", number(swept.best.score))]),
        section("Curves", overlaid(sides, points), note="Numbered as in the table."),
        section("Runs", table(columns, rows_of_table(swept)), note=rounds),
    ]
    return page("Sweep", join(parts), style=STYLE)
