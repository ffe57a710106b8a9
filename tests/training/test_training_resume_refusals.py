"""What a run refuses to go on with, by field name; and checkpoints that are not what was sealed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)
from mlx_itune.kit.errors import (
    DataError,
    ItuneError,
    ModelError,
    StorageError,
    UsageError,
)
from mlx_itune.kit.lock import holder, locked
from mlx_itune.training.engine.loop import train
from mlx_itune.training.run import checkpoint
from mlx_itune.training.run.resume import resume
from tests.training.sessions import Event, in_peace, outcome, stopped


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("learning_rate = 0.005", "learning_rate = 0.001", "learning_rate is 0.001"),
        ("seed = 0", "seed = 1", "seed is 1, the run began with 0"),
        ("batch_size = 4", "batch_size = 2", "batch_size is 2"),
        ("rank = 4", "rank = 8\nalpha = 3.0", "alpha is 3.0, the run began with None"),
        ('learn = "all"', 'learn = "last"', "learn is 'last'"),
        ('keys = ["self_attn.q_proj", ', "keys = [", "keys is"),
        ("keep = 2", "keep = 2\nmicro_batch_tokens = 64", "micro_batch_tokens is 64"),
    ],
)
def test_changed_settings_are_refused_by_name(
    old: str, new: str, named: str, settings: Any, tmp_path: Path
) -> None:
    run = stopped(settings, tmp_path)
    edit(run / "config.toml", old, new)
    with pytest.raises(UsageError) as error:
        resume(run)
    assert named in str(error.value) and error.value.exit_code == 2


def test_settings_that_change_no_number_may_change(settings: Any, tmp_path: Path) -> None:
    expected = in_peace(settings, tmp_path)
    run = stopped(settings, tmp_path)
    edit(run / "config.toml", "save_every = 2", "save_every = 1")
    edit(run / "config.toml", "keep = 2", "keep = 1")
    moved = (tmp_path / "data").rename(tmp_path / "moved")
    edit(run / "config.toml", f'"{tmp_path / "data"}"', f'"{moved}"')
    resume(run)
    assert outcome(run, tmp_path / "adapter") == expected
    assert len(checkpoint.complete(run / "checkpoints")) == 1


def test_changed_rows_are_refused_by_name(settings: Any, data: Path, tmp_path: Path) -> None:
    run = stopped(settings, tmp_path)
    train_rows = (data / "train.jsonl").read_text()
    (data / "train.jsonl").write_text(train_rows.replace("metformin", "zolpidem", 1))
    with pytest.raises(DataError, match=r"data\.train\.sha256 \(train\.jsonl\) is ") as error:
        resume(run)
    assert error.value.exit_code == 3
    (data / "train.jsonl").write_text(train_rows)
    valid_rows = (data / "valid.jsonl").read_text()
    (data / "valid.jsonl").unlink()
    with pytest.raises(DataError, match=r"data\.valid \(valid\.jsonl\) is gone"):
        resume(run)
    (data / "valid.jsonl").write_text(valid_rows)
    # Rows that the run does not read are none of its business.
    (data / "test.jsonl").write_text(valid_rows)
    assert resume(run).result.steps == 6


def test_another_base_tokenizer_or_template_is_refused_by_name(
    settings: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_model_dir, tmp_path / "model")
    run = stopped(settings, tmp_path, model=str(model))

    def refused(file: str, change: Any, named: str) -> None:
        whole = (model / file).read_bytes()
        (model / file).write_bytes(change(whole))
        with pytest.raises(ModelError, match=named) as error:
            resume(run)
        assert error.value.exit_code == 4
        (model / file).write_bytes(whole)

    refused("config.json", lambda b: b.replace(b"10000", b"20000"), r"base\.config\.rope_theta is ")
    refused("model.safetensors", lambda b: b[:-1] + bytes([b[-1] ^ 1]), r"base\.fingerprint is ")
    refused("chat_template.jinja", lambda b: b.replace(b"}}|>\n", b"}}|>: "), "template_sha256 is ")
    refused("tokenizer.json", _ignoring_merges, "tokenizer is ")
    template = model / "chat_template.jinja"
    template.write_bytes(template.read_bytes().replace(b"}}|>\n", b"}}|>: "))
    events: list[Event] = []
    assert resume(run, allow_other_base=True, observe=events.append).result.steps == 6
    (resumed,) = [event for event in events if event["event"] == "resume"]
    assert [line.split()[0] for line in resumed["changed"]] == [
        "tokenizer",
        "template_sha256",
        "tokens",
    ]


def _ignoring_merges(tokenizer: bytes) -> bytes:
    return tokenizer.replace(b'"ignore_merges": false', b'"ignore_merges": true')


def test_one_trainer_per_run(settings: Any, tmp_path: Path) -> None:
    run = stopped(settings, tmp_path)
    with locked(run / "lock", "it"), pytest.raises(StorageError) as error:
        resume(run)
    assert f"run {run.name} is in use by process {os.getpid()}" in str(error.value)
    assert error.value.exit_code == 5
    held: list[bool] = []
    resume(run, observe=lambda event: held.append(holder(run / "lock") is not None))
    assert all(held) and holder(run / "lock") is None


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(
    settings: Any, tmp_path: Path
) -> None:
    expected = in_peace(settings, tmp_path)
    run = stopped(settings, tmp_path)
    weights = run / "checkpoints" / "step-000004" / "adapters.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    events: list[Event] = []
    resume(run, observe=events.append)
    (resumed,) = [event for event in events if event["event"] == "resume"]
    assert resumed["checkpoint"] == "step-000002" and resumed["damaged"] == ["step-000004"]
    assert (run / "checkpoints" / "damaged-step-000004").is_dir()
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


def test_a_checkpoint_of_another_run_is_not_taken(settings: Any, tmp_path: Path) -> None:
    train(settings(out=tmp_path / "other", runs=tmp_path / "others", seed=3))
    (other,) = (tmp_path / "others").iterdir()
    run = stopped(settings, tmp_path)
    shutil.copytree(other / "checkpoints" / "step-000006", run / "checkpoints" / "step-000006")
    events: list[Event] = []
    resume(run, observe=events.append)
    (resumed,) = [event for event in events if event["event"] == "resume"]
    assert resumed["checkpoint"] == "step-000004" and resumed["damaged"] == ["step-000006"]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ItuneError, match=r"run\.json"):
        resume(tmp_path)
