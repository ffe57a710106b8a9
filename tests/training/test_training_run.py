"""Whole runs: files, events, signals, provenance, the best step, what cannot be learned."""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)
from mlx_itune.kit.errors import DivergedError, ResourceError, StorageError, UsageError
from mlx_itune.model.adapters import adapter
from mlx_itune.model.loading import base
from mlx_itune.training.engine.loop import train
from mlx_itune.training.engine.step import Learner
from mlx_itune.training.run import catalogue, checkpoint
from tests.training.sessions import Event, poison, the_run

RESULT_KEYS = (
    "run adapter steps epochs examples supervised_tokens train_loss valid_loss best_valid_loss "
    "supervised_tokens_per_second tokens_per_second peak_memory_bytes wall_s "
    "adapter_step best_step stopped_early skipped_steps rows_used rows_not_used "
    "adapter_valid_loss adapter_valid_rows learning_rate_search"
).split()


def kept(run: Path) -> list[str]:
    return [path.name for path in checkpoint.complete(run / "checkpoints")]


def losses_of(monkeypatch: pytest.MonkeyPatch, *losses: float) -> None:
    """The validation losses of a run, whatever its weights are."""
    told = iter(losses)
    monkeypatch.setattr(Learner, "evaluate", lambda self, examples: next(told))


def test_a_run_from_rows_to_adapter(
    tiny_quantized_dir: Path, settings: Any, tmp_path: Path
) -> None:
    events: list[Event] = []
    result = train(settings(model=str(tiny_quantized_dir)), observe=events.append)

    assert sorted(vars(result)) == sorted(RESULT_KEYS)
    # 10 rows by 4: the last batch of an epoch has 2, none is left out.
    assert (result.steps, result.epochs, result.examples) == (6, 2.0, 20)
    assert result.valid_loss is not None and result.valid_loss == result.best_valid_loss
    losses = [event["loss"] for event in events if event["event"] == "valid"]
    assert losses[-1] < losses[0]
    assert (result.adapter_step, result.stopped_early, result.skipped_steps) == (6, False, 0)

    run = Path(result.run)
    assert run.stat().st_mode & 0o777 == 0o700
    logged = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [e["event"] for e in logged] == [e["event"] for e in events]
    assert 'model = "' in (run / "config.toml").read_text()
    assert json.loads((run / "result.json").read_text())["steps"] == 6
    assert kept(run) == ["step-000004", "step-000006"]
    assert "</html>" in (run / "report.html").read_text()

    stored = adapter.load(tmp_path / "adapter")
    loaded = base.load(str(tiny_quantized_dir))
    adapter.apply(loaded, stored)
    assert stored.provenance["base"]["fingerprint"] == loaded.fingerprint
    assert stored.provenance["metrics"]["steps"] == 6
    assert stored.provenance["run"] == run.name
    assert str(tmp_path) not in json.dumps(stored.provenance)
    assert stored.config.alpha == 8


@pytest.mark.parametrize(("signals", "sealed"), [(1, "step-000004"), (2, "step-000002")])
def test_a_signal_ends_the_run_after_its_step_and_a_second_one_at_once(
    signals: int, sealed: str, settings: Any, tmp_path: Path
) -> None:
    events: list[Event] = []

    def interrupt(event: Event) -> None:
        events.append(event)
        if event["event"] == "step" and event["step"] == 3:
            for _ in range(signals):
                signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(settings(), observe=interrupt)
    assert signal.getsignal(signal.SIGINT) is before
    run = the_run(tmp_path)
    # The third step is told when the fourth was begun.
    assert kept(run)[-1] == sealed
    assert not (tmp_path / "adapter").exists()
    if signals == 1:
        line = f"mlx-itune resume {run}"
        assert events[-1] == {
            "event": "stopped",
            "step": 4,
            "signal": signal.SIGINT,
            "resume": line,
        }


def test_time_alone_asks_for_checkpoints_too(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, ahead = time.monotonic, 0.0
    monkeypatch.setattr(time, "monotonic", lambda: real() + ahead)
    saved: list[int] = []

    def pass_time(event: Event) -> None:
        nonlocal ahead
        if event["event"] == "step":
            # 120 s a step: the 300 s are over when the third is told, after the fourth.
            ahead += 120
        if event["event"] == "checkpoint":
            saved.append(event["step"])

    train(settings(save_every=0, steps=8, epochs=None), observe=pass_time)
    assert saved == [4, 8]
    assert kept(the_run(tmp_path)) == ["step-000004", "step-000008"]


def test_the_best_step_is_kept_and_shipped(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Before training, then after each step: best at 2, and no better one in the three after it.
    losses_of(monkeypatch, 9.0, 5.0, 4.0, 4.5, math.nan, 4.4)
    events: list[Event] = []
    more = {"eval_every": 1, "early_stopping": 3, "save_every": 1, "keep_checkpoints": 1}
    result = train(settings(steps=20, epochs=None, **more), observe=events.append)
    assert (result.steps, result.stopped_early) == (5, True)
    assert (result.adapter_step, result.best_step, result.best_valid_loss) == (2, 2, 4.0)
    assert (result.adapter_valid_loss, result.valid_loss) == (4.0, 4.4)
    run = the_run(tmp_path)
    assert kept(run) == ["step-000002", "step-000005"]
    sealed = run / "checkpoints" / "step-000002"
    for name in ("adapters.safetensors", "adapter_config.json"):
        assert (tmp_path / "adapter" / name).read_bytes() == (sealed / name).read_bytes()
    assert len([*(tmp_path / "adapter").iterdir()]) == 3
    numbers = adapter.load(tmp_path / "adapter").provenance["metrics"]
    assert (numbers["steps"], numbers["adapter_step"], numbers["adapter_valid_loss"]) == (5, 2, 4.0)
    (stop,) = [event for event in events if event["event"] == "early_stop"]
    assert (stop["step"], stop["best_step"]) == (5, 2)


@pytest.mark.parametrize(("keep", "shipped"), [("best", 2), ("last", 6)])
def test_which_step_is_shipped_can_be_chosen(
    keep: str, shipped: int, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No step is as good as the base, and that is said.
    losses_of(monkeypatch, 3.0, 4.0, 5.0, 6.0)
    events: list[Event] = []
    result = train(settings(eval_every=2, keep_checkpoints=1, keep=keep), observe=events.append)
    assert (result.adapter_step, result.best_step, result.best_valid_loss) == (shipped, 2, 4.0)
    assert kept(the_run(tmp_path)) == ["step-000002", "step-000006"]
    (warning,) = [event["message"] for event in events if event["event"] == "warning"]
    assert "no step has a lower validation loss (4) than the base (3)" in warning


def test_a_step_that_is_not_finite_is_skipped_and_its_rows_are_named(
    settings: Any, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Learner.evaluate
    poison(monkeypatch, 2)

    def evaluate(self: Learner, examples: Any) -> float:
        alone = len(examples) == 1 and examples[0].origin.endswith(("train.jsonl:3", ":7"))
        return math.nan if alone else real(self, examples)

    monkeypatch.setattr(Learner, "evaluate", evaluate)
    events: list[Event] = []
    result = train(settings(batch_size=10, epochs=3.0), observe=events.append)
    assert (result.steps, result.skipped_steps) == (3, 1)
    (incident,) = catalogue.incidents(the_run(tmp_path))
    assert incident.step == 2 and len(incident.rows) == 10
    assert all(row.startswith(f"{data / 'train.jsonl'}:") for row in incident.rows)
    # Those whose own loss is not finite are singled out.
    assert sorted(row.rpartition(":")[2] for row in incident.suspects) == ["3", "7"]
    assert [e["step"] for e in events if e["event"] == "incident"] == [2]
    for array in adapter.load(tmp_path / "adapter").tensors.values():
        assert np.isfinite(np.array(array)).all()


def test_five_in_a_row_stop_the_run_and_the_last_checkpoint_is_good(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 2, *range(4, 20))
    with pytest.raises(DivergedError, match="in 5 steps in a row") as error:
        train(settings(steps=20, epochs=None))
    assert error.value.exit_code == 6
    assert "incidents.jsonl" in str(error.value) and "step-0000" in str(error.value)
    run = the_run(tmp_path)
    assert [i.step for i in catalogue.incidents(run)] == [2, 4, 5, 6, 7, 8]
    for path in checkpoint.complete(run / "checkpoints"):
        checkpoint.read(path)
        assert all(np.isfinite(np.array(a)).all() for a in adapter.load(path).tensors.values())
    assert not (tmp_path / "adapter").exists()
    last = json.loads((run / "events.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["exit_code"]) == ("failed", 6)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("[METAL] Impacting Interactivity (0000000e)", "AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1"),
        ("[METAL] Command buffer execution failed: Insufficient Memory", "--micro-batch-tokens"),
        ("[metal::malloc] Unable to allocate 123 bytes.", "out of memory"),
    ],
)
def test_what_the_gpu_says_becomes_advice_and_a_way_on(
    said: str, told: str, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(Learner, "step", fail)
    with pytest.raises(ResourceError) as error:
        train(settings())
    assert told in str(error.value)
    assert f"mlx-itune resume {the_run(tmp_path)}" in str(error.value)


def test_what_cannot_end_well_is_refused_before_any_step(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = tmp_path / "one.jsonl"
    one.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    with pytest.raises(UsageError, match="early stopping needs validation rows"):
        train(settings(data=one, early_stopping=2, eval_every=1))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine").write_text("x")
    with pytest.raises(StorageError, match="already exists"):
        train(settings(out=tmp_path / "mine"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 1000))
    with pytest.raises(StorageError, match="saving this run needs"):
        train(settings())
    assert not (tmp_path / "runs").exists()
