"""The loss: one shift, exact weights, and the fast way equal to the plain one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from architectures import ARCHITECTURES, build, furthest, loss_and_gradients

import mlx.core as mx  # isort: skip

from mlx_itune.model.engine import cpu, loss
from mlx_itune.model.engine.probe import choose_nll


def _rows(shape: tuple[int, int] = (3, 130), seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 300, shape).astype(np.int32)
    weights = (rng.random(shape) < 0.3) * rng.choice([0.5, 1.0, 2.0], shape)
    return ids, weights.astype(np.float32)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_fast_path_equals_the_plain_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "chunk_rows", lambda *_: 64)
    model = build(name)
    ids, weights = _rows()
    plain, plain_gradients = loss_and_gradients(model, loss.plain_nll, ids, weights)
    fast, fast_gradients = loss_and_gradients(model, loss.weighted_nll, ids, weights)
    assert choose_nll(model) is loss.weighted_nll
    assert fast == pytest.approx(plain, rel=1e-6)
    assert furthest(plain_gradients, fast_gradients) < 2e-5


def test_loss_is_the_definition_token_by_token() -> None:
    model = build("llama3")
    ids, weights = _rows((2, 9))
    total, weight = loss.weighted_nll(model, ids, weights)
    logits = np.array(model(mx.array(ids)), dtype=np.float64)
    expected = 0.0
    for b in range(2):
        for t in range(1, 9):
            row = logits[b, t - 1]
            log_p = row[ids[b, t]] - np.log(np.exp(row - row.max()).sum()) - row.max()
            expected -= weights[b, t] * log_p
    assert np.asarray(total).item() == pytest.approx(expected, rel=1e-5)
    assert np.asarray(weight).item() == pytest.approx(float(weights[:, 1:].sum()))


def test_neither_way_loses_digits_over_a_large_vocabulary() -> None:
    """A running float32 sum of 50,000 exponentials would be off by 1e-4."""
    logits = mx.random.normal((7, 50_001), key=mx.random.key(3)) * 4
    targets = mx.arange(7) * 7000
    exact = np.array(logits, np.float64)
    lse = np.log(np.exp(exact).sum(-1))
    assert np.abs(np.array(loss.log_sum_exp(logits)) - lse).max() < 5e-6
    nll = np.array(cpu.nll(logits, targets)[0])
    assert np.abs(nll - (lse - exact[np.arange(7), np.array(targets)])).max() < 1e-5


def test_pads_change_nothing() -> None:
    model = build("llama3")
    ids, weights = _rows((2, 20))
    wide_ids, wide_weights = (np.pad(a, ((0, 0), (0, 11))) for a in (ids, weights))
    narrow, narrow_gradients = loss_and_gradients(model, loss.weighted_nll, ids, weights)
    wide, wide_gradients = loss_and_gradients(model, loss.weighted_nll, wide_ids, wide_weights)
    assert wide == pytest.approx(narrow, rel=1e-6)
    assert furthest(narrow_gradients, wide_gradients) < 2e-5


def test_rows_with_nothing_to_learn_give_zero() -> None:
    ids, _ = _rows((2, 6))
    total, weight = loss.weighted_nll(build("llama3"), ids, np.zeros((2, 6), np.float32))
    assert (np.asarray(total).item(), np.asarray(weight).item()) == (0.0, 0.0)


def test_an_architecture_it_does_not_fit_takes_the_plain_path() -> None:
    import mlx.nn as nn

    class Odd(nn.Module):  # type: ignore[misc]
        """No stack of blocks under a name."""

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(300, 8), nn.Linear(8, 300)

        def __call__(self, ids: Any) -> Any:
            return self.out(self.embed(ids))

    model = Odd()
    assert choose_nll(model) is loss.plain_nll
    ids, weights = _rows((2, 12))
    assert np.asarray(loss.plain_nll(model, ids, weights)[0]).item() > 0
