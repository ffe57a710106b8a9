"""Whole runs: files, checkpoints, signals, provenance."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx.utils import tree_flatten

import mlx_itune.training  # noqa: F401  (loads a fast BLAS before mlx.core)
from mlx_itune.kit.errors import StorageError
from mlx_itune.model import adapter, base, lora
from mlx_itune.training import checkpoint
from mlx_itune.training.loop import train
from mlx_itune.training.settings import settings_from
from mlx_itune.training.step import Learner

RESULT_KEYS = (
    "run adapter steps epochs examples supervised_tokens train_loss valid_loss best_valid_loss "
    "supervised_tokens_per_second tokens_per_second peak_memory_bytes wall_s"
).split()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, count in (("train", 10), ("valid", 3)):
        lines = [
            json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": f"Question {name} {i}: metformin?"},
                        {"role": "assistant", "content": f"Yes, {i} mg twice daily."},
                    ]
                }
            )
            for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def settings(model: Path, data: Path, tmp_path: Path, **more: Any) -> Any:
    values = {
        "model": str(model),
        "data": data,
        "out": tmp_path / "adapter",
        "runs": tmp_path / "runs",
        "epochs": 2.0,
        "batch_size": 4,
        "learning_rate": 5e-3,
        "save_every": 2,
        "offline": True,
    }
    return settings_from({**values, **more})


def test_a_run_from_rows_to_adapter(tiny_quantized_dir: Path, data: Path, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    result = train(settings(tiny_quantized_dir, data, tmp_path), observe=events.append)

    assert list(vars(result)) == RESULT_KEYS
    # 10 rows by 4: the last batch of an epoch has 2, none is left out.
    assert (result.steps, result.epochs, result.examples) == (6, 2.0, 20)
    assert result.valid_loss is not None and result.valid_loss == result.best_valid_loss
    losses = [event["loss"] for event in events if event["event"] == "valid"]
    assert losses[-1] < losses[0]

    run = Path(result.run)
    assert run.stat().st_mode & 0o777 == 0o700
    logged = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [e["event"] for e in logged] == [e["event"] for e in events]
    assert 'model = "' in (run / "config.toml").read_text()
    kept = checkpoint.complete(run / "checkpoints")
    assert [path.name for path in kept] == ["step-000004", "step-000006"]

    stored = adapter.load(tmp_path / "adapter")
    loaded = base.load(str(tiny_quantized_dir))
    adapter.apply(loaded, stored)
    assert stored.provenance["base"]["fingerprint"] == loaded.fingerprint
    assert stored.provenance["metrics"]["steps"] == 6
    assert str(tmp_path) not in json.dumps(stored.provenance)
    assert stored.config.alpha == 32


def test_an_occupied_out_is_refused_before_any_work(
    tiny_model_dir: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "mine").write_text("x")
    with pytest.raises(StorageError, match="already exists"):
        train(settings(tiny_model_dir, data, tmp_path))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(
    number: signal.Signals, tiny_model_dir: Path, data: Path, tmp_path: Path
) -> None:
    class Stop(BaseException):
        pass

    def stop(*_: Any) -> None:
        raise Stop

    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 3:
            signal.raise_signal(number)

    before = signal.signal(number, stop)
    try:
        with pytest.raises(Stop):
            train(settings(tiny_model_dir, data, tmp_path), observe=interrupt)
    finally:
        signal.signal(number, before)
    (run,) = (tmp_path / "runs").iterdir()
    kept = checkpoint.complete(run / "checkpoints")
    assert [path.name for path in kept] == ["step-000002", "step-000003"]
    assert not (tmp_path / "adapter").exists()


def test_a_checkpoint_restores_weights_and_moments_and_tells_damage(
    tiny_model_dir: Path, data: Path, tmp_path: Path
) -> None:
    result = train(settings(tiny_model_dir, data, tmp_path))
    last = checkpoint.complete(Path(result.run) / "checkpoints")[-1]
    sealed = checkpoint.read(last)
    assert sealed.state["step"] == 6

    loaded = base.load(str(tiny_model_dir))
    lora.attach(loaded.model, rank=16, scale=2.0, seed=5)
    learner = Learner(loaded.model)
    checkpoint.restore(sealed, learner)
    stored = adapter.load(tmp_path / "adapter").tensors
    for name, array in adapter.tensors_of(loaded.model).items():
        assert np.array_equal(np.array(array), np.array(stored[name]))
    state = dict(tree_flatten(learner.optimizer.state))
    assert int(state["step"].item()) == 6
    assert any(name.endswith(".v") for name in state)

    (last / "adapters.safetensors").write_bytes(b"damaged")
    with pytest.raises(StorageError, match="manifest"):
        checkpoint.read(last)
