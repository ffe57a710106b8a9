"""A run's folder written by hand, and its report read as a browser would."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from mlx_itune.training.run import report

CURVES = [
    "Loss",
    "Learning rate",
    "Gradient norm",
    "Learned tokens per second",
    "All tokens per second",
    "Memory",
]


class Page(HTMLParser):
    """Tags, attributes, the text of everything, and each chart's lines and words."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.style = self.policy = ""
        self.texts: list[str] = []
        self.charts: dict[str, dict[str, str]] = {}
        self._chart = self._open = ""
        source = path.read_bytes().decode("utf-8")
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        found = dict(attrs)
        self.attributes |= found.keys()
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"] or ""
        if tag == "svg":
            self._chart = found["aria-label"] or ""
            self.charts[self._chart] = {}
        if tag == "polyline":
            self._points = found["points"] or ""
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "style":
            self.style += data
        elif self._open == "title" and self._chart and ": " in data and " at " in data:
            self.charts[self._chart].setdefault(data, self._points)
        if data.strip():
            self.texts.append(data.strip())

    def told(self) -> str:
        return " | ".join(self.texts)

    def card(self, name: str) -> str:
        return self.texts[self.texts.index(name) + 1]


def line(kind: str, **fields: Any) -> str:
    time = fields.pop("time", "2026-11-22T20:00:00.000+00:00")
    return json.dumps({"v": 1, "time": time, "event": kind, **fields}) + "\n"


def step(n: int, loss: float | None = 1.0, **more: Any) -> str:
    fields = {"learning_rate": 1e-3, "gradient_norm": 2.0, "supervised_tokens": 10, "tokens": 40}
    return line("step", step=n, steps=100, epoch=0, loss=loss, **{**fields, **more})


def run_of(tmp_path: Path, *lines: str) -> Path:
    run = tmp_path / "20261122T200000Z-abcdef"
    run.mkdir(parents=True, exist_ok=True)
    (run / "events.jsonl").write_text("".join(lines), encoding="utf-8")
    return run


def page_of(tmp_path: Path, *lines: str) -> Page:
    return Page(report.write(run_of(tmp_path, *lines)))
