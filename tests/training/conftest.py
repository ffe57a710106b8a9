"""A small data set, and the settings of a run of a few steps on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.training.settings import TrainSettings, settings_from
from tests.crash.small_run import write_data

Settings = Callable[..., TrainSettings]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """10 rows to learn, 3 to validate."""
    return write_data(tmp_path / "data", 10, 3)


@pytest.fixture
def settings(tiny_model_dir: Path, data: Path, tmp_path: Path) -> Settings:
    """Settings of 6 steps with a checkpoint every 2; keyword arguments change them."""

    def made(**more: Any) -> TrainSettings:
        values: dict[str, Any] = {
            "model": str(tiny_model_dir),
            "data": data,
            "out": tmp_path / "adapter",
            "runs": tmp_path / "runs",
            "epochs": 2.0,
            "batch_size": 4,
            "rank": 4,
            "keys": ("self_attn.q_proj", "mlp.down_proj"),
            "learning_rate": 5e-3,
            "save_every": 2,
            "offline": True,
        }
        return settings_from({**values, **more})

    return made
