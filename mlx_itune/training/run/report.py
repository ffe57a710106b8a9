"""report.html: a run on one self-contained page, made from its folder alone.

The page may be shown to anybody: paths of this machine are cut to their last part, and what rows
say appears only in the answers that `--samples` asked for.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from mlx_itune.kit.errors import ItuneError, StorageError
from mlx_itune.kit.files import write_durably
from mlx_itune.kit.json_files import read_object
from mlx_itune.kit.lock import holder
from mlx_itune.kit.page import Html, cards, element, grid, join, page, said, section, table
from mlx_itune.kit.settings import from_toml
from mlx_itune.kit.wording import count, duration, listing, size
from mlx_itune.training.run import curves
from mlx_itune.training.run.catalogue import size_of
from mlx_itune.training.run.run import LOCK, WINDOW_STEPS
from mlx_itune.training.run.story import Session, Story, read
from mlx_itune.training.run.verdict import verdict
from mlx_itune.training.settings import TrainSettings

NAME = "report.html"
_SHOWN, _SAMPLES, _LISTED = 50, 500, 20
_REFRESH_S = 10
# What a start event says that other sections tell already.
_TOLD = {"run", "report", "steps", "examples", "valid_examples", "sources", "base"}
_WORDS = {
    "rows": "rows to train on",
    "examples": "examples made of them",
    "supervised_tokens": "learned tokens",
    "turns": "assistant turns",
    "split": "cut between exchanges",
    "dropped": "dropped, wholly or in part",
    "control_text": "text that spells a control token",
    "tokens_kept": "tokens kept from an earlier run",
    "max_length_tokens": "longest row in tokens",
    "layers": "adapted layers",
    "compute": "quantized layers are computed",
}
_HASH = re.compile("[0-9a-f]{40,}")
_LOCAL = re.compile(r"(/|~|\.\.?[/\\]|[A-Za-z]:[/\\]|\\\\)")


def write(run: Path, *, is_over: bool = False) -> Path:
    """Make `runs/<id>/report.html` anew and return its path. Raises StorageError."""
    path = Path(run) / NAME
    write_durably(path, made(Path(run), is_over).encode("utf-8", errors="backslashreplace"))
    return path


def made(run: Path, is_over: bool = False) -> str:
    """The page of a run, finished or not; while it is trained, unless this `is_over`, a browser
    reads it again every few seconds. Raises StorageError where events.jsonl is not there."""
    story = read(run)
    is_live = not (is_over or story.ending) and holder(run / LOCK) is not None
    origin = {**_object(run / "run.json"), **_newest(run, "provenance.json")}
    settings = _settings(run)
    parts = [
        element("p", {"class": "verdict"}, verdict(story)),
        cards(list(_headline(story))),
        *_samples(story),
        section("Curves", curves.curves(story), note=_curve_note(story)),
        *_rates(origin.get("learning_rate_search")),
        *_data(story, origin),
        *_model(story, origin, _adapter(run, settings)),
        *_checkpoints(story, run),
        *_incidents(story),
        *_sessions(story),
        *_configuration(settings),
    ]
    base = origin.get("base") or story.start.get("base")
    base = base.get("id") if isinstance(base, Mapping) else base
    model = without_folders(str(base or settings.get("model") or "a model"))
    rank = f", rank {settings['rank']}," if "rank" in settings else ""
    began = story.sessions[0].began if story.sessions else ""
    return page(
        f"Training run {run.resolve().name}",
        join(parts),
        subtitle=f"{settings.get('adapter', 'adapter')}{rank} on {model}; "
        f"started {_when(began)}, {_state(story)}",
        style=curves.STYLE,
        refresh_s=_REFRESH_S if is_live else None,
    )


def _state(story: Story) -> str:
    after = f" after step {story.steps[-1]:,}" if story.steps else ""
    if story.ending == "end":
        early = story.end.get("stopped_early") is True
        return "finished early, as validation got no better" if early else "finished"
    endings = {"stopped": f"stopped{after}", "failed": f"ended by an error{after}"}
    return endings.get(story.ending, "not finished: still running, or interrupted")


def _headline(story: Story) -> Iterator[tuple[str, str]]:
    end = {n: v for n, v in story.end.items() if type(v) in (int, float) and abs(v) < 1e300}
    losses = [loss for loss in story.validations.values() if loss == loss]
    if losses:
        first, last = f"{losses[0]:.4g}", f"{losses[-1]:.4g}"
        yield "validation loss", f"{first} → {last}" if len(losses) > 1 else first
    if story.best and len(losses) > 1:
        yield f"best, at step {story.best[0]:,}", f"{story.best[1]:.4g}"
    if (loss := end.get("train_loss", story.train_loss)) is not None:
        yield f"train loss, mean of the last {WINDOW_STEPS} steps", f"{loss:.4g}"
    done = story.steps[-1] if story.steps else 0
    planned = story.planned_steps
    yield "steps", f"{done:,}" + (f" of {planned:,}" if planned not in (None, done) else "")
    if (kept := end.get("adapter_step", done)) != done:
        yield "the adapter is of step", f"{kept:,.0f}"
    if (loss := end.get("adapter_valid_loss")) is not None:
        rows = end.get("adapter_valid_rows", 0)
        yield f"the adapter's loss on {count(rows, 'validation row')}", f"{loss:.4g}"
    for key, name in (("rows_used", "rows used"), ("rows_not_used", "rows not used")):
        if isinstance(rows := story.start.get(key), int) and (rows or key == "rows_used"):
            yield name, f"{rows:,}"
    if "epochs" in end:
        yield "epochs", f"{end['epochs']:.3g}"
    yield "learned tokens", f"{int(story.tokens().sum()):,}"
    if "supervised_tokens_per_second" in end:
        yield "learned tokens per second", f"{end['supervised_tokens_per_second']:,.0f}"
    peak = story.curve("peak_memory_bytes")
    if np.isfinite(peak).any():
        yield "peak memory", size(float(np.nanmax(peak)))
    yield "time", duration(sum(map(_seconds, story.sessions)))
    if story.skipped:
        yield "skipped steps", f"{story.skipped:,}"


def _curve_note(story: Story) -> str:
    steps = len(story.steps)
    if not steps:
        return "No step was made."
    note = "Losses are per learned token, in nats; the smoothed one weighs a step by its tokens."
    if steps > 600:
        note += f" {steps:,} steps are drawn by the lowest and highest of each stretch."
    return note


def _rates(search: Any) -> Iterator[Html]:
    """The trials of `--learning-rate auto`."""
    curve = search.get("curve") if isinstance(search, Mapping) else None
    rows = [
        [_told(one.get("learning_rate")), _told(one.get("loss")) or "not finite"]
        for one in (curve if isinstance(curve, list) else ())
        if isinstance(one, Mapping)
    ]
    if rows:
        note = f"After {_told(search.get('steps'))} steps each, on the rows that come next."
        columns = ["learning rate", "loss"]
        yield section("Learning rates that were tried", table(columns, rows), note=note)


def _samples(story: Story) -> Iterator[Html]:
    told = []
    for number, event in enumerate(list(story.samples.values())[-_SAMPLES:], 1):
        task = event.get("task")
        about = f", {task}" if isinstance(task, str) and task else ""
        answers = join(_said(name, event) for name in ("before", "after", "reference"))
        parts = element("div", None, _said("prompt", event)), element("div", None, answers)
        heading = element("h3", None, f"{number}. {without_folders(event.get('row'))}{about}")
        told.append(element("article", {"class": "sample"}, heading, grid(*parts)))
    note = (
        "Held-out rows, answered by the model as it came and as it was tuned, without sampling. "
        "A tick marks an answer that is the reference, word for word."
    )
    if told:
        yield section("Before and after", *told, note=note)


def _said(name: str, event: Mapping[str, Any]) -> Html:
    text, reference = event.get(name), event.get("reference")
    if not isinstance(text, str):
        return Html("")
    right = isinstance(reference, str) and text.split() == reference.split()
    tick = " ✓" if right and name in ("before", "after") else ""
    return said(name + tick, text.strip() or "(nothing)", name)


def _data(story: Story, origin: Mapping[str, Any]) -> Iterator[Html]:
    """Rows, tokens, what was cut, and the files they came from."""
    report = story.start.get("report")
    report = dict(report) if isinstance(report, Mapping) else {}
    report["validation examples"] = story.start.get("valid_examples")
    counted = {name: value for name, value in report.items() if not isinstance(value, list)}
    lists = ((n, v) for n, v in report.items() if isinstance(v, list) and v)
    cut = [[_name(name), f"{len(listed):,}", _told(listed)] for name, listed in lists]
    sources = story.start.get("sources") or origin.get("data")
    sources = list(sources.values()) if isinstance(sources, Mapping) else sources
    files = [
        [
            without_folders(s.get("path") or s.get("file")),
            _told(s.get("rows")),
            _told(s.get("sha256")),
        ]
        for s in (sources if isinstance(sources, list) else ())
        if isinstance(s, Mapping)
    ]
    parts = _facts("all of it", counted)
    parts += [table(["file", "rows", "SHA-256"], files, words={2})] if files else []
    more = [table(["rows with", "", "which"], cut, words={2})] if cut else []
    if parts or more:
        yield section("Data", grid(*parts), *more)


def _model(story: Story, origin: Mapping[str, Any], adapter: Mapping[str, Any]) -> Iterator[Html]:
    """Base model, tokenizer, adapter, and the ways that the engine chose."""
    base = story.start.get("base") or origin.get("base")
    found = [
        *_facts("base model", {"id": base} if isinstance(base, str) else base),
        *_facts("adapter", adapter),
        *_facts("how it was computed", {k: v for k, v in story.start.items() if k not in _TOLD}),
        *_facts("text", {"tokenizer": origin.get("tokenizer"), "learned": origin.get("mask")}),
        *_facts("versions", origin.get("versions")),
    ]
    if found:
        yield section("Model, adapter and engine", grid(*found))


def _checkpoints(story: Story, run: Path) -> Iterator[Html]:
    rows = []
    for event in story.checkpoints[-_SHOWN:]:
        name, step = without_folders(event.get("path")), event.get("step")
        loss = story.validations.get(step) if isinstance(step, int) else None
        kept = ("removed", "")
        with contextlib.suppress(OSError, ValueError):
            if (run / "checkpoints" / name / "manifest.json").is_file():
                kept = ("kept", size(size_of(run / "checkpoints" / name)))
        rows.append([name, *kept, f"{loss:.4g}" if loss is not None else ""])
    sealed = len(story.checkpoints)
    note = f"{sealed:,} were sealed; old ones make room for new ones." if sealed > 1 else ""
    columns = ["checkpoint", "", "size", "validation loss"]
    if rows:
        yield section("Checkpoints", table(columns, rows, words={1}), note=note)


def _incidents(story: Story) -> Iterator[Html]:
    rows = []
    for event in story.incidents[-_SHOWN:]:
        rest = {k: v for k, v in event.items() if k not in ("v", "time", "event", "step")}
        what = ", ".join(f"{name}: {_told(value, most=8)}" for name, value in rest.items())
        rows.append([f"step {event.get('step')}", what])
    total = len(story.incidents)
    note = f"The last {len(rows)} of {total:,}." if total > len(rows) else ""
    if rows:
        yield section("Incidents", table(["", "what happened"], rows, words={1}), note=note)


def _sessions(story: Story) -> Iterator[Html]:
    rows = []
    for session in story.sessions[-_SHOWN:]:
        first, last = session.first_step, session.last_step
        steps = "" if first is None else f"{first:,} to {last:,}"
        rows.append([_when(session.began), steps, duration(_seconds(session)), session.ending])
    if len(rows) > 1:
        made_of = table(["started", "steps", "time", "ended"], rows, words={3})
        note = "A step that was made twice counts once, as it was made last."
        yield section("Resumed", made_of, note=note)


def _configuration(settings: Mapping[str, str]) -> Iterator[Html]:
    rows = [[name.replace("_", "-"), value] for name, value in settings.items()]
    half = -(-len(rows) // 2)
    columns = [part for part in (rows[:half], rows[half:]) if part]
    if columns:
        side_by_side = grid(*(table(["setting", "value"], part, words={1}) for part in columns))
        note = "The settings in effect, as config.toml holds them; local paths by their last part."
        yield section("Configuration", side_by_side, note=note)


def _settings(run: Path) -> dict[str, str]:
    """The settings in effect as words; none where config.toml is not as it was written."""
    with contextlib.suppress(ItuneError):
        values = from_toml(run / "config.toml", TrainSettings)
        return {name: _told(value) for name, value in values.items()}
    return {}


def _adapter(run: Path, settings: Mapping[str, str]) -> dict[str, Any]:
    kind = {"kind": settings["adapter"]} if "adapter" in settings else {}
    stored = _newest(run, "adapter_config.json")
    inner = stored.pop("lora_parameters", None)
    # Our own words in it say again what the settings say.
    stored.pop("mlx_itune", None)
    return kind | (inner if isinstance(inner, dict) else {}) | stored


def _newest(run: Path, name: str) -> dict[str, Any]:
    """A JSON object of the newest checkpoint that has it; empty where there is none."""
    files = sorted(run.glob(f"checkpoints/step-*/{name}"), reverse=True)
    return next((value for file in files if (value := _object(file))), {})


def _object(file: Path) -> dict[str, Any]:
    with contextlib.suppress(StorageError):
        return read_object(file, error=StorageError)
    return {}


def _facts(heading: str, facts: Any) -> list[Html]:
    """The names and values in a mapping, nested ones too, as one table; none for nothing."""
    rows = [[name, value] for name, value in _flat(facts) if value]
    return [table([heading, ""], rows, words={1})] if rows else []


def _flat(facts: Any, before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in facts.items() if isinstance(facts, Mapping) else ():
        name = before + _name(str(key))
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}, ") if before.count(",") < 3 else ()
        else:
            yield name, _told(value)


def _name(key: str) -> str:
    return _WORDS.get(key, key.replace("_", " "))


def _told(value: Any, most: int = _LISTED) -> str:
    if value is None or isinstance(value, bool):
        return {None: "", True: "yes", False: "no"}[value]
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 1 << 60 else "a very large number"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Iterable) and not isinstance(value, (str, Mapping)):
        return listing((without_folders(item)[:120] for item in value), most)
    text = without_folders(value)
    return f"{text[:16]}…" if _HASH.fullmatch(text) else text[:400]


def without_folders(value: Any) -> str:
    """The last part of an absolute path, or of one through `..` or `~`; other text as it is."""
    text = "?" if value is None else str(value)
    return re.split(r"[/\\]", text.rstrip("/\\"))[-1] if _LOCAL.match(text) else text


def _seconds(session: Session) -> float:
    with contextlib.suppress(ValueError, TypeError):
        began = datetime.fromisoformat(session.began)
        return max(0.0, (datetime.fromisoformat(session.last) - began).total_seconds())
    return 0.0


def _when(time: str) -> str:
    with contextlib.suppress(ValueError):
        return f"{datetime.fromisoformat(time):%Y-%m-%d %H:%M} UTC"
    return "at an unknown time"
