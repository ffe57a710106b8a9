"""A run that is continued is the run that was begun: to the bit, or it is refused by field name."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)
from mlx_itune.kit.errors import (
    DivergedError,
    StorageError,
    UsageError,
)
from mlx_itune.training.engine.loop import train
from mlx_itune.training.engine.step import Learner
from mlx_itune.training.run import catalogue, checkpoint
from mlx_itune.training.run.resume import resume
from mlx_itune.training.run.story import read
from tests.training.sessions import Cut, Event, cut_after, in_peace, outcome, stopped, the_run


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"dropout": 0.1, "eval_every": 2, "early_stopping": 9},
        {"optimizer": "lion", "adapter": "dora", "schedule": "linear"},
    ],
    ids=["plain", "dropout", "lion and dora"],
)
def test_a_run_cut_after_every_step_ends_the_same(
    more: dict[str, Any], settings: Any, tmp_path: Path
) -> None:
    expected = in_peace(settings, tmp_path, **more)
    with pytest.raises(Cut):
        train(settings(**more), observe=cut_after("step", 1))
    run = the_run(tmp_path)
    for step in range(1, 7):
        with pytest.raises(Cut):
            resume(run, observe=cut_after("step", step))
    assert resume(run).result.steps == 6
    assert outcome(run, tmp_path / "adapter") == expected


@pytest.mark.parametrize("step", [1, 4, 6])
def test_a_run_stopped_by_a_signal_ends_the_same(step: int, settings: Any, tmp_path: Path) -> None:
    more = {"eval_every": 1, "early_stopping": 9, "save_every": 0}
    expected = in_peace(settings, tmp_path, **more)

    def interrupt(event: Event) -> None:
        if event["event"] == "step" and event["step"] == step:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(settings(**more), observe=interrupt)
    run = the_run(tmp_path)
    events: list[Event] = []
    resume(run, observe=events.append)
    (resumed,) = [event for event in events if event["event"] == "resume"]
    assert (resumed["step"], resumed["changed"]) == (step, [])
    # The validation that the signal came before is made up for, and made once.
    assert [e["step"] for e in events if e["event"] == "valid"] == [*range(step, 7)]
    assert outcome(run, tmp_path / "adapter") == expected


def test_early_stopping_counts_across_sessions(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter([9.0, 4.0, 5.0, 5.0, 5.0, 5.0])
    monkeypatch.setattr(Learner, "evaluate", lambda self, examples: next(told))
    more = {"steps": 9, "epochs": None, "eval_every": 1, "early_stopping": 3, "save_every": 1}
    with pytest.raises(Cut):
        train(settings(**more), observe=cut_after("checkpoint", 3))
    run = the_run(tmp_path)
    result = resume(run).result
    assert (result.steps, result.adapter_step, result.stopped_early) == (4, 1, True)
    best = run / "checkpoints" / "step-000001" / "adapters.safetensors"
    assert (tmp_path / "adapter" / "adapters.safetensors").read_bytes() == best.read_bytes()
    # What was stopped early is done, whatever is missing of it.
    (run / "result.json").unlink()
    assert resume(run).result.steps == 4


def test_a_finished_run_says_so_and_writes_a_missing_adapter_again(
    settings: Any, tmp_path: Path
) -> None:
    result = train(settings())
    run, out = Path(result.run), tmp_path / "adapter"
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    done = resume(run)
    assert (done.finished_before, done.rewritten) == (True, False)
    assert done.result == result
    shutil.rmtree(out)
    assert resume(run).rewritten
    again = {path.name: path.read_bytes() for path in out.iterdir()}
    assert again.keys() == before.keys()
    assert again["adapters.safetensors"] == before["adapters.safetensors"]
    assert resume(run, out=tmp_path / "elsewhere").rewritten
    shutil.rmtree(out)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(StorageError, match="is gone, and so is step-000006"):
        resume(run)


def test_an_adapter_that_was_written_before_the_end_is_replaced(
    settings: Any, tmp_path: Path
) -> None:
    result = train(settings())
    run = Path(result.run)
    (run / "result.json").unlink()
    assert not resume(run).finished_before
    (run / "result.json").unlink()
    (tmp_path / "adapter" / "provenance.json").write_text('{"run": "another"}')
    with pytest.raises(StorageError, match="already exists"):
        resume(run)


def test_torn_logs_are_repaired_and_nothing_is_told_twice(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Learner.gradients
    seen = 0

    def gradients(self: Learner, *args: Any, **options: Any) -> Any:
        nonlocal seen
        seen += 1
        loss, weight, found = real(self, *args, **options)
        # The fifth step of the run: the second session makes it again.
        return (math.nan if seen in (5, 6) else loss), weight, found

    monkeypatch.setattr(Learner, "gradients", gradients)
    with pytest.raises(Cut):
        train(settings(), observe=cut_after("incident", 5))
    run = the_run(tmp_path)
    for name in ("events.jsonl", "incidents.jsonl"):
        with (run / name).open("a") as file:
            file.write('{"v": 1, "event": "ste')
    resume(run)
    for name in ("events.jsonl", "incidents.jsonl"):
        for line in (run / name).read_text().splitlines():
            json.loads(line)
    assert [incident.step for incident in catalogue.incidents(run)] == [5]
    story = read(run)
    assert list(story.steps) == [1, 2, 3, 4, 5, 6] and list(story.valid_steps) == [0, 6]


def test_skipped_steps_in_a_row_are_counted_across_sessions(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Learner.gradients
    monkeypatch.setattr(
        Learner, "gradients", lambda self, *a, **k: (math.nan, *real(self, *a, **k)[1:])
    )
    with pytest.raises(Cut):
        train(settings(save_every=1), observe=cut_after("checkpoint", 3))
    with pytest.raises(DivergedError, match="in 5 steps in a row, the last one step 5"):
        resume(the_run(tmp_path))


def test_a_run_is_resumed_from_another_directory(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = in_peace(settings, tmp_path)
    monkeypatch.chdir(tmp_path)
    relative = {"data": Path("data"), "out": Path("adapter"), "runs": Path("runs")}
    with pytest.raises(Cut):
        train(settings(**relative), observe=cut_after("checkpoint", 4))
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    run = Path("..") / the_run(tmp_path).relative_to(tmp_path)
    assert resume(run).result.adapter == str(tmp_path / "adapter")
    assert outcome(run, tmp_path / "adapter") == expected


def test_what_did_not_fit_may_go_on_in_smaller_pieces(settings: Any, tmp_path: Path) -> None:
    run = stopped(settings, tmp_path)
    events: list[Event] = []
    resume(run, how={"micro_batch_tokens": 16}, observe=events.append)
    (resumed,) = [event for event in events if event["event"] == "resume"]
    began = json.loads((run / "run.json").read_text())["how"]["micro_batch_tokens"]
    assert resumed["changed"] == [f"micro_batch_tokens is 16, the run began with {began}"]
    with pytest.raises(UsageError, match="seed cannot change"):
        resume(run, how={"seed": 3})


def test_a_template_with_a_date_goes_on_tomorrow(
    settings: Any, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datetime import datetime

    from mlx_itune.dataset.tokens import chat_template

    model = shutil.copytree(tiny_model_dir, tmp_path / "model")
    template = (model / "chat_template.jinja").read_text()
    dated = "{{ strftime_now('%d %b %Y') }}\n" + template
    (model / "chat_template.jinja").write_text(dated)
    monkeypatch.setenv("MLX_ITUNE_CACHE", "off")
    expected = in_peace(settings, tmp_path, model=str(model))
    run = stopped(settings, tmp_path, model=str(model))

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Tomorrow:
            return cls(2031, 5, 6)

    monkeypatch.setattr(chat_template, "datetime", Tomorrow)
    resume(run)
    assert outcome(run, tmp_path / "adapter") == expected


def test_a_checkpoint_that_cannot_be_written_ends_no_run(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, broken = os.fsync, True

    def full(descriptor: int) -> None:
        if broken and "checkpoints" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(28, os.strerror(28))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    events: list[Event] = []

    def observe(event: Event) -> None:
        nonlocal broken
        events.append(event)
        broken = broken and not (event["event"] == "step" and event["step"] >= 3)

    result = train(settings(save_every=1), observe=observe)
    assert result.steps == 6
    warnings = [event["message"] for event in events if event["event"] == "warning"]
    assert warnings and "No space left" in warnings[0] and "training goes on" in warnings[0]
    kept = checkpoint.complete(Path(result.run) / "checkpoints")
    assert [path.name for path in kept] == ["step-000005", "step-000006"]


def test_a_run_folder_may_be_renamed_and_named_by_a_dot(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped(settings, tmp_path)
    renamed = run.rename(tmp_path / "my run")
    monkeypatch.chdir(renamed)
    assert resume(Path()).result.steps == 6
    assert resume(renamed).finished_before
