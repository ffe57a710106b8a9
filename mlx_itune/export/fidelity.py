"""How far is one model from another, measured: KL divergence and agreement per learned token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_itune.dataset.render import TokenizedExample
from mlx_itune.kit.errors import DataError
from mlx_itune.model.loss import learned_logits


@dataclass(frozen=True)
class Fidelity:
    """KL(reference || other) in nats per token, and how often both prefer the same token."""

    kl_mean: float
    kl_p99: float
    top1_agreement: float
    tokens: int


def fidelity(
    reference: nn.Module, other: nn.Module, examples: Sequence[TokenizedExample]
) -> Fidelity:
    """Compare two models' next-token distributions at every learned position of ``examples``.

    Raises DataError when there is no learned token.
    """
    divergences: list[Any] = []
    agreed: list[Any] = []
    for example in examples:
        if not example.weights[1:].any():
            continue
        row = (example.input_ids[None], example.weights[None])
        p = _log_probabilities(reference, row)
        q = _log_probabilities(other, row)
        kl = _divergence(p, q)
        same = mx.argmax(p, axis=-1) == mx.argmax(q, axis=-1)
        divergences.append(np.array(kl))
        agreed.append(np.array(same))
    if not divergences:
        raise DataError("no learned token to measure fidelity on", hint="give --data with answers")
    per_token = np.concatenate(divergences).astype(np.float64)
    return Fidelity(
        kl_mean=float(per_token.mean()),
        kl_p99=float(np.quantile(per_token, 0.99)),
        top1_agreement=float(np.concatenate(agreed).mean()),
        tokens=int(per_token.size),
    )


def _divergence(p: Any, q: Any) -> Any:
    """KL (N,) of log-probabilities p and q (N, V), exact for nearly equal distributions too.

    Both sum to one, so KL = sum of e^p (e^(q - p) - 1 - (q - p)): no term is negative and none
    cancels another, where the textbook sum of e^p (p - q) drowns in float32 rounding.
    """
    chance, gap = mx.exp(p), q - p
    near = mx.abs(gap) < 1
    close = chance * (mx.expm1(mx.where(near, gap, 0)) - gap)
    far = mx.exp(q) - chance - chance * gap
    return mx.where(near, close, far).sum(axis=-1)


def _log_probabilities(model: nn.Module, row: tuple[Any, Any]) -> Any:
    """Log-probabilities (N, V) float32 at the N learned positions of one row."""
    logits = learned_logits(model, *row)[0]
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)
