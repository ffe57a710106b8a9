"""This year's families: what is said to be exact for them is, and all of them train.

families.json holds a tiny config of each; weights are random, in float32.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)

import mlx.core as mx  # isort: skip
from mlx.utils import tree_flatten, tree_map
from mlx_lm.utils import _get_classes

from mlx_itune.kit.errors import ModelError
from mlx_itune.model.adapters import lora
from mlx_itune.model.engine.probe import exact_ways, probe
from tests.training.learners import learner_of

FAMILIES = json.loads((Path(__file__).parent / "families.json").read_text())
# Ways that a probe finds, and what is said of these architectures without one: the same.
REFUSED = {"bitnet": "no linear layer to adapt"}


def built(name: str) -> Any:
    config = FAMILIES[name]
    kind, arguments = _get_classes(config=config)
    model = kind(arguments.from_dict(config))
    flat = tree_flatten(model.parameters())
    keys = mx.random.split(mx.random.key(0), len(flat))
    drawn = [
        (path, mx.random.normal(a.shape, key=key) * (a.shape or (1,))[-1] ** -0.5 + (a.ndim == 1))
        for key, (path, a) in zip(keys, flat, strict=True)
        if mx.issubdtype(a.dtype, mx.floating)
    ]
    model.load_weights(drawn, strict=False)
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_known_of_a_family_is_what_a_trial_finds(name: str) -> None:
    model = built(name)
    if name in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[name]):
            lora.attach(model, rank=4, scale=2.0)
        return
    lora.attach(model, rank=4, scale=2.0)
    model.update(
        tree_map(lambda a: a + 0.05 * mx.random.normal(a.shape), model.trainable_parameters())
    )
    known, found = exact_ways(model), probe(model)
    for way in ("head", "packing", "sharing", "checkpointing", "cache_count"):
        assert getattr(known, way) == getattr(found, way), (way, found.reasons)
    assert known.reasons.keys() == found.reasons.keys()
    learner = learner_of(model)
    row = type("Row", (), {"input_ids": np.arange(5, 25, dtype=np.int32)})()
    row.weights = np.ones(20, np.float32)
    before = learner.evaluate([row])
    for _ in range(4):
        learner.step([row], 5e-3)
    learner.finish()
    assert learner.evaluate([row]) < before
