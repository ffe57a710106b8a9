"""Fidelity numbers against their definition, in float64."""

from __future__ import annotations

import numpy as np
import pytest

import mlx_itune.model  # noqa: F401  (loads the BLAS before mlx.core)

import mlx.core as mx  # isort: skip

import mlx.nn as nn

from mlx_itune.dataset.rendering.render import TokenizedExample
from mlx_itune.export.fusing import fidelity as module
from mlx_itune.export.fusing.fidelity import Reference, _divergence


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("noise", [0.0, 1e-4, 1e-2, 1.0, 30.0])
def test_divergence_is_kl_at_every_distance(noise: float) -> None:
    draw = np.random.default_rng(0)
    p = log_softmax(3 * draw.normal(size=(4, 500)))
    q = log_softmax(p + noise * draw.normal(size=p.shape))
    wanted = (np.exp(p) * (p - q)).sum(axis=-1)
    got = np.array(_divergence(mx.array(p, dtype=mx.float32), mx.array(q, dtype=mx.float32)))
    np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=1e-11)
    assert (got >= 0).all()


class Logits(nn.Module):  # type: ignore[misc]
    """A table of logits, which counts how often it is asked."""

    def __init__(self, seed: int, noise: float) -> None:
        super().__init__()
        base = mx.random.normal((40, 40), key=mx.random.key(0))
        self.lm_head = nn.Linear(40, 40, bias=False)
        self.lm_head.weight = base + noise * mx.random.normal((40, 40), key=mx.random.key(seed))
        self.asked = [0]

    def __call__(self, ids: mx.array) -> mx.array:
        self.asked[0] += 1
        return self.lm_head(mx.eye(40)[ids])


def rows(count: int) -> list[TokenizedExample]:
    draw = np.random.default_rng(0)
    return [
        TokenizedExample(draw.integers(0, 40, 33).astype(np.int32), np.ones(33, np.float32), "row")
        for _ in range(count)
    ]


def test_the_reference_runs_once_and_a_lost_comparison_ends_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference = Logits(1, 0.0)
    held_out = Reference(reference, rows(64))
    assert (held_out.rows, held_out.tokens) == (64, 64 * 32)
    reference.asked[0] = 0
    near, far = Logits(2, 0.01), Logits(3, 1.0)
    close, wide = held_out.compare(near), held_out.compare(far)
    assert reference.asked == [64]
    assert 0 < close.kl_mean < 1e-2 < wide.kl_mean
    assert held_out.compare(near, limit=2 * close.kl_mean) == close
    lost = held_out.compare(far, limit=close.kl_mean)
    assert lost.tokens == 1024
    assert lost.kl_mean == pytest.approx(wide.kl_mean, rel=0.2)
    # What does not fit in memory is run again; the numbers are the same.
    monkeypatch.setattr(module, "_KEPT_BYTES", 10 * 32 * 40 * 4)
    tight = Reference(reference, rows(64))
    reference.asked[0] = 0
    assert tight.compare(far) == wide
    assert tight.compare(far) == wide
    assert reference.asked == [64 + 54]
