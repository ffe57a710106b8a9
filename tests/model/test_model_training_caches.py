"""Caches through which gradients flow: packing, shared prefixes, and what a probe makes of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from architectures import ARCHITECTURES, PLACED, STATEFUL, build, furthest

import mlx.core as mx  # isort: skip
from mlx.utils import tree_flatten

from mlx_itune.model.engine import cpu, cpu_attention, rotary
from mlx_itune.model.engine.checkpointing import checkpointed_blocks
from mlx_itune.model.engine.loss import plain_nll, weighted_nll
from mlx_itune.model.engine.probe import probe
from mlx_itune.model.engine.training_caches import Rows, caches, recorded


def _mask(lengths: list[int], shared: int, window: int | None) -> Any:
    """The definition, token by token."""
    places = [(n, shared + t) for n, size in enumerate(lengths) for t in range(size)]
    keys = [(None, t) for t in range(shared)] + places
    return np.array(
        [
            [
                (of in (None, row)) and key <= query and (window is None or query - key < window)
                for of, key in keys
            ]
            for row, query in places
        ]
    )


@pytest.mark.parametrize(
    ("lengths", "shared", "window"),
    [
        ([200], 0, None),
        ([100, 33, 150, 1], 0, None),
        ([100, 33, 150], 40, None),
        ([100, 33, 160], 40, 30),
        ([300], 0, 20),
        ([5, 3, 1], 9, 6),
        ([90, 7], 7, 200),
    ],
)
def test_attention_by_blocks_is_the_masked_one(
    lengths: list[int], shared: int, window: int | None
) -> None:
    keys = mx.random.split(mx.random.key(0), 4)
    tokens = sum(lengths)
    q = mx.random.normal((1, 4, tokens, 16), key=keys[0])
    k = mx.random.normal((1, 2, shared + tokens, 16), key=keys[1])
    v = mx.random.normal((1, 2, shared + tokens, 24), key=keys[2])
    wanted = mx.random.normal((1, 4, tokens, 24), key=keys[3])
    mask = mx.array(_mask(lengths, shared, window))
    plans = (
        cpu_attention.causal_plan(lengths, shared, window),
        cpu_attention.dense_plan(tokens, shared + tokens, mask),
    )

    def plain(q: Any, k: Any, v: Any) -> Any:
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.25, mask=mask)
        return (out * wanted).sum()

    expected = mx.value_and_grad(plain, argnums=(0, 1, 2))(q, k, v)
    for plan in plans:
        ours = mx.value_and_grad(
            lambda q, k, v, plan=plan: (cpu_attention.attend(q, k, v, 0.25, plan) * wanted).sum(),
            argnums=(0, 1, 2),
        )(q, k, v)
        assert np.allclose(np.array(ours[0]), np.array(expected[0]), rtol=1e-5, atol=1e-4)
        for one, other in zip(ours[1], expected[1], strict=True):
            assert np.abs(np.array(one - other)).max() < 5e-6 * np.abs(np.array(other)).max()


@pytest.mark.parametrize(
    ("lengths", "shared", "window"), [([[4, 3, 2]], 3, None), ([[5, 4], [9]], 2, 4)]
)
def test_the_mask_array_is_the_definition(
    lengths: list[list[int]], shared: int, window: int | None
) -> None:
    made = np.array(Rows(9, lengths, shared).mask(True, window))
    for row, sizes in enumerate(lengths):
        ours = made if made.ndim == 2 else made[row, 0]
        assert np.array_equal(ours, _mask(sizes, shared, window))


def _differentiated(model: Any, loss: Any) -> tuple[float, dict[str, Any]]:
    parameters = model.trainable_parameters()

    def of(values: Any) -> Any:
        model.update(values)
        return loss()

    value, gradients = mx.value_and_grad(of)(parameters)
    mx.eval(value, gradients)
    model.update(parameters)
    return np.asarray(value).item(), dict(tree_flatten(gradients))


# All sequences in one row, as on a CPU, or two rows of two, as on a GPU.
ONE_ROW, TWO_ROWS = ((0, 1, 2, 3),), ((0, 1), (2, 3))


@pytest.mark.parametrize(
    ("name", "special", "bins"),
    [
        (name, special, bins)
        for name in ARCHITECTURES
        for special, bins in ((True, ONE_ROW), (False, ONE_ROW), (False, TWO_ROWS))
        # Its attention cannot take a mask that differs between rows; a probe on a GPU finds it.
        if (name, bins) != ("gemma2", TWO_ROWS)
    ],
)
def test_everything_at_once_equals_rows_one_by_one(
    name: str, special: bool, bins: tuple[tuple[int, ...], ...]
) -> None:
    """Packed sequences behind one prefix, padding at the end, blocks recomputed, head in chunks."""
    model = build(name)
    count = len(model.layers)
    rng = np.random.default_rng(3)
    start = rng.integers(0, 300, 11)
    rows = [np.concatenate([start, rng.integers(0, 300, n)]) for n in (31, 17, 9, 24)]
    weights = [(rng.random(r.size) * (rng.random(r.size) < 0.5)).astype(np.float32) for r in rows]

    def one_by_one() -> Any:
        losses = [plain_nll(model, r[None], w[None])[0] for r, w in zip(rows, weights, strict=True)]
        return sum(losses, mx.array(0.0))

    plain, plain_gradients = _differentiated(model, one_by_one)
    rotary.install(model)
    if special:
        cpu.specialize(model)
    behind = [(r[10:], np.append(0, w[11:])) for r, w in zip(rows, weights, strict=True)]
    width = 3 + max(sum(behind[i][0].size for i in chosen) for chosen in bins)
    ids, learned = np.zeros((len(bins), width), np.int32), np.zeros((len(bins), width), np.float32)
    for row, chosen in enumerate(bins):
        for array, part in ((ids, 0), (learned, 1)):
            joined = np.concatenate([behind[i][part] for i in chosen])
            array[row, : joined.size] = joined
    lengths = [[behind[i][0].size for i in chosen] for chosen in bins]
    common = np.sum([w[:11] for w in weights], axis=0)

    def at_once(nll: Any, recompute: bool) -> Any:
        ahead = caches(count, Rows(10), record=True)
        with checkpointed_blocks(model, None if recompute else 0):
            total = nll(model, start[None], common[None], caches=ahead)[0]
            made = caches(count, Rows(width - 1, lengths, 10), recorded(ahead))
            return total + nll(model, ids, learned, caches=made)[0]

    for nll, recompute in ((plain_nll, False), (weighted_nll, False), (weighted_nll, True)):
        ours, gradients = _differentiated(model, lambda n=nll, r=recompute: at_once(n, r))
        assert ours == pytest.approx(plain, rel=1e-6)
        assert furthest(plain_gradients, gradients) < 2e-5


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_probe_finds_every_way_exact(name: str) -> None:
    model = build(name)
    cpu.specialize(model)
    before = dict(tree_flatten(model.parameters()))
    found = probe(model)
    assert found.reasons == {}
    assert found.head and found.packing and found.sharing and found.packing_and_sharing
    assert found.checkpointing and found.cache_count == len(model.layers)
    after = dict(tree_flatten(model.parameters()))
    assert all(after[path] is array for path, array in before.items())


@pytest.mark.parametrize("name", STATEFUL)
def test_the_probe_leaves_models_with_other_states_alone(name: str) -> None:
    found = probe(build(name))
    assert not (found.caches or found.packing or found.sharing)
    assert "more than keys and values" in found.reasons["packing"]
    assert found.head and found.checkpointing


@pytest.mark.parametrize("name", PLACED)
def test_the_probe_refuses_packing_where_absolute_places_count(name: str) -> None:
    found = probe(build(name))
    assert not found.packing and "differs" in found.reasons["packing"]
    assert found.sharing and found.head and found.checkpointing


def test_the_probe_sees_what_a_way_does_to_the_numbers() -> None:
    """A layer that uses absolute places: packing changes them, a shared prefix does not."""
    model = build("llama")
    layer = model.layers[0]

    class Absolute(type(layer)):  # type: ignore[misc]
        """A block whose input depends on where the row's first token stands."""

        def __call__(self, x: Any, mask: Any = None, cache: Any = None) -> Any:
            first = 0 if cache is None else int(cache.offset)
            places = mx.arange(first, first + x.shape[1]).astype(mx.float32)
            return super().__call__(x * (1 + 0.1 * places)[None, :, None], mask, cache)

    layer.__class__ = Absolute
    found = probe(model)
    assert not found.packing and "differs" in found.reasons["packing"]
    assert found.sharing and not found.packing_and_sharing
