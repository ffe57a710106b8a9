"""Fidelity numbers against their definition, in float64."""

from __future__ import annotations

import numpy as np
import pytest

import mlx_itune.model  # noqa: F401  (loads the BLAS before mlx.core)

import mlx.core as mx  # isort: skip

from mlx_itune.export.fidelity import _divergence


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
