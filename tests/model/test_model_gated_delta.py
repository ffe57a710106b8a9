"""The gated delta rule in chunks against the recurrence in float64, forward and backward."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from architectures import build

import mlx.core as mx  # isort: skip
from mlx_lm.models import gated_delta

from mlx_itune.model.engine.gated_delta import chunked, in_chunks
from mlx_itune.model.engine.loss import plain_nll


def recurrence(q: Any, k: Any, v: Any, g: Any, beta: Any, state: Any, flags: Any) -> Any:
    """One head, token by token: (y, last state), and a function from gradients of these to those of
    the six arrays. q, k, g (T, Dk); v (T, Dv); beta, flags (T,); state (Dv, Dk)."""
    kept, ys = [], []
    for t in range(len(q)):
        before = np.zeros_like(state) if flags[t] > 1 else state
        decayed = before * g[t]
        error = v[t] - decayed @ k[t]
        after = decayed + beta[t] * np.outer(error, k[t])
        kept.append((before, decayed, error, after))
        ys.append(after @ q[t])
        state = after if flags[t] else state

    def back(dy: Any, dstate: Any) -> list[Any]:
        dq, dk, dv, dg, dbeta = (np.zeros_like(a) for a in (q, k, v, g, beta))
        for t in reversed(range(len(q))):
            before, decayed, error, after = kept[t]
            dq[t] = after.T @ dy[t]
            dafter = np.outer(dy[t], q[t]) + (dstate if flags[t] else 0)
            derror = beta[t] * (dafter @ k[t])
            dbeta[t] = error @ dafter @ k[t]
            dk[t] = beta[t] * (error @ dafter) - derror @ decayed
            dv[t] = derror
            ddecayed = dafter - np.outer(derror, k[t])
            dg[t] = (ddecayed * before).sum(axis=0)
            if flags[t]:
                dstate = ddecayed * g[t] * (flags[t] == 1)
        return [dq, dk, dv, dg, dbeta, dstate]

    return np.array(ys), state, back


def arrays(kind: str, tokens: int, heads: tuple[int, int], per_channel: bool) -> list[Any]:
    """q, k, v, g, beta, state of two rows."""
    rng = np.random.default_rng(tokens)
    keys, values = heads
    q, k = rng.standard_normal((2, 2, tokens, keys, 16))
    v = rng.standard_normal((2, tokens, values, 8))
    g = rng.uniform(0.5, 1, (2, tokens, values, *[16] * per_channel))
    beta = rng.uniform(0, 1, (2, tokens, values))
    if kind == "same keys":
        # The largest system that there is: every token corrects what all before it wrote.
        k[:], g[:], beta[:] = k[:, :1], 1.0, 1.0
    elif kind == "forgets":
        g[rng.random(g.shape) < 0.3] = 0.0
        g[rng.random(g.shape) < 0.3] = 1e-30
    q, k = (a / np.linalg.norm(a, axis=-1, keepdims=True) for a in (q, k))
    return [q, k, v, g, beta, rng.standard_normal((2, values, 8, 16))]


CASES = [
    *(("plain", tokens, (2, 2), channels) for tokens in (1, 5, 300) for channels in (False, True)),
    *((kind, 130, (1, 2), c) for kind in ("same keys", "forgets") for c in (False, True)),
    *(("packed", 150, (2, 2), channels) for channels in (False, True)),
]


@pytest.mark.parametrize(("kind", "tokens", "heads", "per_channel"), CASES)
def test_chunks_are_the_recurrence(
    kind: str, tokens: int, heads: tuple[int, int], per_channel: bool
) -> None:
    made = arrays(kind, tokens, heads, per_channel)
    flags = np.ones((2, tokens), np.int32)
    if kind == "packed":
        for first in (20, 64, 71, 100, 128):
            flags[:, first - 3 : first], flags[:, first] = 0, 999
    rng = np.random.default_rng(1)
    dy, dstate = rng.standard_normal(made[2].shape), rng.standard_normal(made[5].shape)
    dy[flags == 0] = 0
    mask = mx.array(flags) if kind == "packed" else None

    def loss(given: list[mx.array]) -> Any:
        y, state = chunked(*given, mask)
        return (y * mx.array(dy, mx.float32)).sum() + (state * mx.array(dstate, mx.float32)).sum()

    given = [mx.array(a, mx.float32) for a in made]
    y, state = (np.array(a) for a in chunked(*given, mask))
    found = mx.compile(mx.grad(loss))(given)
    gradients = [np.zeros_like(a) for a in made]
    for row in range(2):
        for head in range(heads[1]):
            own = head * heads[0] // heads[1]
            g = made[3][row, :, head].reshape(tokens, -1) * np.ones(16)
            wanted, last, back = recurrence(
                *(a[row, :, own] for a in made[:2]),
                made[2][row, :, head],
                g,
                made[4][row, :, head],
                made[5][row, head],
                flags[row],
            )
            seen = flags[row] > 0
            assert np.abs(y[row, seen, head] - wanted[seen]).max() < 2e-5 * np.abs(wanted).max()
            assert np.abs(state[row, head] - last).max() < 2e-5 * np.abs(last).max()
            dq, dk, dv, dg, dbeta, dfirst = back(dy[row, :, head], dstate[row, head])
            gradients[0][row, :, own] += dq
            gradients[1][row, :, own] += dk
            gradients[2][row, :, head] = dv
            gradients[3][row, :, head] = dg if per_channel else dg.sum(axis=-1)
            gradients[4][row, :, head] = dbeta
            gradients[5][row, head] = dfirst
    if kind == "forgets":
        # Of a decay that is nothing in float32 the gradient is nothing, too.
        gradients[3][made[3] < 1e-36] = 0
    for ours, wanted in zip(found, gradients, strict=True):
        assert np.abs(np.array(ours) - wanted).max() < 2e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_next", "kimi_linear"])
def test_layers_take_it_within_only(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name)
    ids, weights = np.arange(40)[None], np.ones((1, 40), np.float32)
    loops: list[int] = []
    step = gated_delta._gated_delta_step_ops
    monkeypatch.setattr(
        gated_delta, "_gated_delta_step_ops", lambda *a: loops.append(1) or step(*a)
    )
    model.train()
    with in_chunks():
        fast = plain_nll(model, ids, weights)[0].item()
    assert not loops
    slow = plain_nll(model, ids, weights)[0].item()
    assert loops and fast == pytest.approx(slow, rel=1e-6)
