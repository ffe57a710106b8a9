"""Key-value caches for training, through which gradients flow.

mlx-lm's attention asks its cache for `offset`, `make_mask` and `update_and_fetch`, and nothing
else. Answering these is enough, with no code per architecture, for

- packing: several sequences in one row, under a block-diagonal causal mask;
- prefix sharing: the keys and values of tokens that many rows start with are made once, and stand
  in front of each row's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

from mlx_itune.model.engine import cpu_attention
from mlx_itune.model.engine.rotary import Positions

# Keys (1, heads, S, D) and values of S tokens, layer by layer.
KeysValues = list[tuple[mx.array, mx.array]]


class Rows:
    """One pass of a model over rows of sequences; what the caches of its layers have in common."""

    def __init__(
        self, tokens: int, lengths: Sequence[Sequence[int]] | None = None, shared: int = 0
    ) -> None:
        """lengths: of the sequences of each row, one of all `tokens` if None. What is left of a row
        is padding; the last token, which is a target only, may be counted in. shared: tokens
        before each sequence."""
        self.tokens, self.shared = tokens, shared
        filled = [(tokens,)] if lengths is None else [_filled(row, tokens) for row in lengths]
        self.positions = Positions(filled, shared)
        self._masks: dict[int, tuple[Any, int | None]] = {}
        self._plans: dict[tuple[int | None, int], cpu_attention.Plan] = {}

    def mask(self, return_array: bool, window: int | None) -> mx.array | str | None:
        """As mlx-lm's caches make it: an array, "causal", or None where all is seen."""
        whole = self.shared + max(max(row) for row in self.positions.lengths)
        if window is not None and window >= whole:
            window = None
        if not self.positions.packed and window is None and not return_array:
            return None if self.tokens == 1 else "causal"
        mask = self._array(window)
        # Kept, as its id stands for it.
        self._masks[id(mask)] = mask, window
        return mask

    def plan(self, mask: Any, block_tokens: int) -> cpu_attention.Plan | None:
        """A mask that is one of this pass's, in blocks of so many queries; None for any other."""
        if not self.positions.alike:
            return None
        if mask is None or isinstance(mask, str):
            window = None
            if self.positions.packed or (mask is None and self.tokens > 1):
                return None
        elif id(mask) in self._masks:
            window = self._masks[id(mask)][1]
        else:
            return None
        key = window, block_tokens
        if key not in self._plans:
            lengths = self.positions.lengths[0]
            self._plans[key] = cpu_attention.causal_plan(lengths, self.shared, window, block_tokens)
        return self._plans[key]

    def _array(self, window: int | None) -> mx.array:
        """(T, S + T) boolean, or (rows, 1, T, S + T) where rows differ."""
        places = self.positions.places()
        rows = self.positions.lengths[: len(places)]
        numbers = mx.array([[n for n, size in enumerate(row) for _ in range(size)] for row in rows])
        before = mx.broadcast_to(mx.arange(self.shared), (len(rows), self.shared))
        keys = mx.concatenate([before, places], axis=1)[:, None]
        queries = places[:, :, None]
        allowed = keys <= queries
        if window is not None:
            allowed = allowed & (queries - keys < window)
        same = mx.concatenate(
            [
                mx.ones((len(rows), self.tokens, self.shared), mx.bool_),
                numbers[:, :, None] == numbers[:, None],
            ],
            axis=2,
        )
        mask = allowed & same
        return mask[0] if self.positions.alike else mask[:, None]


class TrainingCache:
    """One layer's cache in a pass: nothing is stored but what was asked to be recorded."""

    def __init__(
        self, rows: Rows, shared: tuple[mx.array, mx.array] | None = None, record: bool = False
    ) -> None:
        self.rows, self.shared = rows, shared
        self._record = record
        self.recorded: tuple[mx.array, mx.array] | None = None

    @property
    def offset(self) -> int:
        """The place of the first token of each sequence; `Positions`, for layers that know it."""
        return self.rows.positions

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """The mask of a layer with this window."""
        return self.rows.mask(return_array, window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """The keys and values that the queries see: the shared ones, then these."""
        if self._record:
            self.recorded = keys, values
        if self.shared is None:
            return keys, values
        before = [
            mx.broadcast_to(old, (len(new), *old.shape[1:]))
            for old, new in zip(self.shared, (keys, values), strict=True)
        ]
        return (
            mx.concatenate([before[0], keys], axis=2),
            mx.concatenate([before[1], values], axis=2),
        )

    def plan(self, mask: Any, block_tokens: int) -> cpu_attention.Plan | None:
        """See `Rows.plan`."""
        return self.rows.plan(mask, block_tokens)

    def again(self, shared: tuple[mx.array, mx.array] | None) -> TrainingCache:
        """This cache, unused, with other arrays for its shared keys and values."""
        return TrainingCache(self.rows, shared, self._record)


def caches(
    count: int, rows: Rows, shared: KeysValues | None = None, *, record: bool = False
) -> list[TrainingCache]:
    """A cache per layer. shared: what an earlier pass recorded."""
    return [
        TrainingCache(rows, shared[layer] if shared else None, record) for layer in range(count)
    ]


def recorded(made: Sequence[TrainingCache]) -> KeysValues:
    """The keys and values of a pass whose caches were to record them."""
    return [cache.recorded for cache in made if cache.recorded is not None]


def layer_count(model: nn.Module) -> int | None:
    """How many caches the model takes; None where layers keep more than keys and values."""
    kept = make_prompt_cache(model)
    return len(kept) if all(type(cache) in (KVCache, RotatingKVCache) for cache in kept) else None


def _filled(lengths: Sequence[int], tokens: int) -> tuple[int, ...]:
    """Cut to `tokens`, or with the padding at the end of the row as a sequence of its own."""
    ends = np.minimum(np.cumsum(lengths), tokens).tolist()
    cuts = [end - start for start, end in zip([0, *ends], [*ends, tokens], strict=True)]
    return tuple(length for length in cuts if length)
