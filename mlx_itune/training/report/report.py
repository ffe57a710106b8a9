"""report.html: a run on one self-contained page, made from its folder alone.

The page may be shown to anybody: paths of this machine are cut to their last part, and what rows
say appears only in the answers that `--samples` asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from mlx_itune.kit.axes import compact
from mlx_itune.kit.files import write_durably
from mlx_itune.kit.page import Html, cards, element, folded, grid, join, page, section, table
from mlx_itune.training.report import curves as report_curves
from mlx_itune.training.report.facts import (
    config_table,
    data_facts,
    model_facts,
    settings_of,
    without_folders,
)
from mlx_itune.training.report.story import Session, Story, read

NAME = "report.html"
_SHOWN = 50


def write(run: Path) -> Path:
    """Make `runs/<id>/report.html` anew and return its path. Raises StorageError."""
    run = Path(run)
    path = run / NAME
    write_durably(path, made(run).encode("utf-8", errors="backslashreplace"))
    return path


def made(run: Path) -> str:
    """The page of a run, finished or not. Raises StorageError where events.jsonl is not there."""
    story = read(run)
    run = Path(run)
    origin = {**_object(run / "run.json"), **_newest(run, "provenance.json")}
    settings = _settings(run)
    parts = [
        cards(_headline(story)),
        section("Curves", report_curves.curves(story), note=_curve_note(story)),
        _validations(story),
        _samples(story),
        data_facts(story, origin),
        model_facts(story, origin, _adapter(run, settings)),
        _checkpoints(story, run),
        _incidents(story),
        _sessions(story),
        _config(settings),
    ]
    return page(
        f"Training run {run.resolve().name}",
        join(parts),
        subtitle=_subtitle(story, settings, origin),
        style=report_curves.STYLE + _STYLE,
    )


def _subtitle(story: Story, settings: Mapping[str, str], origin: Mapping[str, Any]) -> str:
    base = origin.get("base") or story.start.get("base")
    base = base.get("id") if isinstance(base, Mapping) else base
    model = without_folders(str(base or settings.get("model") or "a model"))
    kind = settings.get("adapter", "adapter")
    rank = f", rank {settings['rank']}," if "rank" in settings else ""
    began = story.sessions[0].began if story.sessions else ""
    return f"{kind}{rank} on {model}; started {_when(began)}, {_state(story)}"


def _state(story: Story) -> str:
    if story.stopped:
        return f"stopped after step {story.steps[-1]:,}" if story.steps else "stopped"
    if story.failed:
        return f"ended by an error after step {story.steps[-1]:,}" if story.steps else "failed"
    if story.end:
        early = story.end.get("stopped_early") is True
        return "finished early, as validation got no better" if early else "finished"
    return "not finished: still running, or interrupted"


def _headline(story: Story) -> list[tuple[str, str]]:
    end = story.end
    best, losses = story.best_valid(), [x for x in story.valid_losses if x == x]
    facts = []
    if losses:
        change = f"{losses[0]:.4g} → {losses[-1]:.4g}" if len(losses) > 1 else f"{losses[0]:.4g}"
        facts.append(("validation loss", change))
    if best and len(losses) > 1:
        facts.append((f"best, at step {best[0]:,}", f"{best[1]:.4g}"))
    train_loss = _finite(end.get("train_loss"))
    if train_loss is None:
        mean = report_curves.smoothed(report_curves.by_step(story, "loss"), story.weights())
        train_loss = float(mean[-1, 1]) if len(mean) else None
    if train_loss is not None:
        facts.append(("training loss at the end", f"{train_loss:.4g}"))
    done = story.steps[-1] if story.steps else 0
    of = f" of {story.planned_steps:,}" if story.planned_steps not in (None, done) else ""
    facts.append(("steps", f"{done:,}{of}"))
    if (kept := _finite(end.get("adapter_step"))) not in (None, done):
        facts.append(("the adapter is of step", f"{kept:,.0f}"))
    if (epochs := _finite(end.get("epochs"))) is not None:
        facts.append(("epochs", f"{epochs:.3g}"))
    facts.append(("learned tokens", f"{story.total('supervised_tokens'):,}"))
    speed = _finite(end.get("supervised_tokens_per_second"))
    if speed is not None:
        facts.append(("learned tokens per second", f"{speed:,.0f}"))
    peak = story.curve("peak_memory_bytes")
    if np.isfinite(peak).any():
        facts.append(("peak memory", _size(float(np.nanmax(peak)))))
    facts.append(("time", _duration(sum(map(_seconds, story.sessions)))))
    if skipped := story.total("skipped"):
        facts.append(("skipped steps", f"{skipped:,}"))
    return facts


def _curve_note(story: Story) -> str:
    count = len(story.steps)
    if not count:
        return "No step was made."
    note = "Losses are per learned token, in nats; the smoothed one weighs a step by its tokens."
    if count > 600:
        note += f" {count:,} steps are drawn by the lowest and highest of each stretch."
    return note


def _validations(story: Story) -> Html:
    if not len(story.valid_steps):
        return Html("")
    found = list(zip(story.valid_steps, story.valid_losses, strict=True))
    shown = found if len(found) <= _SHOWN else [found[0], *found[1 - _SHOWN :]]
    best = story.best_valid()
    rows = [
        [f"step {step:,}", f"{loss:.5g}" if loss == loss else "not finite", _mark(step, best)]
        for step, loss in shown
    ]
    count = "" if len(found) == len(shown) else f", {len(shown)} of {len(found):,} shown"
    return folded(f"Validation losses{count}", table(["", "loss", ""], rows, words={2}))


def _mark(step: int, best: tuple[int, float] | None) -> str:
    return "lowest" if best and step == best[0] else ""


def _samples(story: Story) -> Html:
    if not story.samples:
        return Html("")
    told = []
    for number, event in enumerate(story.samples, 1):
        task = event.get("task")
        about = f", {task}" if isinstance(task, str) and task else ""
        answers = join(_said(name, event) for name in ("before", "after", "reference"))
        parts = element("div", None, _said("prompt", event)), element("div", None, answers)
        heading = element("h3", None, f"{number}. {_last_part(event.get('row'))}{about}")
        told.append(element("article", {"class": "sample"}, heading, grid(*parts)))
    note = (
        "Held-out rows, answered by the model as it came and as it was tuned, without sampling. "
        "A tick marks an answer that is the reference, word for word."
    )
    return section("Before and after", *told, note=note)


def _said(name: str, event: Mapping[str, Any]) -> Html:
    text, reference = event.get(name), event.get("reference")
    if not isinstance(text, str):
        return Html("")
    right = isinstance(reference, str) and text.split() == reference.split()
    tick = " ✓" if right and name in ("before", "after") else ""
    label = element("span", {"class": "label"}, name + tick)
    said = element("pre", None, text.strip() or "(nothing)")
    return element("div", {"class": f"said {name}"}, label, said)


def _checkpoints(story: Story, run: Path) -> Html:
    if not story.checkpoints:
        return Html("")
    losses = dict(zip(story.valid_steps, story.valid_losses, strict=True))
    rows = []
    for event in list(story.checkpoints)[-_SHOWN:]:
        name = _last_part(event.get("path"))
        loss = losses.get(event.get("step"))  # type: ignore[arg-type]
        kept, size = _kept(run, name)
        rows.append([name, kept, size, f"{loss:.4g}" if loss is not None else ""])
    count = story.counts.get("checkpoint", 0)
    note = f"{count:,} were sealed; old ones make room for new ones." if count > 1 else ""
    columns = ["checkpoint", "", "size", "validation loss"]
    return section("Checkpoints", table(columns, rows, words={1}), note=note)


def _kept(run: Path, name: str) -> tuple[str, str]:
    folder = run / "checkpoints" / name
    try:
        if not (folder / "manifest.json").is_file():
            return "removed", ""
        size = sum(file.stat().st_size for file in folder.iterdir())
    except (OSError, ValueError):
        return "removed", ""
    return "kept", _size(size)


def _incidents(story: Story) -> Html:
    if not story.incidents:
        return Html("")
    rows = []
    for event in list(story.incidents)[-_SHOWN:]:
        rest = {k: v for k, v in event.items() if k not in ("v", "time", "event", "step")}
        step = event.get("step")
        rows.append([f"step {step}", ", ".join(f"{k}: {_short(v)}" for k, v in rest.items())])
    total = story.counts.get("incident", 0)
    note = f"The last {len(rows)} of {total:,}." if total > len(rows) else ""
    return section("Incidents", table(["", "what happened"], rows, words={1}), note=note)


def _sessions(story: Story) -> Html:
    if len(story.sessions) < 2:
        return Html("")
    rows = [
        [
            _when(s.began),
            "" if s.first_step is None else f"{s.first_step:,} to {s.last_step:,}",
            _duration(_seconds(s)),
            s.ending,
        ]
        for s in list(story.sessions)[-_SHOWN:]
    ]
    return section(
        "Resumed",
        table(["started", "steps", "time", "ended"], rows, words={3}),
        note="A step that was made twice counts once, as it was made last.",
    )


def _settings(run: Path) -> dict[str, str]:
    try:
        return settings_of((run / "config.toml").read_text("utf-8", errors="replace"))
    except OSError:
        return {}


def _adapter(run: Path, settings: Mapping[str, str]) -> dict[str, Any]:
    kind = {"kind": settings["adapter"]} if "adapter" in settings else {}
    stored = _newest(run, "adapter_config.json")
    inner = stored.pop("lora_parameters", None)
    # Our own words in it say again what the settings say.
    stored.pop("mlx_itune", None)
    return kind | (inner if isinstance(inner, dict) else {}) | stored


def _config(settings: Mapping[str, str]) -> Html:
    if not settings:
        return Html("")
    note = "The settings in effect, as config.toml holds them; local paths by their last part."
    return section("Configuration", config_table(settings), note=note)


def _newest(run: Path, name: str) -> dict[str, Any]:
    """A JSON object of the newest checkpoint that has it; empty where there is none."""
    for file in sorted(run.glob(f"checkpoints/step-*/{name}"), reverse=True):
        if value := _object(file):
            return value
    return {}


def _object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where there is none."""
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _seconds(session: Session) -> float:
    try:
        began = datetime.fromisoformat(session.began)
        return max(0.0, (datetime.fromisoformat(session.last) - began).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _when(time: str) -> str:
    try:
        return f"{datetime.fromisoformat(time):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return "at an unknown time"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def _size(count_bytes: float) -> str:
    return f"{count_bytes / 1e9:,.2f} GB" if count_bytes >= 1e9 else f"{count_bytes / 1e6:,.1f} MB"


def _finite(value: Any) -> float | None:
    ok = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if ok and abs(value) < 1e300 else None


def _last_part(value: Any) -> str:
    return str(value).replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] if value else "?"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return compact(value)
    if isinstance(value, Iterable) and not isinstance(value, (str, Mapping)):
        items = [_last_part(item) for item in value]
        more = f" and {len(items) - 8:,} more" if len(items) > 8 else ""
        return " ".join(items[:8]) + more
    return _last_part(value)[:200]


_STYLE = """
h3{font-size:.95rem;margin:0 0 6px;font-weight:600}
.sample{border:1px solid var(--rule);border-radius:8px;padding:12px 14px;margin:12px 0 0;
background:var(--panel);break-inside:avoid}
.said{display:grid;grid-template-columns:5.6em minmax(0,1fr);gap:0 10px;padding:3px 0}
.said pre{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;max-height:15em;overflow-y:auto;
font:13px/1.45 ui-monospace,"SF Mono",Menlo,Consolas,monospace}
.label{color:var(--muted);font-size:.85rem}
td.words{white-space:normal;overflow-wrap:anywhere;max-width:60em}
.after pre{font-weight:600}
.before pre,.reference pre{color:var(--muted)}
"""
