"""A step's mathematics does not depend on how it is computed; settings, schedule, microbatches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)

import mlx.core as mx  # isort: skip
from mlx_itune.model.adapters import lora
from mlx_itune.model.loading import base
from mlx_itune.training.engine.job import learning_rate
from mlx_itune.training.engine.microbatch import by_prefix
from mlx_itune.training.engine.step import Learner, StepMetrics
from tests.training.learners import learner_of


@dataclass(frozen=True, eq=False)
class Row:
    input_ids: Any
    weights: Any


def rows(count: int, seed: int = 0, longest: int = 90) -> list[Row]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        length = int(rng.integers(5, longest))
        weights = (rng.random(length) < 0.4) * rng.choice([0.5, 1.0], length)
        weights[-1] = 1.0
        ids = rng.integers(6, 300, length).astype(np.int32)
        made.append(Row(ids, weights.astype(np.float32)))
    return made


def learner(path: Path, **options: Any) -> Learner:
    loaded = base.load(str(path))
    lora.attach(loaded.model, rank=4, scale=2.0, seed=7)
    return learner_of(loaded.model, **options)


def learned(ours: Learner, examples: Any, rate: float) -> StepMetrics:
    """One step from beginning to end."""
    assert ours.step(examples, rate) is None
    metrics = ours.finish()
    assert metrics is not None
    return metrics


def test_learning_lowers_the_loss_and_evaluating_changes_nothing(tiny_quantized_dir: Path) -> None:
    ours = learner(tiny_quantized_dir)
    examples = rows(6)
    before = ours.evaluate(examples)
    assert ours.evaluate(examples) == pytest.approx(before, rel=1e-6)
    first = learned(ours, examples, 5e-3)
    assert first.loss == pytest.approx(before, rel=1e-5)
    assert first.supervised_tokens == sum(int((e.weights[1:] > 0).sum()) for e in examples)
    for _ in range(8):
        learned(ours, examples, 5e-3)
    assert ours.evaluate(examples) < before - 0.2


def test_a_step_s_numbers_come_with_the_next_and_are_the_same(tiny_model_dir: Path) -> None:
    late, waiting = learner(tiny_model_dir), learner(tiny_model_dir)
    batches = [rows(4, seed) for seed in range(4)]
    expected = [learned(waiting, batch, 1e-2) for batch in batches]
    assert late.step(batches[0], 1e-2) is None
    found = [late.step(batch, 1e-2) for batch in batches[1:]]
    assert [*found, late.finish()] == expected
    assert late.finish() is None
    for one, other in zip(late.held, waiting.held, strict=True):
        assert np.array_equal(np.array(one), np.array(other))


def test_a_step_that_is_not_finite_changes_nothing(tiny_model_dir: Path) -> None:
    ours = learner(tiny_model_dir)
    learned(ours, rows(3), 1e-3)
    before = [np.array(array) for _, array in tree_flatten([ours.held, ours.states])]
    ids = rows(1)[0].input_ids
    for bad in (np.inf, np.nan):
        assert learned(ours, [Row(ids, np.full(len(ids), bad, np.float32))], 1e-3).skipped
    after = [np.array(array) for _, array in tree_flatten([ours.held, ours.states])]
    assert all(np.array_equal(x, y) for x, y in zip(before, after, strict=True))


def test_the_gradient_is_clipped_by_its_global_norm(tiny_model_dir: Path) -> None:
    # AdamW's first update does not depend on the gradient's size; its moments do.
    examples = rows(4)
    free, clipped = (learner(tiny_model_dir, clip_norm=norm) for norm in (0.0, 1e-3))
    norm = learned(free, examples, 1e-3).gradient_norm
    assert learned(clipped, examples, 1e-3).gradient_norm == pytest.approx(norm, rel=1e-6)
    moments = [
        np.linalg.norm([np.linalg.norm(a) for n, a in named.items() if n.endswith(".m")])
        for named in (x.optimizer.arrays(x.states) for x in (free, clipped))
    ]
    assert moments[1] / moments[0] == pytest.approx(1e-3 / norm, rel=1e-3)


def test_dropout_is_a_function_of_its_key_and_made_again_alike(tiny_model_dir: Path) -> None:
    loaded = base.load(str(tiny_model_dir))
    lora.attach(loaded.model, rank=4, scale=2.0, seed=7, dropout=0.4)
    key, found = mx.random.key(3), []
    moved = tree_map(lambda a: a + 0.1 * mx.ones(a.shape), loaded.model.trainable_parameters())
    loaded.model.update(moved)
    for checkpointing in ("off", "on"):
        ours = learner_of(loaded.model, lanes=2, gradient_checkpointing=checkpointing)
        ours.model.train()
        groups = by_prefix(ours.arranged(rows(6)))
        for drawn in (key, key, mx.random.key(4)):
            loss, gradient = ours.summed(groups, mx.array(1.0), drawn)
            found.append((loss.item(), np.array(gradient[0])))
    for one, other in ((0, 1), (0, 3), (2, 5)):
        assert found[one][0] == pytest.approx(found[other][0], rel=1e-6)
        assert np.allclose(found[one][1], found[other][1], rtol=1e-4, atol=1e-5)
    assert found[0][0] != pytest.approx(found[2][0], rel=1e-4)


def test_schedule() -> None:
    options: Any = {"peak": 1.0, "warmup": 0.1}
    rates = [learning_rate(step, 100, **options) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 1e-3
    assert learning_rate(50, 100, peak=1.0, warmup=5.0, schedule="constant") == 1.0
    assert learning_rate(100, 100, peak=1.0, warmup=0.0, schedule="linear") == pytest.approx(0.01)
    assert learning_rate(1, 1, peak=1.0, warmup=0.5) == 1.0
