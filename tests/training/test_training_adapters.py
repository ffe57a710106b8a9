"""Every kind of adapter in the engine: exact fast paths, a loss that falls, an exact restart."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)

import mlx.core as mx  # isort: skip
from mlx.utils import tree_flatten

from mlx_itune.model.adapters import adapter, lora
from mlx_itune.model.engine.loss import plain_nll
from mlx_itune.model.loading import base
from mlx_itune.training.engine.footprint import Row
from mlx_itune.training.engine.step import Learner
from tests.training.learners import gradient_of, learner_of


def rows(count: int, seed: int = 0) -> list[Row]:
    """Rows that begin alike, as under one system prompt."""
    rng = np.random.default_rng(seed)
    prefix = rng.integers(6, 300, 40)
    made = []
    for _ in range(count):
        ids = np.concatenate([prefix, rng.integers(6, 300, int(rng.integers(5, 40)))])
        weights = (rng.random(len(ids)) < 0.4).astype(np.float32)
        weights[:40], weights[-1] = 0, 1
        made.append(Row(ids.astype(np.int32), weights))
    return made


def learner(path: Path, kind: str, mode: str = "auto", **options: Any) -> Learner:
    loaded = base.load(str(path), compute=mode)
    lora.attach(loaded.model, rank=4, scale=2.0, seed=7, kind=kind)
    key = mx.random.key(1)
    start = [
        (name, a + 0.02 * mx.random.normal(a.shape, key=key))
        for name, a in adapter.tensors_of(loaded.model).items()
    ]
    loaded.model.load_weights(start, strict=False)
    loaded.model.train()
    return learner_of(loaded.model, **options)


@pytest.mark.parametrize("way", ["packing", "prefix_sharing", "gradient_checkpointing"])
@pytest.mark.parametrize("kind", ["dora", "grid", "qalora"])
def test_fast_paths_are_exact(kind: str, way: str, tiny_quantized_dir: Path) -> None:
    ways = dict.fromkeys(("packing", "prefix_sharing", "gradient_checkpointing"), "off")
    examples = rows(6)
    plain = learner(tiny_quantized_dir, kind, **ways)
    plain.ways = dataclasses.replace(plain.ways, head=False)
    fast = learner(tiny_quantized_dir, kind, **{**ways, way: "on"})
    (loss, gradient), (our_loss, ours) = (gradient_of(each, examples) for each in (plain, fast))
    assert our_loss == pytest.approx(loss, rel=1e-6)
    for name, array in gradient.items():
        difference = mx.abs(array - ours[name]).max().item()
        assert difference <= 2e-5 * mx.abs(array).max().item(), name


@pytest.mark.parametrize("mode", ["dequantized", "quantized"])
@pytest.mark.parametrize("kind", lora.KINDS)
def test_layers_are_given_together_what_each_makes(
    kind: str, mode: str, tiny_quantized_dir: Path
) -> None:
    ours, examples = learner(tiny_quantized_dir, kind, mode), rows(3)
    loss, gradient = gradient_of(ours, examples)

    def alone(factors: Any) -> mx.array:
        ours.model.update(factors)
        parts = [(mx.array(e.input_ids)[None], mx.array(e.weights)[None]) for e in examples]
        sums = [plain_nll(ours.model, ids, weights)[0] for ids, weights in parts]
        return sum(sums, mx.array(0.0)) / sum(float(e.weights[1:].sum()) for e in examples)

    value, own = mx.value_and_grad(alone)(ours.model.trainable_parameters())
    assert loss == pytest.approx(value.item(), rel=1e-6)
    for name, array in tree_flatten(own):
        difference = mx.abs(array - gradient[name]).max().item()
        assert difference <= 2e-5 * mx.abs(array).max().item(), name


@pytest.mark.parametrize("mode", ["dequantized", "quantized"])
@pytest.mark.parametrize("kind", lora.KINDS)
def test_learning_lowers_the_loss(kind: str, mode: str, tiny_quantized_dir: Path) -> None:
    ours = learner(tiny_quantized_dir, kind, mode)
    examples = rows(4)
    before = ours.evaluate(examples)
    for _ in range(6):
        ours.step(examples, 5e-3)
    assert ours.evaluate(examples) < before - 0.2


@pytest.mark.parametrize("kind", lora.KINDS)
def test_factors_and_state_are_all_that_a_step_depends_on(
    kind: str, tiny_quantized_dir: Path
) -> None:
    whole, resumed = (learner(tiny_quantized_dir, kind, lora_plus_ratio=4.0) for _ in range(2))
    for seed in range(2):
        whole.step(rows(3, seed), 1e-3)
    whole.finish()
    kept = {n: mx.array(np.array(a)) for n, a in adapter.tensors_of(whole.model).items()}
    state = whole.optimizer.arrays(whole.states)
    resumed.model.load_weights(list(kept.items()), strict=False)
    resumed.restore({n: mx.array(np.array(a)) for n, a in state.items()})
    for ours in (whole, resumed):
        ours.step(rows(3, 5), 1e-3)
        ours.finish()
    last = [adapter.tensors_of(ours.model) for ours in (whole, resumed)]
    for name, array in last[0].items():
        assert np.array_equal(np.array(array), np.array(last[1][name])), name
