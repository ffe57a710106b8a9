"""Key-value caches for training, through which gradients flow.

mlx-lm's attention asks its cache for `offset`, `make_mask` and `update_and_fetch`, and nothing
else. Answering these is enough, with no code per architecture, for

- packing: several sequences in one row, each of which sees itself alone. Places go on from one to
  the next, which is the same function where only distances count;
- prefix sharing: the keys and values of tokens that all rows start with are made once, and stand
  in front of each row's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

# Keys (1, heads, S, D) and values of S tokens, layer by layer.
KeysValues = list[tuple[mx.array, mx.array]]


class Pass:
    """One pass of a model over rows of `tokens`; what the caches of its layers have in common.

    segments (B, tokens) int32: the number of the sequence that each token belongs to; None where
    each row is one. shared: tokens of a prefix before each row, which then is one sequence.
    """

    def __init__(self, tokens: int, segments: mx.array | None = None, shared: int = 0) -> None:
        self.tokens, self.segments, self.shared = tokens, segments, shared
        self._masks: dict[int | None, mx.array] = {}

    def mask(self, return_array: bool, window: int | None) -> mx.array | str | None:
        """As mlx-lm's caches make it: an array, "causal", or None where all is seen."""
        if window is not None and window >= self.shared + self.tokens:
            window = None
        if self.segments is None and window is None and not return_array:
            return "causal" if self.tokens > 1 else None
        if window not in self._masks:
            mask = create_causal_mask(self.tokens, self.shared, window_size=window)
            if self.segments is not None:
                mask = (mask & (self.segments[:, :, None] == self.segments[:, None]))[:, None]
            self._masks[window] = mask
        return self._masks[window]


class TrainingCache:
    """One layer's cache in a pass: nothing is stored but what was asked to be recorded."""

    def __init__(
        self, made: Pass, shared: tuple[mx.array, mx.array] | None = None, record: bool = False
    ) -> None:
        self.made, self.shared, self._record = made, shared, record
        self.recorded: tuple[mx.array, mx.array] | None = None

    @property
    def offset(self) -> int:
        """The place of the first token of each row."""
        return self.made.shared

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """The mask of a layer with this window."""
        return self.made.mask(return_array, window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """The keys and values that the queries see: the shared ones, then these."""
        if self._record:
            self.recorded = keys, values
        if self.shared is None:
            return keys, values
        both = [
            mx.concatenate([mx.broadcast_to(old, (len(new), *old.shape[1:])), new], axis=2)
            for old, new in zip(self.shared, (keys, values), strict=True)
        ]
        return both[0], both[1]

    def again(self, shared: tuple[mx.array, mx.array] | None) -> TrainingCache:
        """This cache, unused, with other arrays for its shared keys and values."""
        return TrainingCache(self.made, shared, self._record)


def caches(
    count: int, made: Pass, shared: KeysValues | None = None, *, record: bool = False
) -> list[TrainingCache]:
    """A cache per layer. shared: what an earlier pass recorded."""
    return [
        TrainingCache(made, shared[layer] if shared else None, record) for layer in range(count)
    ]


def recorded(made: Sequence[TrainingCache]) -> KeysValues:
    """The keys and values of a pass whose caches were to record them."""
    return [cache.recorded for cache in made if cache.recorded is not None]


def extended(before: KeysValues | None, behind: KeysValues) -> KeysValues:
    """Keys and values of tokens, and of more behind them, as those of all."""
    if before is None:
        return behind
    pairs = zip(before, behind, strict=True)
    return [
        (mx.concatenate([k, more_k], axis=2), mx.concatenate([v, more_v], axis=2))
        for (k, v), (more_k, more_v) in pairs
    ]


def layer_count(model: nn.Module) -> int | None:
    """How many caches the model takes; None where layers keep more than keys and values."""
    kept: list[Any] = make_prompt_cache(model)
    return len(kept) if all(type(cache) in (KVCache, RotatingKVCache) for cache in kept) else None
