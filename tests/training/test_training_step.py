"""A step's mathematics does not depend on how it is computed; settings, schedule, microbatches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx.utils import tree_flatten

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)
from mlx_itune.kit.errors import DivergedError
from mlx_itune.model.adapters import lora
from mlx_itune.model.engine.loss import plain_nll, weighted_nll
from mlx_itune.model.loading import base
from mlx_itune.training.engine.job import learning_rate
from mlx_itune.training.engine.microbatch import split
from mlx_itune.training.engine.step import Lanes, Learner
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


def furthest(first: Any, second: Any) -> float:
    one, two = dict(tree_flatten(first)), dict(tree_flatten(second))
    # B starts at zero, so A's first gradient is zero in both.
    largest = {name: float(abs(np.array(one[name])).max()) for name in one}
    return max(
        float(abs(np.array(one[name]) - np.array(two[name])).max()) / largest[name]
        for name in one
        if largest[name]
    )


@pytest.mark.parametrize("lanes", [1, 3])
def test_any_microbatching_gives_the_same_loss_and_gradient(
    tiny_model_dir: Path, lanes: int
) -> None:
    examples = rows(9)
    plain = learner(tiny_model_dir, nll=plain_nll, lanes=Lanes(1))
    loss, weight, gradient = plain.gradients(split(examples, 10**9))
    for budget in (1, 150, 400, 10**9):
        ours = learner(tiny_model_dir, nll=weighted_nll, lanes=Lanes(lanes))
        our_loss, our_weight, our_gradient = ours.gradients(split(examples, budget))
        assert our_loss == pytest.approx(loss, rel=1e-6)
        assert our_weight == pytest.approx(weight)
        assert furthest(gradient, our_gradient) < 2e-5
        ours.lanes.close()


def test_microbatches_keep_every_token_and_weight() -> None:
    examples = rows(20)
    for budget in (1, 128, 700, 10**6):
        parts = split(examples, budget)
        assert sum(len(part.input_ids) for part in parts) == 20
        for name in ("input_ids", "weights"):
            total = sum(float(getattr(part, name).sum()) for part in parts)
            assert total == pytest.approx(sum(float(getattr(e, name).sum()) for e in examples))
        assert all(len(p.input_ids) == 1 or p.tokens <= budget + len(p.input_ids) for p in parts)


def test_learning_lowers_the_loss_and_evaluating_changes_nothing(tiny_quantized_dir: Path) -> None:
    ours = learner(tiny_quantized_dir)
    examples = rows(6)
    before = ours.evaluate(examples)
    assert ours.evaluate(examples) == pytest.approx(before, rel=1e-6)
    first = ours.step(examples, 5e-3)
    assert first.loss == pytest.approx(before, rel=1e-5)
    assert first.supervised_tokens == sum(int((e.weights[1:] > 0).sum()) for e in examples)
    for _ in range(8):
        ours.step(examples, 5e-3)
    assert ours.evaluate(examples) < before - 0.2


def test_bad_steps_are_skipped_and_five_in_a_row_end_the_run(tiny_model_dir: Path) -> None:
    ours = learner(tiny_model_dir)
    before = [np.array(a) for _, a in tree_flatten(ours.model.trainable_parameters())]
    bad = [Row(rows(1)[0].input_ids, np.full(len(rows(1)[0].input_ids), np.inf, np.float32))]
    for _ in range(4):
        assert ours.step(bad, 1e-3).skipped
    after = [np.array(a) for _, a in tree_flatten(ours.model.trainable_parameters())]
    assert all(np.array_equal(x, y) for x, y in zip(before, after, strict=True))
    with pytest.raises(DivergedError, match="5 steps in a row"):
        ours.step(bad, 1e-3)


def test_the_gradient_is_clipped_by_its_global_norm(tiny_model_dir: Path) -> None:
    # AdamW's first update does not depend on the gradient's size; its moments do.
    examples = rows(4)
    free, clipped = (learner(tiny_model_dir, clip_norm=norm) for norm in (0.0, 1e-3))
    norm = free.step(examples, 1e-3).gradient_norm
    assert clipped.step(examples, 1e-3).gradient_norm == pytest.approx(norm, rel=1e-6)
    moments = [
        np.sqrt(
            sum(
                float((a**2).sum().item())
                for n, a in x.optimizer.arrays().items()
                if n.endswith(".m")
            )
        )
        for x in (free, clipped)
    ]
    assert moments[1] / moments[0] == pytest.approx(1e-3 / norm, rel=1e-3)


def test_schedule() -> None:
    options: Any = {"peak": 1.0, "warmup": 0.1}
    rates = [learning_rate(step, 100, **options) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 1e-3
    assert learning_rate(50, 100, peak=1.0, warmup=5.0, schedule="constant") == 1.0
    assert learning_rate(100, 100, peak=1.0, warmup=0.0, schedule="linear") == pytest.approx(0.01)
    assert learning_rate(1, 1, peak=1.0, warmup=0.5) == 1.0
