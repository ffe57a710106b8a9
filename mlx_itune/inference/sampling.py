"""The choice of the next token from its logits."""

from __future__ import annotations

from typing import Any

import mlx.core as mx


def next_token(logits: Any, temperature: float, top_p: float, key: Any) -> Any:
    """Pick one token from ``logits`` (V,): greedy at temperature 0, else by nucleus sampling.

    Nucleus sampling (1904.09751 section 3.1) keeps the smallest set of tokens whose probability
    reaches ``top_p``; the most likely token is always in it.
    """
    if temperature <= 0:
        return mx.argmax(logits)
    scaled = logits.astype(mx.float32) / temperature
    if top_p < 1:
        order = mx.argsort(-scaled)
        chances = mx.softmax(scaled[order])
        before = mx.cumsum(chances) - chances
        ranked = mx.where(before < top_p, scaled[order], -mx.inf)
        return order[mx.random.categorical(ranked, key=key)]
    return mx.random.categorical(scaled, key=key)
