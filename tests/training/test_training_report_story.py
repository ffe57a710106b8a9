"""Reading a run's events: torn, odd, resumed and long ones, thinned and smoothed for the eye."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from report_page import CURVES, Page, line, run_of, step

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)
from mlx_itune.training.run import report
from mlx_itune.training.run.curves import by_step, smoothed, thinned
from mlx_itune.training.run.story import read


def test_a_line_that_was_cut_off_loses_only_itself(tmp_path: Path) -> None:
    whole = [line("start", steps=3), step(1), step(2), step(3)]
    text = "".join(whole)
    for cut in range(len("".join(whole[:3])) + 1, len(text) - 1, 7):
        story = read(run_of(tmp_path, text[:cut]))
        assert list(story.steps) == [1, 2]
        assert story.unreadable_lines == 1


def test_a_resumed_run_counts_every_step_once_as_it_was_made_last(tmp_path: Path) -> None:
    begun = [
        line("start", steps=9, time="2026-11-22T20:00:00.000+00:00"),
        *(step(n, loss=9.0) for n in range(1, 7)),
        line("valid", step=4, loss=7.0),
        line("checkpoint", step=4, path="step-000004"),
        step(5, loss=9.0),
        step(6, loss=None, skipped=True),
        line("incident", step=6, rows=["a:1"]),
        line("valid", step=6, loss=0.1),
        line("checkpoint", step=6, path="step-000006", time="2026-11-22T20:00:30.000+00:00"),
    ]
    again = [
        line("start", steps=9, time="2026-11-22T21:00:00.000+00:00"),
        line("resume", step=4),
        *(step(n, loss=1.0 + n) for n in range(5, 10)),
        line("valid", step=9, loss=5.0),
        line("end", train_loss=8.0, time="2026-11-22T21:00:12.000+00:00"),
    ]
    run = run_of(tmp_path, *begun, *again)
    story = read(run)
    assert list(story.steps) == list(range(1, 10))
    assert story.curve("loss").tolist() == [9, 9, 9, 9, 6, 7, 8, 9, 10]
    assert list(zip(story.valid_steps, story.valid_losses, strict=True)) == [(4, 7.0), (9, 5.0)]
    assert [event["step"] for event in story.checkpoints] == [4]
    assert not story.incidents
    assert (story.total("supervised_tokens"), story.total("skipped")) == (90, 0)
    page = Page(report.write(run))
    assert page.card("validation loss") == "7 → 5"
    assert page.card("time") == "42.0 s"
    assert "Resumed" in page.texts
    assert "no end was written" in page.told()


def test_many_steps_are_thinned_by_lowest_and_highest(tmp_path: Path) -> None:
    draw = random.Random(1)
    count = 20_000
    losses = [2 + draw.random() for _ in range(count)]
    losses[7_777], losses[15_000] = 0.25, 5.5
    run = run_of(tmp_path, *(step(n + 1, loss=loss) for n, loss in enumerate(losses)))
    points = thinned(by_step(read(run), "loss"))
    assert len(points) <= 602
    assert (7_778, 0.25) in points and (15_001, 5.5) in points
    assert points[0][0] == 1 and points[-1][0] == count
    page = Page(report.write(run))
    assert (run / report.NAME).stat().st_size < 200_000
    assert page.card("learned tokens") == f"{10 * count:,}"


def test_the_smoothed_curve_is_the_exponential_mean() -> None:
    values = np.array([3.0, 1.0, np.nan, 2.0, 8.0])
    points = np.stack([np.arange(5.0), values], axis=1)
    # By hand: 0.9^k times its tokens for each of the finite values so far, newest first.
    finite = [3.0, 1.0, 2.0, 8.0]
    for tokens in ([1, 1, 1, 1], [5, 2, 9, 4]):
        expected = [
            sum(0.9**k * tokens[n - k] * finite[n - k] for k in range(n + 1))
            / sum(0.9**k * tokens[n - k] for k in range(n + 1))
            for n in range(4)
        ]
        weights = np.array([*tokens[:2], 7.0, *tokens[2:]])
        made = smoothed(points, weights)
        assert made[:, 0].tolist() == [0, 1, 3, 4]
        assert made[:, 1] == pytest.approx(expected)
    assert np.array_equal(smoothed(points), smoothed(points, np.zeros(5)))


def test_odd_events_are_passed_over(tmp_path: Path) -> None:
    odd = [
        "not json\n",
        "[]\n",
        "\n",
        '{"event": ["step"]}\n',
        '{"event": "unheard_of"}\n',
        line("start", steps="many", report=[], sources={"a": 1}, examples=None),
        line("step", step="x"),
        line("step", step=-1),
        line("step", step=10**30, loss=10**400),
        line("step", step=True),
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
    page = Page(report.write(run))
    assert list(page.charts) == CURVES
    story = read(run)
    assert story.unreadable_lines == 5
    assert list(story.steps) in ([1, 2], [2], [1])
