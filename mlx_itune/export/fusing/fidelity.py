"""How far is one model from another, measured: KL divergence and agreement per learned token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_itune.dataset.rendering.render import TokenizedExample
from mlx_itune.kit.errors import DataError
from mlx_itune.model.engine.loss import head_is_exact, learned_logits

# Log-probabilities of the reference that are kept between comparisons; further rows are run again.
_KEPT_BYTES = 1 << 29
# A comparison that cannot come within the limit any more goes on to so many tokens.
_ENOUGH_TOKENS = 1024


@dataclass(frozen=True)
class Fidelity:
    """KL(reference || other) in nats per token, and how often both prefer the same token."""

    kl_mean: float
    kl_p99: float
    top1_agreement: float
    tokens: int


class Reference:
    """A model that others are compared with, at every learned position of ``examples``.

    Raises DataError when there is no learned token.
    """

    def __init__(self, model: nn.Module, examples: Sequence[TokenizedExample]) -> None:
        self._model = model
        self._rows = [
            (example.input_ids[None], example.weights[None])
            for example in examples
            if example.weights[1:].any()
        ]
        self.tokens = sum(int(np.count_nonzero(weights[:, 1:])) for _, weights in self._rows)
        if not self.tokens:
            raise DataError(
                "no learned token to measure fidelity on", hint="give --data with answers"
            )
        # Where the head cannot be told from the rest, all positions are computed.
        self._logits = learned_logits if head_is_exact(model) else _all_logits
        self._kept: dict[int, Any] = {}
        self._kept_bytes = 0

    @property
    def rows(self) -> int:
        """How many rows there are to measure on."""
        return len(self._rows)

    def compare(self, other: nn.Module, *, limit: float | None = None) -> Fidelity:
        """``other``'s distance. It is measured on all rows or, once no rest of them could bring
        the mean within ``limit`` (no divergence is negative), on enough to say how far it is."""
        divergences: list[Any] = []
        agreed: list[Any] = []
        total, tokens = 0.0, 0
        for number, row in enumerate(self._rows):
            p, q = self._own(number), self._log_probabilities(other, row)
            kl = np.array(_divergence(p, q), dtype=np.float64)
            divergences.append(kl)
            agreed.append(np.array(mx.argmax(p, axis=-1) == mx.argmax(q, axis=-1)))
            total, tokens = total + float(kl.sum()), tokens + kl.size
            if limit is not None and tokens >= _ENOUGH_TOKENS and total > limit * self.tokens:
                break
        per_token = np.concatenate(divergences)
        return Fidelity(
            kl_mean=float(per_token.mean()),
            kl_p99=float(np.quantile(per_token, 0.99)),
            top1_agreement=float(np.concatenate(agreed).mean()),
            tokens=int(per_token.size),
        )

    def _own(self, number: int) -> Any:
        if number in self._kept:
            return self._kept[number]
        p = self._log_probabilities(self._model, self._rows[number])
        if self._kept_bytes + p.nbytes <= _KEPT_BYTES:
            mx.eval(p)
            self._kept[number] = p
            self._kept_bytes += p.nbytes
        return p

    def _log_probabilities(self, model: nn.Module, row: tuple[Any, Any]) -> Any:
        """Log-probabilities (N, V) float32 at the N learned positions of one row."""
        logits = self._logits(model, *row)[0]
        return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def fidelity(
    reference: nn.Module, other: nn.Module, examples: Sequence[TokenizedExample]
) -> Fidelity:
    """Compare two models' next-token distributions at every learned position of ``examples``.

    Raises DataError when there is no learned token.
    """
    return Reference(reference, examples).compare(other)


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


def _all_logits(model: nn.Module, input_ids: Any, weights: Any) -> tuple[Any, Any, Any]:
    """What ``learned_logits`` gives, by way of full logits."""
    learned = np.flatnonzero(weights[:, 1:].reshape(-1))
    logits = model(mx.array(input_ids[:, :-1])).astype(mx.float32)
    picked = logits.reshape(-1, logits.shape[-1])[mx.array(learned)]
    return picked, input_ids[:, 1:].reshape(-1)[learned], weights[:, 1:].reshape(-1)[learned]
