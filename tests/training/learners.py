"""Learners without a run: the settings of one, of which a test changes what it is about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)

import mlx.core as mx  # isort: skip
import numpy as np

from mlx_itune.training.engine.microbatch import by_prefix
from mlx_itune.training.engine.step import Learner
from mlx_itune.training.settings import TrainSettings, settings_from


def settings_of(**more: Any) -> TrainSettings:
    return settings_from({"model": "m", "data": Path("d"), "out": Path("o"), **more})


def learner_of(model: Any, *, lanes: int = 1, **more: Any) -> Learner:
    return Learner(model, settings_of(**more), lanes=lanes)


def gradient_of(learner: Learner, rows: Any) -> tuple[float, dict[str, Any]]:
    """The loss of a step and its gradient by name; nothing is learned."""
    learner.model.train()
    groups = by_prefix(learner.arranged(rows))
    share = mx.array(1 / sum(float(row.weights[1:].sum()) for row in rows))
    loss, gradients = learner.summed(groups, share)
    mx.eval(loss, gradients)
    return np.asarray(loss).item(), learner.optimizer.named(gradients)
