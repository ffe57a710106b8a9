"""A run that is continued is the run that was begun: to the bit, or it is refused by field name."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)
from mlx_itune.kit.errors import DataError, ItuneError, ModelError, StorageError, UsageError
from mlx_itune.kit.lock import holder, locked
from mlx_itune.model.engine import backward
from mlx_itune.model.loading import backend
from mlx_itune.training.engine.loop import train
from mlx_itune.training.engine.step import Learner
from mlx_itune.training.run import catalogue, checkpoint
from mlx_itune.training.run.resume import resume
from mlx_itune.training.run.story import read
from tests.training.sessions import (
    Cut,
    Event,
    cut_after,
    in_peace,
    outcome,
    poison,
    resumed,
    stopped,
    the_run,
)

Patch = pytest.MonkeyPatch


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    "more",
    [
        {"dropout": 0.1, "eval_every": 2, "early_stopping": 9},
        {"optimizer": "lion", "adapter": "dora", "schedule": "linear", "learning_rate": "auto"},
    ],
    ids=["dropout", "lion and dora"],
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
    assert resume(run).steps == 6
    assert outcome(run, tmp_path / "adapter") == expected


def test_the_way_back_that_was_measured_is_taken_again(
    settings: Any, tiny_quantized_dir: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    gpu = backend.Backend("gpu", None, None)
    monkeypatch.setattr(backend, "prepare", lambda: gpu)
    monkeypatch.setenv("MLX_ITUNE_CACHE", "off")
    takes: list[float] = []
    monkeypatch.setattr(backward, "seconds", lambda _: takes.pop())
    more = {"model": str(tiny_quantized_dir), "clip_norm": 0.5}
    takes[:] = [1.0, 1.0, 2.0, 2.0]
    expected = in_peace(settings, tmp_path, **more)
    takes[:] = [1.0, 1.0, 2.0, 2.0]
    run = stopped(settings, tmp_path, **more)
    assert json.loads((run / "run.json").read_text())["how"]["ways"]["backward"] == "dequantized"
    assert (resumed(run)["changed"], takes) == ([], [])
    assert outcome(run, tmp_path / "adapter") == expected


@pytest.mark.parametrize("step", [1, 6])
def test_a_run_stopped_by_a_signal_ends_the_same(step: int, settings: Any, tmp_path: Path) -> None:
    more = {"eval_every": 1, "early_stopping": 9, "save_every": 0}
    expected = in_peace(settings, tmp_path, **more)

    def interrupt(event: Event) -> None:
        if event["event"] == "step" and event["step"] == step:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(settings(**more), observe=interrupt)
    run = the_run(tmp_path)
    event = resumed(run)
    assert (event["step"], event["changed"]) == (step, [])
    # The validation that the signal came before is made up for, and made once.
    lines = (run / "events.jsonl").read_text().splitlines()
    told = [event["step"] for line in lines if (event := json.loads(line))["event"] == "valid"]
    assert told == [*range(7)]
    assert outcome(run, tmp_path / "adapter") == expected


def test_early_stopping_counts_across_sessions(
    settings: Any, tmp_path: Path, monkeypatch: Patch
) -> None:
    told = iter([9.0, 4.0, 5.0, 5.0, 5.0, 5.0])
    monkeypatch.setattr(Learner, "evaluate", lambda self, examples: next(told))
    more = {"steps": 9, "epochs": None, "eval_every": 1, "early_stopping": 3, "save_every": 1}
    with pytest.raises(Cut):
        train(settings(**more), observe=cut_after("checkpoint", 3))
    run = the_run(tmp_path)
    result = resume(run)
    assert (result.steps, result.adapter_step, result.stopped_early) == (4, 1, True)
    best = run / "checkpoints" / "step-000001" / "adapters.safetensors"
    assert (tmp_path / "adapter" / "adapters.safetensors").read_bytes() == best.read_bytes()
    # What was stopped early is done, whatever is missing of it.
    (run / "result.json").unlink()
    assert resume(run).steps == 4


def test_a_finished_run_says_so_and_writes_a_missing_adapter_again(
    settings: Any, tmp_path: Path
) -> None:
    result = train(settings())
    run, out = Path(result.run), tmp_path / "adapter"
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    done = resume(run)
    assert vars(done) == {**vars(result), "finished_before": True, "rewritten": False}
    shutil.rmtree(out)
    assert resume(run).rewritten
    again = {path.name: path.read_bytes() for path in out.iterdir()}
    assert again.keys() == before.keys()
    assert again["adapters.safetensors"] == before["adapters.safetensors"]
    # An adapter that was written just before the end is replaced; somebody else's is not.
    (run / "result.json").unlink()
    assert not resume(run).finished_before
    (run / "result.json").unlink()
    (out / "provenance.json").write_text('{"run": "another"}')
    with pytest.raises(StorageError, match="already exists"):
        resume(run)
    shutil.rmtree(out)
    assert not resume(run).finished_before
    shutil.rmtree(out)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(StorageError, match="is gone, and so is step-000006"):
        resume(run)


def test_torn_logs_are_repaired_and_nothing_is_told_twice(
    settings: Any, tmp_path: Path, monkeypatch: Patch
) -> None:
    # The fifth step of the run. It is told when the sixth was begun; then it is made again.
    poison(monkeypatch, 5, 7)
    with pytest.raises(Cut):
        train(settings(), observe=cut_after("incident", 5))
    run = the_run(tmp_path)
    logs = [run / name for name in ("events.jsonl", "incidents.jsonl")]
    for log in logs:
        with log.open("a") as file:
            file.write('{"v": 1, "event": "ste')
    resume(run)
    for log in logs:
        assert all(json.loads(line) for line in log.read_text().splitlines())
    assert [incident.step for incident in catalogue.incidents(run)] == [5]
    story = read(run)
    assert story.steps == [1, 2, 3, 4, 5, 6] and [*story.validations] == [0, 6]


def test_a_run_goes_on_from_another_directory_under_another_name(
    settings: Any, tmp_path: Path, monkeypatch: Patch
) -> None:
    expected = in_peace(settings, tmp_path)
    monkeypatch.chdir(tmp_path)
    relative = {"data": Path("data"), "out": Path("adapter"), "runs": Path("runs")}
    with pytest.raises(Cut):
        train(settings(**relative), observe=cut_after("checkpoint", 4))
    renamed = the_run(tmp_path).rename(tmp_path / "my run")
    monkeypatch.chdir(renamed)
    assert resume(Path()).adapter == str(tmp_path / "adapter")
    assert outcome(renamed, tmp_path / "adapter") == expected
    assert resume(renamed).finished_before


def test_settings_that_change_no_number_may_change_and_one_trainer_has_a_run(
    settings: Any, tmp_path: Path
) -> None:
    expected = in_peace(settings, tmp_path)
    run = stopped(settings, tmp_path)
    with locked(run / "lock", "it"), pytest.raises(StorageError) as error:
        resume(run)
    assert f"run {run.name} is in use by process {os.getpid()}" in str(error.value)
    assert error.value.exit_code == 5
    edit(run / "config.toml", "save_every = 2", "save_every = 1")
    edit(run / "config.toml", "keep_checkpoints = 2", "keep_checkpoints = 1")
    moved = (tmp_path / "data").rename(tmp_path / "moved")
    edit(run / "config.toml", f'"{tmp_path / "data"}"', f'"{moved}"')
    held: list[bool] = []
    resume(run, observe=lambda event: held.append(holder(run / "lock") is not None))
    assert all(held) and holder(run / "lock") is None
    assert outcome(run, tmp_path / "adapter") == expected
    assert len(checkpoint.complete(run / "checkpoints")) == 1


def test_what_did_not_fit_may_go_on_in_smaller_pieces(settings: Any, tmp_path: Path) -> None:
    run = stopped(settings, tmp_path)
    with pytest.raises(UsageError, match="seed cannot change"):
        resume(run, how={"seed": 3})
    began = json.loads((run / "run.json").read_text())["how"]["micro_batch_tokens"]
    changed = resumed(run, how={"micro_batch_tokens": 16})["changed"]
    assert changed == [f"micro_batch_tokens is 16, the run began with {began}"]


def test_a_template_with_a_date_goes_on_tomorrow(
    settings: Any, tiny_model_dir: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    from datetime import datetime

    from transformers.utils import chat_template_utils

    model = shutil.copytree(tiny_model_dir, tmp_path / "model")
    template = model / "chat_template.jinja"
    template.write_text("{{ strftime_now('%d %b %Y') }}\n" + template.read_text())
    monkeypatch.setenv("MLX_ITUNE_CACHE", "off")
    expected = in_peace(settings, tmp_path, model=str(model))
    run = stopped(settings, tmp_path, model=str(model))

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Tomorrow:
            return cls(2031, 5, 6)

    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    resume(run)
    assert outcome(run, tmp_path / "adapter") == expected


CHANGES = [
    ("learning_rate = 0.005", "learning_rate = 0.001", "learning_rate is 0.001"),
    ("seed = 0", "seed = 1", "seed is 1, the run began with 0"),
    ("rank = 4", "rank = 8\nalpha = 3.0", "alpha is 3.0, the run began with None"),
    ('keys = ["self_attn.q_proj", ', "keys = [", "keys is"),
    (
        "keep_checkpoints = 2",
        "keep_checkpoints = 2\nmicro_batch_tokens = 64",
        "micro_batch_tokens is 64",
    ),
]


def test_changed_settings_and_rows_are_refused_by_name(
    settings: Any, data: Path, tmp_path: Path
) -> None:
    run = stopped(settings, tmp_path)
    config = (run / "config.toml").read_text()
    for old, new, named in CHANGES:
        edit(run / "config.toml", old, new)
        with pytest.raises(UsageError) as error:
            resume(run)
        assert named in str(error.value) and error.value.exit_code == 2
        (run / "config.toml").write_text(config)
    train_rows, valid_rows = ((data / f"{part}.jsonl").read_text() for part in ("train", "valid"))
    edit(data / "train.jsonl", "metformin", "zolpidem")
    with pytest.raises(DataError, match=r"data\.train\.sha256 \(train\.jsonl\) is ") as changed:
        resume(run)
    assert changed.value.exit_code == 3
    (data / "train.jsonl").write_text(train_rows)
    (data / "valid.jsonl").unlink()
    with pytest.raises(DataError, match=r"data\.valid \(valid\.jsonl\) is gone"):
        resume(run)
    (data / "valid.jsonl").write_text(valid_rows)
    # Rows that the run does not read are none of its business.
    (data / "test.jsonl").write_text(valid_rows)
    assert resume(run).steps == 6


def test_another_base_tokenizer_or_template_is_refused_by_name(
    settings: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_model_dir, tmp_path / "model")
    run = stopped(settings, tmp_path, model=str(model))
    merges = b'"ignore_merges": false', b'"ignore_merges": true'
    for name, change, named in (
        ("config.json", (b"10000", b"20000"), r"base\.config\.rope_theta is "),
        ("model.safetensors", None, r"base\.fingerprint is "),
        ("tokenizer.json", merges, "tokenizer is "),
        ("chat_template.jinja", (b"}}|>\n", b"}}|>: "), "template_sha256 is "),
    ):
        file = model / name
        whole = file.read_bytes()
        file.write_bytes(whole.replace(*change) if change else whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ModelError, match=named) as error:
            resume(run)
        assert error.value.exit_code == 4
        if name != "chat_template.jinja":
            file.write_bytes(whole)
    changed = resumed(run, allow_other_base=True)["changed"]
    assert [line.split()[0] for line in changed] == ["tokenizer", "template_sha256", "tokens"]


def test_a_damaged_or_foreign_checkpoint_is_set_aside_and_the_one_before_it_used(
    settings: Any, tmp_path: Path
) -> None:
    expected = in_peace(settings, tmp_path)
    train(settings(out=tmp_path / "other", runs=tmp_path / "others", seed=3))
    (other,) = (tmp_path / "others").iterdir()
    run = stopped(settings, tmp_path)
    sealed = run / "checkpoints"
    shutil.copytree(other / "checkpoints" / "step-000006", sealed / "step-000006")
    weights = sealed / "step-000004" / "adapters.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    event = resumed(run)
    assert event["checkpoint"] == "step-000002"
    assert sorted(event["damaged"]) == ["step-000004", "step-000006"]
    assert (sealed / "damaged-step-000004").is_dir()
    assert outcome(run, tmp_path / "adapter") == expected


def test_if_every_checkpoint_is_damaged_nothing_is_thrown_away(
    settings: Any, tmp_path: Path
) -> None:
    run = stopped(settings, tmp_path)
    for path in checkpoint.complete(run / "checkpoints"):
        (path / "state.json").write_text("{}")
    with pytest.raises(StorageError, match="no checkpoint is undamaged") as error:
        resume(run)
    assert error.value.exit_code == 5
    assert len(checkpoint.complete(run / "checkpoints")) == 2
    with pytest.raises(ItuneError, match=r"run\.json"):
        resume(tmp_path)
