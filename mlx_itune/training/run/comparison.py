"""Runs side by side: the settings that differ, curves over each other, losses, answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_itune.kit.json_files import plain
from mlx_itune.kit.page import Html, element, grid, join, page, said, section, table
from mlx_itune.kit.settings import from_toml
from mlx_itune.kit.wording import count, duration, number
from mlx_itune.training.run import run
from mlx_itune.training.run.catalogue import standing
from mlx_itune.training.run.curves import Points, by_step, line_chart, smoothed, thinned
from mlx_itune.training.run.report import without_folders
from mlx_itune.training.run.run import Losses
from mlx_itune.training.run.story import Story, read
from mlx_itune.training.settings import TrainSettings

# Where a run's files are says nothing of it.
_PLACES = frozenset({"out", "runs", "offline"})
_SHOWN, _ANSWERS = 12, 50
# Curves behind the sixth are dashed.
STYLE = "".join(
    f".s{n}{{stroke:var(--c{n - 6});stroke-dasharray:5 3}}.f{n}{{fill:var(--c{n - 6})}}"
    for n in range(7, _SHOWN + 1)
)


@dataclass(frozen=True, kw_only=True)
class Side(Losses):
    """One run: the settings in which it differs, and its validation losses by step."""

    run: str
    name: str | None
    state: str
    settings: dict[str, Any]
    step: int
    wall_s: float | None
    validations: dict[int, float]


@dataclass(frozen=True)
class Compared:
    """Runs. differ: settings that are not the same in all; answers: of the rows that several have
    answered for their reports, what each says (None: nothing), in the order of the runs; notes:
    what makes the losses hard to compare."""

    runs: tuple[Side, ...]
    differ: tuple[str, ...]
    answers: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]


def compared(folders: Sequence[Path]) -> Compared:
    """Raises StorageError where a run's folder cannot be read."""
    settings = [plain(from_toml(folder / run.CONFIG, TrainSettings)) for folder in folders]
    names = dict.fromkeys(name for each in settings for name in each if name not in _PLACES)
    differ = [n for n in names if len({str(each.get(n)) for each in settings}) > 1]
    sides = []
    for folder, each in zip(folders, settings, strict=True):
        told, result = standing(folder), run.result_of(folder)
        sides.append(
            Side(
                **{name: getattr(told, name) for name in ("run", "state", "step", "name")},
                **{name: getattr(told, name) for name in Losses.__dataclass_fields__},
                settings={name: each.get(name) for name in differ},
                wall_s=result.wall_s if result else None,
                validations=_story(folder).validations,
            )
        )
    return Compared(tuple(sides), tuple(differ), _answers(folders), tuple(_notes(folders)))


def best(folders: Sequence[Path], tag: str | None = None) -> Path | None:
    """Of the finished runs, with this tag, the one of the lowest validation loss."""
    found = [
        (told.best_valid_loss, folder)
        for folder in folders
        if (told := standing(folder)).state == "finished"
        and told.best_valid_loss is not None
        and (tag is None or tag in told.tags)
    ]
    return min(found, key=lambda pair: pair[0])[1] if found else None


def _story(folder: Path) -> Story:
    return read(folder) if (folder / run.EVENTS).is_file() else Story()


def _notes(folders: Sequence[Path]) -> list[str]:
    beginnings = [run.beginning_of(folder) for folder in folders]
    valid = {
        b.data["valid"].sha256 if "valid" in b.data else str(plain(b.data)) for b in beginnings
    }
    notes = []
    if len(valid) > 1:
        notes.append("the validation rows are not the same: do not compare the losses")
    if len({b.model.get("base.fingerprint") for b in beginnings}) > 1:
        notes.append("the bases are not the same: where tokens differ, so does what a loss means")
    return notes


def _answers(folders: Sequence[Path]) -> tuple[dict[str, Any], ...]:
    samples = [_story(folder).samples for folder in folders]
    rows = dict.fromkeys(row for each in samples for row in each)
    found = []
    for row in rows:
        events = [each.get(row) for each in samples]
        first = next(event for event in events if event)
        if sum(event is not None for event in events) > 1:
            told = {name: first.get(name) for name in ("row", "prompt", "reference", "before")}
            found.append({**told, "after": [event and event.get("after") for event in events]})
    return tuple(found[:_ANSWERS])


def labels(compared: Compared) -> list[str]:
    """What each run is called here: by its name, or a number."""
    return [side.name or str(n) for n, side in enumerate(compared.runs, 1)]


def told(value: Any) -> str:
    """A setting's value in a table."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "-"
    return "-" if value is None else without_folders(value)


def overlaid(compared: Compared, curves: Mapping[str, Points] | None = None) -> Html:
    """Validation and smoothed train losses of up to twelve runs, each over the others. curves: what
    stands in the place of the runs' own validations."""
    names = labels(compared)[:_SHOWN]
    valid: dict[str, Points] = {}
    train: dict[str, Points] = {}
    for name, side in zip(names, compared.runs, strict=False):
        story = _story(Path(side.run))
        valid[name] = thinned(np.array([*side.validations.items()], np.float64).reshape(-1, 2))
        train[name] = thinned(smoothed(by_step(story, "loss"), story.tokens()))
    unit = "nats per learned token"
    return grid(
        line_chart(curves or valid, title="Validation", y_label="score" if curves else unit),
        line_chart(train, title="Train loss, smoothed", y_label=unit),
        kind="charts",
    )


def page_of(compared: Compared) -> str:
    """The page of `runs compare --html`. Paths are cut to their last part."""
    names = labels(compared)
    columns = ["", "run", *(n.replace("_", "-") for n in compared.differ)]
    settings = (
        [name, Path(s.run).name, *(told(s.settings[n]) for n in compared.differ)]
        for name, s in zip(names, compared.runs, strict=True)
    )
    numbers = (
        [
            name,
            s.state,
            f"{s.step:,}",
            *map(number, (s.train_loss, s.valid_loss, s.best_valid_loss)),
            duration(s.wall_s) if s.wall_s else "-",
        ]
        for name, s in zip(names, compared.runs, strict=True)
    )
    heads = ["", "state", "step", "train loss", "valid loss", "best", "time"]
    parts = [element("p", {"class": "verdict"}, note) for note in compared.notes]
    words = {*range(1, len(columns))}
    parts.append(section("Settings that differ", table(columns, settings, words=words)))
    parts.append(section("Losses", table(heads, numbers, words={1})))
    parts.append(section("Curves", overlaid(compared)))
    answers = [_answer(each, names) for each in compared.answers]
    if answers:
        parts.append(section("Answers", *answers))
    title = f"{count(len(compared.runs), 'run')} side by side"
    return page(title, join(parts), style=STYLE)


def _answer(each: Mapping[str, Any], names: Sequence[str]) -> Html:
    answers = [("base", each["before"]), *zip(names, each["after"], strict=True)]
    shown = [*answers, ("reference", each["reference"])]
    parts = (said(name, str(text).strip() or "(nothing)") for name, text in shown if text)
    heading = element("h3", None, without_folders(each["row"]))
    asked = element("div", None, said("prompt", str(each["prompt"])))
    return element(
        "article", {"class": "sample"}, heading, grid(asked, element("div", None, *parts))
    )
