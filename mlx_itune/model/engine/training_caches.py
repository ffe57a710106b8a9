"""Caches for training, through which gradients flow.

mlx-lm's attention asks its cache for `offset`, `make_mask` and `update_and_fetch`; a layer with a
convolution or a state asks for arrays by number and for a mask of tokens. Answering these is
enough, with no code per architecture, for

- packing: several sequences in one row, each of which sees itself alone. Places go on from one to
  the next, which is the same function where only distances count. For a convolution there is a gap
  of masked tokens between two, as many as it sees back; a state is forgotten at a first token;
- prefix sharing: the keys and values, or the state, of tokens that all rows start with are made
  once, and stand in front of each row's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache, RotatingKVCache, make_prompt_cache

from mlx_itune.model.engine import attention

# What a cache holds: keys and values (0) or so many arrays of a state; a layer may have several.
Kind = int | tuple[int, ...]
# Keys (1, heads, S, D) and values of S tokens, or a state after them: cache by cache.
Kept = list[tuple[mx.array, ...]]
# By what a mask multiplies the logarithm of a decay where a state is forgotten. Odd: a product of
# two such wraps around and must not be 0.
_FORGET = 999_999_999


class Pass:
    """One pass of a model over rows of `tokens`; what the caches of its layers have in common.

    segments (B, tokens) int32: the number of the sequence that each token belongs to, 0 in a gap;
    None where each row is one. shared: tokens of a prefix before each of `rows`, which then is one
    sequence.
    """

    def __init__(
        self, tokens: int, segments: mx.array | None = None, shared: int = 0, rows: int = 1
    ) -> None:
        self.tokens, self.segments, self.shared, self.rows = tokens, segments, shared, rows
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
            attention.remember(mask, window)
            self._masks[window] = mask
        return self._masks[window]

    def token_mask(self) -> mx.array | None:
        """(B, tokens) int32, as mlx-lm's layers with a state multiply by it: 0 in gaps."""
        if self.segments is None:
            return None
        before = mx.pad(self.segments[:, :-1], [(0, 0), (1, 0)])
        seen = mx.where(self.segments == before, 1, _FORGET)
        return mx.where(self.segments == 0, 0, seen).astype(mx.int32)


class TrainingCache:
    """Keys and values of a layer in a pass: nothing is stored but what was asked to be recorded."""

    def __init__(
        self,
        made: Pass,
        kind: int = 0,
        shared: tuple[mx.array, ...] | None = None,
        record: bool = False,
    ) -> None:
        self.made, self.kind, self.shared, self._record = made, kind, shared, record
        self.recorded: tuple[mx.array, ...] = ()

    @property
    def offset(self) -> int:
        """The place of the first token of each row."""
        return self.made.shared

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """The mask of a layer with this window."""
        return self.made.mask(return_array, window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, ...]:
        """The keys and values that the queries see: the shared ones, then these."""
        both: tuple[mx.array, ...] = keys, values
        if self.shared is not None:
            both = tuple(
                mx.concatenate([mx.broadcast_to(old, (len(new), *old.shape[1:])), new], axis=2)
                for old, new in zip(self.shared, both, strict=True)
            )
        if self._record:
            self.recorded = both
        return both

    def again(self, shared: tuple[mx.array, ...]) -> TrainingCache:
        """This cache, unused, with other arrays for its shared ones."""
        return type(self)(self.made, self.kind, shared or None, self._record)


class StateCache(TrainingCache):
    """The last inputs of a layer's convolutions and its state in a pass, by number."""

    # Rows are whole.
    lengths = None

    def __init__(self, made: Pass, kind: int, *more: Any) -> None:
        super().__init__(made, kind, *more)
        self._arrays: list[mx.array | None] = [None] * kind
        if self.shared is not None:
            self._arrays = [mx.broadcast_to(a, (made.rows, *a.shape[1:])) for a in self.shared]

    def __getitem__(self, number: int) -> mx.array | None:
        return self._arrays[number]

    def __setitem__(self, number: int, array: mx.array) -> None:
        self._arrays[number] = array
        if self._record:
            self.recorded = tuple(a for a in self._arrays if a is not None)

    def advance(self, count: int) -> None:
        """So many tokens are done: all."""

    def make_mask(self, N: int, *_: Any, **__: Any) -> mx.array | None:
        """The mask of tokens."""
        return self.made.token_mask()


def caches(
    kinds: Sequence[Kind], made: Pass, shared: Kept | None = None, *, record: bool = False
) -> list[Any]:
    """What a model takes as its caches. shared: what an earlier pass recorded."""
    before = iter(shared or ())

    def cache(kind: Kind) -> Any:
        if isinstance(kind, tuple):
            return tuple(map(cache, kind))
        of = StateCache if kind else TrainingCache
        return of(made, kind, next(before, None), record)

    return [cache(kind) for kind in kinds]


def recorded(made: Sequence[Any]) -> Kept:
    """What the caches of a pass recorded: with what they shared, where that is keys and values."""
    each = chain.from_iterable(c if isinstance(c, tuple) else (c,) for c in made)
    return [cache.recorded for cache in each]


def known_tokens(kinds: Sequence[Kind], kept: Kept | None) -> int:
    """Of how many tokens keys are kept; 0 where no layer has keys."""
    flat = chain.from_iterable(k if isinstance(k, tuple) else (k,) for k in kinds)
    keys = (arrays[0] for kind, arrays in zip(flat, kept or (), strict=False) if not kind)
    return next((array.shape[2] for array in keys), 0)


def kinds_of(model: nn.Module) -> tuple[Kind, ...] | None:
    """The caches that the model takes; None where layers keep something else."""
    kinds: list[Kind] = []
    for cache in make_prompt_cache(model):
        inner = [_kind(c) for c in (cache.caches if type(cache) is CacheList else [cache])]
        if -1 in inner:
            return None
        kinds.append(tuple(inner) if type(cache) is CacheList else inner[0])
    return tuple(kinds)


def _kind(cache: Any) -> int:
    if type(cache) is ArraysCache:
        return len(cache.cache)
    return 0 if type(cache) in (KVCache, RotatingKVCache) else -1


def gap_tokens(model: nn.Module) -> int:
    """How many masked tokens are between two packed sequences."""
    convolutions = (m for _, m in model.named_modules() if isinstance(m, nn.Conv1d))
    return max((m.weight.shape[1] - 1 for m in convolutions), default=0)
