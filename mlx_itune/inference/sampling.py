"""The choice of the next token from its logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; the default is greedy.

    The filters look at the model's own probabilities, before the temperature, as mlx-lm's do, so
    that `generate` and `serve` draw from the same distribution. top_k 0 and min_p 0 are off.
    repetition_context: how many of the last tokens, the prompt's included, are penalized.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_context: int = 20
    seed: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether this is the most likely token, and nothing else."""
        return self.temperature <= 0 and self.repetition_penalty == 1


def next_token(logits: Any, sampling: Sampling, key: Any) -> Any:
    """One token id () of ``logits`` (V,): the likeliest at temperature 0, else drawn with ``key``.

    Nucleus sampling (1904.09751, section 3.1) keeps the fewest tokens whose probabilities reach
    ``top_p``; min-p (2407.01082, section 3) those within ``min_p`` of the likeliest; the likeliest
    is always kept.
    """
    if sampling.temperature <= 0:
        return mx.argmax(logits)
    wide = logits.astype(mx.float32)
    if sampling.top_p >= 1 and sampling.top_k <= 0 and sampling.min_p <= 0:
        return mx.random.categorical(wide / sampling.temperature, key=key)
    order = mx.argsort(-wide)
    ranked = wide[order]
    chances = mx.softmax(ranked)
    kept = mx.cumsum(chances) - chances < sampling.top_p
    kept = mx.logical_and(kept, chances >= sampling.min_p * chances[0])
    if sampling.top_k > 0:
        kept = mx.logical_and(kept, mx.arange(ranked.size) < sampling.top_k)
    drawn = mx.random.categorical(
        mx.where(kept, ranked / sampling.temperature, -mx.inf),
        key=key,
    )
    return order[drawn]


def penalized(logits: Any, recent: Any, penalty: float) -> Any:
    """``logits`` (V,) with the tokens of ``recent`` (N,) made less likely (1909.05858, 4.1)."""
    if penalty == 1 or not recent.size:
        return logits
    chosen = logits[recent]
    # An index that occurs twice gets the same number twice.
    lowered = mx.array(logits)
    lowered[recent] = mx.where(chosen > 0, chosen / penalty, chosen * penalty)
    return lowered
