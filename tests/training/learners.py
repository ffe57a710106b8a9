"""Learners without a run: the settings of one, of which a test changes what it is about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)
from mlx_itune.training.engine.step import Lanes, Learner
from mlx_itune.training.settings import TrainSettings, settings_from


def settings_of(**more: Any) -> TrainSettings:
    return settings_from({"model": "m", "data": Path("d"), "out": Path("o"), **more})


def learner_of(model: Any, *, lanes: Lanes | None = None, nll: Any = None, **more: Any) -> Learner:
    return Learner(model, settings_of(**more), lanes=lanes, nll=nll)
