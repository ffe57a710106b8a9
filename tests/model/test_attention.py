"""Attention by blocks is MLX's, over all families: short and packed rows, windows, prefixes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from architectures import FAMILIES, build, furthest

import mlx.core as mx  # isort: skip
import numpy as np
from mlx.utils import tree_flatten

from mlx_itune.model.engine import attention, training_caches
from mlx_itune.model.engine.checkpointing import checkpointed_blocks
from mlx_itune.model.engine.loss import plain_nll, weighted_nll
from mlx_itune.model.engine.probe import Exact, exact_ways

# Attention of their own, or scores that are added to.
OWN = {"gemma2", "deepseek_v3", "glm4_moe_lite", "kimi_linear", "mamba2"}
TOKENS, AHEAD = 21, 7
PLAIN = mx.fast.scaled_dot_product_attention


def losses(model: Any, exact: Exact, ways: str) -> Any:
    """Of three rows: alone, packed, or behind a prefix that is learned, too."""
    nll: Any = weighted_nll if exact.head else plain_nll
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 32, (3, TOKENS + 1))
    weights = (rng.random(ids.shape) < 0.7).astype(np.float32)
    if ways == "alone":
        return nll(model, ids, weights)[0]
    kinds = exact.caches
    if ways == "packed":
        numbers = np.repeat([[1, 2, 3]], TOKENS // 3, axis=1).repeat(3, axis=0)
        layout = training_caches.Pass(TOKENS, mx.array(numbers.astype(np.int32)))
        return nll(model, ids, weights, caches=training_caches.caches(kinds, layout))[0]
    made = training_caches.caches(kinds, training_caches.Pass(AHEAD), record=True)
    first = ids[:1, : AHEAD + 1]
    total = nll(model, first, np.ones(first.shape), caches=made)[0]
    shared = training_caches.recorded(made)
    behind = training_caches.caches(kinds, training_caches.Pass(TOKENS, None, AHEAD, 3), shared)
    return total + nll(model, ids, weights, caches=behind)[0]


def computed(
    model: Any, exact: Exact, ways: str, recomputed: int = 0
) -> tuple[float, dict[str, Any]]:
    parameters = model.trainable_parameters()

    def loss(values: Any) -> Any:
        model.update(values)
        with checkpointed_blocks(model, recomputed):
            return losses(model, exact, ways)

    value, gradients = mx.value_and_grad(loss)(parameters)
    mx.eval(value, gradients)
    model.update(parameters)
    return np.asarray(value).item(), dict(tree_flatten(gradients))


def rounded_otherwise(q: Any, k: Any, v: Any, *, scale: float, **more: Any) -> Any:
    """MLX's, for how much of a difference is rounding."""
    return PLAIN(q * (3.0 * scale), k, v, scale=1 / 3.0, **more)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "bitnet"])
def test_blocks_are_the_same_function(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name).train()
    calls: list[int] = []
    forward = attention._Blocks.forward
    monkeypatch.setattr(
        attention._Blocks, "forward", lambda *given: calls.append(1) or forward(*given)
    )
    exact = exact_ways(model)
    fitting = {"alone": True, "packed": exact.packing, "prefix": exact.sharing}
    for ways in (name for name, fits in fitting.items() if fits):
        loss, gradients = computed(model, exact, ways)
        with monkeypatch.context() as patch:
            patch.setattr(mx.fast, "scaled_dot_product_attention", rounded_otherwise)
            own = furthest(gradients, computed(model, exact, ways)[1])
        assert not calls
        with attention.by_blocks(block=5):
            found, other = computed(model, exact, ways, recomputed=1)
        assert found == pytest.approx(loss, rel=1e-6)
        assert furthest(gradients, other) < max(2e-5, 3 * own)
        assert bool(calls) != (name in OWN)
        calls.clear()
