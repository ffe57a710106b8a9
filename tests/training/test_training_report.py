"""report.html as a browser reads it, against the events it came from: whole, torn, odd, hostile."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import re
import shutil
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)
from mlx_itune.kit.errors import StorageError
from mlx_itune.training.engine.loop import train
from mlx_itune.training.run import report
from mlx_itune.training.run.curves import (
    CHARTS,
    WIDTH,
    Points,
    by_step,
    line_chart,
    smoothed,
    thinned,
)
from mlx_itune.training.run.story import read

HOSTILE = "</script><img src=x onerror=alert(1)>\"' & \x00\u202e ]]> <!-- </style></pre> \ud800"
TAGS = set(
    "html head meta title style body main header section article div h1 h2 h3 p dl dt dd details "
    "summary table thead tbody tr th td pre span figure svg text line polyline circle rect".split()
)
TITLES = [chart.title for chart in CHARTS]


class Page(HTMLParser):
    """Tags, attributes, the text of everything, and each chart's lines by their tooltips."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.texts: list[str] = []
        self.charts: dict[str, dict[str, str]] = {}
        self._chart = self._open = ""
        self.source = path.read_bytes().decode("utf-8")
        self.feed(self.source)
        self.close()
        self.told = " | ".join(self.texts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.add(tag)
        self.attributes |= found.keys()
        if tag == "svg":
            self._chart = found["aria-label"] or ""
            self.charts[self._chart] = {}
        if tag == "polyline":
            self._points = found["points"] or ""
        self._open = tag

    def handle_data(self, data: str) -> None:
        if self._open == "title" and self._chart and ": " in data and " at " in data:
            self.charts[self._chart].setdefault(data, self._points)
        if data.strip():
            self.texts.append(data.strip())

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


def test_a_real_run_shows_its_curves_numbers_and_settings_and_nothing_private(
    settings: Any, tmp_path: Path
) -> None:
    seen: list[str] = []

    def observe(event: dict[str, Any]) -> None:
        # What a browser would have seen when the step was told.
        if event["event"] == "step":
            (page,) = tmp_path.glob("runs/*/report.html")
            seen.append(page.read_text())

    run = Path(train(settings(eval_every=2), observe=observe).run)
    assert all("refresh" in text for text in seen) and "step 2 of 6" in seen[3]
    told = [json.loads(text) for text in (run / "events.jsonl").read_text().splitlines()]

    def events(kind: str) -> list[dict[str, Any]]:
        return [event for event in told if event["event"] == kind]

    page = Page(report.write(run))
    assert list(page.charts) == TITLES
    last, valid = events("step")[-1], [event["loss"] for event in events("valid")]
    for chart in CHARTS[:-1]:
        ((name, key),) = chart.lines.items()
        assert f"{name}: {last[key]:.4g} at 6" in page.charts[chart.title]
    assert f"validation: {valid[-1]:.4g} at 6" in page.charts["Loss"]
    (end,), (start,) = events("end"), events("start")
    for name, told_as in (("steps", "6"), ("epochs", "2"), ("learning-rate", "0.005")):
        assert page.card(name) == told_as
    assert page.card("validation loss") == f"{valid[0]:.4g} → {valid[-1]:.4g}"
    # The same quantity in the page, at the end of `train` and in `runs show`, of any run.
    told_as = "train loss, mean of the last 20 steps"
    assert page.card(told_as) == f"{end['train_loss']:.4g}" and "refresh" not in page.source
    assert read(run).train_loss == pytest.approx(end["train_loss"])
    best = min(events("valid")[1:], key=lambda event: event["loss"])["step"]
    assert f"best, ships: step {best}" in page.told and "Step 6 ships." in page.told
    assert page.card("learned tokens") == f"{end['supervised_tokens']:,}"
    assert page.card("peak memory") == f"{end['peak_memory_bytes'] / 1e6:,.1f} MB"
    assert page.card("rows to train on") == page.card("train.jsonl") == "10"
    assert "finished" in page.told and "step-000006 | kept" in page.told
    # The page loads and runs nothing, and can be shown to anybody.
    assert page.tags <= TAGS, page.tags - TAGS
    assert not {"src", "href", "srcset", "action", "style"} & page.attributes
    assert not any(name.startswith("on") for name in page.attributes)
    (style,) = re.findall("<style>(.*?)</style>", page.source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in page.source
    assert not re.search(r"url\(|@import|http", style)
    assert str(tmp_path) not in page.source and start["run"] not in page.source
    # It is made again from the folder alone.
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    (moved / report.NAME).unlink()
    shutil.rmtree(moved / "checkpoints")
    page = Page(report.write(moved))
    assert list(page.charts) == TITLES and "step-000006 | removed" in page.told


@pytest.mark.parametrize(
    ("losses", "end", "told"),
    [
        ({0: 2.0, 4: 1.5, 6: 1.4, 8: 1.2}, {}, "Still falling: validation loss 1.4 at step 6"),
        ({0: 2.0, 4: 1.2, 6: 1.5, 8: 1.6}, {"adapter_step": 4}, "Best at step 4: later steps over"),
        ({0: 2.0, 4: 1.2, 6: 1.5, 8: 1.6}, {"adapter_step": 4}, "Step 4 ships."),
        ({0: 2.0, 4: 1.2, 6: 1.5, 8: 1.6}, {"adapter_step": 8}, "step, 8, ships all the same"),
        ({0: 2.0, 4: 1.2, 6: 1.2, 8: 1.199}, {}, "Levelled off"),
        ({0: 2.0, 4: 2.1, 6: 2.0, 8: 1.99}, {}, "Nothing was learned"),
        ({0: 2.0, 8: 1.0}, {}, "measured too rarely"),
        ({}, {}, "No row was set aside"),
    ],
)
def test_the_page_opens_with_a_verdict(
    tmp_path: Path, losses: dict[int, float], end: dict[str, Any], told: str
) -> None:
    lines = [step(n + 1) for n in range(8)]
    lines += [line("valid", step=at, loss=loss) for at, loss in losses.items()]
    page = page_of(tmp_path, line("start", steps=8), *lines, line("end", **end))
    assert told in page.texts[4]


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    told = {"row": HOSTILE, "prompt": HOSTILE, "reference": HOSTILE, "before": HOSTILE}
    cut = {"rows": 1, "split": [HOSTILE]}
    run = run_of(
        tmp_path,
        line("start", run=HOSTILE, steps=2, report=cut, x={"y": HOSTILE}),
        step(1),
        line("incident", step=1, rows=[HOSTILE] * 20, suspects=[], note=HOSTILE),
        line("checkpoint", step=1, path=HOSTILE),
        line("sample", after=HOSTILE, task=HOSTILE, **told),
    )
    config = f'model = "{HOSTILE}"\n{HOSTILE}\n'
    (run / "config.toml").write_bytes(config.encode("utf-8", "replace"))
    page = Page(report.write(run))
    assert page.tags <= TAGS, page.tags - TAGS
    assert not any(name.startswith("on") or name == "src" for name in page.attributes)
    assert page.told.count("<img src=x onerror=alert(1)>") >= 8
    assert "\x00" not in page.told and "\u202e" not in page.told
    tags = {node.tag for node in svg({HOSTILE: [(0, 1)], "b": [(0, 2)]}, HOSTILE).iter()}
    assert tags <= {"svg", "text", "rect", "line", "title", "polyline", "circle"}


@pytest.mark.parametrize(
    ("ending", "told"),
    [
        (line("stopped", step=2, signal=2), "stopped after step 2"),
        (line("failed", step=2, message="x", exit_code=6), "ended by an error after step 2"),
        (line("failed", step=2, message="x", exit_code=6), "Diverged at step 2"),
        (line("end", train_loss=1.0), "finished"),
        (line("end", stopped_early=True, adapter_step=1), "the adapter is of step | 1"),
        (line("end", stopped_early=True, adapter_step=1), "finished early"),
        ("", "not finished"),
    ],
)
def test_the_page_says_how_the_run_ended(tmp_path: Path, ending: str, told: str) -> None:
    assert told in page_of(tmp_path, line("start", steps=9), step(1), step(2), ending).told
    assert "not finished" in page_of(tmp_path).told
    with pytest.raises(StorageError, match=r"events\.jsonl"):
        report.write(tmp_path)


def test_skipped_steps_incidents_and_answers_are_told(tmp_path: Path) -> None:
    said = {"row": "valid.jsonl:3", "prompt": "Dose?", "reference": "5 mg"}
    page = page_of(
        tmp_path,
        line("start", steps=3),
        step(1),
        step(2, loss=None, gradient_norm=None, skipped=True),
        line("incident", step=2, loss="nan", rows=["/home/me/a.jsonl:7"], suspects=[]),
        step(3),
        line("sample", before="old", after="5 mg", **said),
        line("sample", before="Dose is", after="5  mg\n", task="dosing", **said),
    )
    assert page.card("skipped steps") == "1"
    for words in ("step 2 | loss: nan", "a.jsonl:7", "1. valid.jsonl:3, dosing"):
        assert words in page.told
    assert "before | Dose is | after ✓ | 5  mg | reference | 5 mg" in page.told
    # One answer a row, the last; no folder of this machine.
    assert "2. valid" not in page.told and "/home/me" not in page.told


def test_wild_values_are_told_and_do_not_flatten_the_rest(tmp_path: Path) -> None:
    norms = [1.0 + 0.1 * (n % 3) for n in range(300)]
    norms[200] = 5e6
    lines = [step(n + 1, gradient_norm=norm) for n, norm in enumerate(norms)]
    page = page_of(tmp_path, *lines)
    assert "the highest is 5e+06 at step 201" in page.told
    raw = next(points for told, points in page.charts["Gradient norm"].items() if "before" in told)
    heights = [float(pair.split(",")[1]) for pair in raw.split()]
    assert max(heights) - min(heights) > 10


def test_a_resumed_run_counts_every_step_once_as_it_was_made_last(tmp_path: Path) -> None:
    run = run_of(
        tmp_path,
        line("start", steps=9),
        *(step(n, loss=9.0) for n in range(1, 7)),
        line("valid", step=4, loss=7.0),
        line("checkpoint", step=4, path="step-000004"),
        step(5, loss=9.0),
        step(6, loss=None, skipped=True),
        line("incident", step=6, rows=["a:1"]),
        line("valid", step=6, loss=0.1),
        line("checkpoint", step=6, path="step-000006", time="2026-11-22T20:00:30.000+00:00"),
        line("start", steps=9, time="2026-11-22T21:00:00.000+00:00"),
        line("resume", step=4),
        *(step(n, loss=1.0 + n) for n in range(5, 10)),
        line("valid", step=9, loss=5.0),
        line("end", train_loss=8.0, time="2026-11-22T21:00:12.000+00:00"),
    )
    story = read(run)
    assert story.steps == list(range(1, 10))
    assert story.curve("loss").tolist() == [9, 9, 9, 9, 6, 7, 8, 9, 10]
    assert story.validations == {4: 7.0, 9: 5.0}
    assert [event["step"] for event in story.checkpoints] == [4]
    assert not story.incidents
    assert (story.tokens().sum(), story.skipped) == (90, 0)
    page = Page(report.write(run))
    assert (page.card("validation loss"), page.card("time")) == ("7 → 5", "42.0 s")
    assert "Resumed" in page.texts and "no end was written" in page.told


def test_many_steps_are_thinned_by_lowest_and_highest(tmp_path: Path) -> None:
    draw, count = random.Random(1), 20_000
    losses = [2 + draw.random() for _ in range(count)]
    losses[7_777], losses[15_000] = 0.25, 5.5
    run = run_of(tmp_path, *(step(n + 1, loss=loss) for n, loss in enumerate(losses)))
    points = thinned(by_step(read(run), "loss"))
    assert len(points) <= 602 and {(7_778, 0.25), (15_001, 5.5)} < {*points}
    assert points[0][0] == 1 and points[-1][0] == count
    assert report.write(run).stat().st_size < 200_000


def test_the_smoothed_curve_is_the_exponential_mean() -> None:
    points = np.stack([np.arange(5.0), [3.0, 1.0, np.nan, 2.0, 8.0]], axis=1)
    # By hand: 0.9^k times its tokens for each of the finite values so far, newest first.
    finite = [3.0, 1.0, 2.0, 8.0]
    tokens = [5, 2, 9, 4]
    expected = [
        sum(0.9**k * tokens[n - k] * finite[n - k] for k in range(n + 1))
        / sum(0.9**k * tokens[n - k] for k in range(n + 1))
        for n in range(4)
    ]
    made = smoothed(points, np.array([*tokens[:2], 7.0, *tokens[2:]]))
    assert made[:, 0].tolist() == [0, 1, 3, 4]
    assert made[:, 1] == pytest.approx(expected)


def test_odd_events_are_passed_over(tmp_path: Path) -> None:
    odd = [
        *("not json\n", "[]\n", "\n", '{"event": ["step"]}\n', '{"event": "unheard_of"}\n'),
        line("start", steps="many", report=[], sources={"a": 1}, examples=None),
        *(line("step", step=at) for at in ("x", -1, True)),
        line("step", step=10**30, loss=10**400),
        line("valid", step=None, loss=1),
        line("checkpoint"),
        line("sample", row=3, prompt=4),
        line("resume", step=[]),
        line("end", train_loss="low", epochs=[]),
        '{"v":1,"event":"step","step":1,"steps":2,"loss":NaN,"gradient_norm":Infinity}\n',
        line("step", step=2, loss="1", tokens=-5, skipped="no", time=7),
        "[" * 100_000 + "\n",
    ]
    random.Random(0).shuffle(odd)
    run = run_of(tmp_path, *odd)
    with (run / "events.jsonl").open("ab") as file:
        file.write(b'\xff\xfe{"event": "step"}\n' + step(3).encode()[:50])
    assert list(Page(report.write(run)).charts) == TITLES
    story = read(run)
    assert story.steps in ([1, 2], [2], [1])


def svg(series: dict[str, Points], y_label: str = "y") -> ET.Element:
    """The chart's SVG, read by an XML parser: a stray `<` or `&` fails here."""
    chart = line_chart(series, title="Loss by step", y_label=y_label)
    return ET.fromstring(chart).find("svg")  # type: ignore[return-value]


@pytest.mark.parametrize(
    "points", [[], [(3, 5.0)], [(0, 0.0), (1, 0.0)], [(0, -3e38), (2**53, 3e38)]]
)
def test_odd_numbers_stay_in_the_picture(points: Points) -> None:
    drawing = svg({"a": points, "b": points}, "nats")
    assert (drawing.attrib["role"], drawing.attrib["aria-label"]) == ("img", "Loss by step")
    width, height = map(float, drawing.attrib["viewBox"].split()[2:])
    for node in drawing.iter():
        places = (node.attrib.get(name, "0") for name in ("x", "y", "x1", "x2", "y1", "y2"))
        assert all(math.isfinite(float(place)) for place in places), node.attrib
    lines = list(drawing.iter("polyline"))
    for pair in " ".join(line.attrib["points"] for line in lines).split():
        x, y = map(float, pair.split(","))
        assert 0 <= x <= width == WIDTH and 0 <= y <= height
    words = {text.text for text in drawing.iter("text")}
    if points:
        # Several lines have a legend and colours of their own.
        assert {"a", "b", "step", "nats"} <= words
        assert len({line.attrib["class"] for line in lines}) == 2
    else:
        assert "nothing to show" in words and not lines
