"""A step's loss and gradient, however it is computed: every way against rows one by one."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "model"))

from architectures import ARCHITECTURES, STATEFUL, build, furthest

import mlx.core as mx  # isort: skip
from mlx.utils import tree_flatten

from mlx_itune.model.engine.loss import plain_nll
from mlx_itune.training.engine.microbatch import Device, arrange, by_prefix
from mlx_itune.training.engine.prefixes import shared_starts
from mlx_itune.training.engine.step_ways import recomputed_blocks
from tests.training.learners import gradient_of, learner_of


class Row:
    """An example."""

    def __init__(self, input_ids: Any, weights: Any) -> None:
        self.input_ids = np.asarray(input_ids, np.int32)
        self.weights = np.asarray(weights, np.float32)


def some_rows(seed: int = 0) -> list[Row]:
    """Rows with a start in common, one that comes twice, one that learns little, one nothing."""
    rng = np.random.default_rng(seed)
    starts = [rng.integers(0, 300, 60), rng.integers(0, 300, 45), []]
    rows = []
    for number in range(9):
        start = starts[number % 3]
        ids = np.concatenate([start, rng.integers(0, 300, int(rng.integers(3, 40)))])
        weights = (rng.random(ids.size) < 0.4) * rng.choice([0.25, 1.0, 2.0], ids.size)
        weights[0] = 5.0  # Has no context, and counts nowhere.
        rows.append(Row(ids, weights))
    rows.append(Row(rows[0].input_ids, rows[0].weights))
    only = np.zeros(30)
    only[4] = 1.0
    rows.append(Row(rows[1].input_ids[:30], only))
    rows.append(Row(rows[2].input_ids[:5], np.zeros(5)))
    return rows


def one_by_one(model: Any, rows: list[Row]) -> tuple[float, dict[str, Any]]:
    """The definition: full logits of each row alone, one sum of losses over one sum of weights."""
    parameters = model.trainable_parameters()
    weight = sum(float(row.weights[1:].sum()) for row in rows)

    def loss(values: Any) -> Any:
        model.update(values)
        losses = [plain_nll(model, row.input_ids[None], row.weights[None])[0] for row in rows]
        return sum(losses, mx.array(0.0)) / weight

    value, gradients = mx.value_and_grad(loss)(parameters)
    mx.eval(value, gradients)
    model.update(parameters)
    return np.asarray(value).item(), dict(tree_flatten(gradients))


WAYS: dict[str, dict[str, Any]] = {
    "auto": {},
    "plain": {"packing": "off", "prefix_sharing": "off", "gradient_checkpointing": "off"},
    "packing": {"prefix_sharing": "off", "micro_batch_tokens": 100},
    "sharing": {"packing": "off", "micro_batch_tokens": 90},
    "checkpointing": {"packing": "off", "prefix_sharing": "off", "gradient_checkpointing": "on"},
    "all": {"gradient_checkpointing": "on", "micro_batch_tokens": 64},
    "small": {"micro_batch_tokens": 1},
    "tight": {"memory_gb": 1e-9},
}


@pytest.mark.parametrize("name", [*ARCHITECTURES, *STATEFUL])
def test_every_way_gives_the_loss_and_gradient_of_rows_one_by_one(name: str) -> None:
    rows = some_rows()
    model = build(name)
    plain, plain_gradients = one_by_one(model, rows)
    # Each way with one lane and with two, in turns over the architectures.
    first = [*ARCHITECTURES, *STATEFUL].index(name)
    for number, (way, options) in enumerate(WAYS.items(), first):
        learner = learner_of(model, lanes=1 + number % 2, **options)
        loss, gradients = gradient_of(learner, rows)
        assert loss == pytest.approx(plain, rel=1e-6), way
        assert learner.evaluate(rows) == pytest.approx(plain, rel=1e-6), way
        assert furthest(plain_gradients, gradients) < 2e-5, way


@pytest.mark.parametrize("name", ["llama3", "lfm2", "falcon_h1", "qwen3_next"])
def test_a_prefix_in_chunks_is_one(name: str) -> None:
    rng = np.random.default_rng(4)
    start = rng.integers(0, 300, 210)
    rows = [Row([*start, *rng.integers(0, 300, n)], rng.random(210 + n) < 0.4) for n in (9, 21)]
    model = build(name)
    plain, plain_gradients = one_by_one(model, rows)
    learner = learner_of(model, lanes=2, gradient_checkpointing="on")
    loss, gradients = gradient_of(learner, rows)
    assert loss == pytest.approx(plain, rel=1e-6)
    assert furthest(plain_gradients, gradients) < 2e-5


@pytest.mark.parametrize("name", ["llama3", "qwen3", "gemma2", "phi3", "qwen3_moe"])
def test_some_blocks_made_again_change_nothing(name: str) -> None:
    rng = np.random.default_rng(3)
    rows = [Row(rng.integers(0, 300, 420), rng.random(420) < 0.5), *some_rows()]
    model = build(name, num_hidden_layers=5)
    plain, plain_gradients = one_by_one(model, rows)
    learner = learner_of(model, lanes=2)
    # Of so many tokens' activations none, one or three of the five blocks' may stay.
    for kept in (100, 200, 400):
        learner.ways = dataclasses.replace(learner.ways, kept_tokens=kept)
        loss, gradients = gradient_of(learner, rows)
        assert loss == pytest.approx(plain, rel=1e-6)
        # Rounding of five blocks and 420 tokens: up to 2.5e-5 (gemma2), by the CPU's BLAS.
        assert furthest(plain_gradients, gradients) < 4e-5


def test_blocks_made_again_are_as_many_as_memory_asks_for() -> None:
    assert recomputed_blocks(28, 384, 384) == 0
    assert recomputed_blocks(28, 400, 384) == 3
    assert recomputed_blocks(28, 2048, 384) == 24
    assert recomputed_blocks(28, 10**6, 384) == 28
    assert recomputed_blocks(4, 100, 0) == 4
    assert recomputed_blocks(4, 100, float("inf")) == 0


def test_a_learner_says_what_it_does_and_why() -> None:
    llama, other = (learner_of(build(name)).ways.words for name in ("llama3", "llama4"))
    assert llama.keys() == {"head", "packing", "prefix", "checkpointing", "micro_batch_tokens"}
    assert not any(words.startswith("off") for words in llama.values())
    for name in ("packing", "prefix"):
        assert other[name] == "off: its layers keep something of a kind of their own"


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("budget", [1, 64, 150, 10**6])
def test_no_target_is_lost_or_counted_twice(packing: bool, budget: int) -> None:
    rows = some_rows(1)
    wanted: Counter[tuple[int, ...]] = Counter()
    for row in rows:
        for t in np.flatnonzero(row.weights[1:]) + 1:
            wanted[tuple(row.input_ids[: t + 1].tolist())] += float(row.weights[t])
    found: Counter[tuple[int, ...]] = Counter()

    def count(before: list[int], ids: Any, weights: Any, numbers: Any) -> None:
        """Of one row: a target's sequence begins where its number does."""
        for t in np.flatnonzero(weights[1:]) + 1:
            start = int(np.flatnonzero(numbers == numbers[t - 1])[0])
            found[(*before, *ids[start : t + 1].tolist())] += float(weights[t])

    made = arrange(rows, budget, Device(lanes=2), packing=packing, sharing=True)
    for group in by_prefix(made):
        if (prefix := group[0].prefix) is not None:
            count([], prefix.input_ids[0], prefix.weights[0], np.zeros(prefix.tokens))
    for batch in made:
        before = [] if batch.prefix is None else batch.prefix.input_ids[0, :-1].tolist()
        assert sum(part.tokens for part in batch.parts) <= budget or len(batch.parts) == 1
        for part in batch.parts:
            assert part.tokens <= budget or len(part.input_ids) == 1
            segments = np.zeros_like(part.input_ids) if part.segments is None else part.segments
            for ids, weights, numbers in zip(part.input_ids, part.weights, segments, strict=True):
                count(before, ids, weights, numbers)
    assert found.keys() == wanted.keys()
    assert all(found[key] == pytest.approx(wanted[key]) for key in wanted)


def test_groups_of_a_common_start_save_the_most() -> None:
    rng = np.random.default_rng(0)
    system, task = rng.integers(0, 50, 200), rng.integers(0, 50, 150)
    deep = [np.concatenate([system, task, rng.integers(0, 50, 9)]) for _ in range(4)]
    flat = [np.concatenate([system, rng.integers(50, 99, 9)]) for _ in range(3)]
    other = [rng.integers(50, 99, 30) for _ in range(3)]
    groups = shared_starts([*deep, *flat, *other])
    assert sorted(index for members, _ in groups for index in members) == list(range(10))
    found = {tuple(sorted(members)): tokens for members, tokens in groups}
    assert found == {(0, 1, 2, 3): 349, (4, 5, 6): 199, (7, 8, 9): 0}
    assert all(tokens % 16 == 0 for _, tokens in shared_starts(deep, 16))
    assert [tokens for _, tokens in shared_starts(other)] == [0]
