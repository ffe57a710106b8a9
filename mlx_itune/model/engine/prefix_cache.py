"""The key-value cache of a text that grows: what it holds already is not computed again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.nn as nn
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache


class PrefixCache:
    """One cache and the ids that are in it.

    Between `take` and `keep` it is the taker's; one that is never brought back is forgotten, so an
    answer that was broken off leaves nothing half-written.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._cache: list[Any] | None = None
        self._ids: list[int] = []

    def take(self, ids: Sequence[int]) -> tuple[list[Any], int]:
        """A cache, one entry per layer, and how many of the first `ids` it holds, not the last."""
        cache, held = self._cache, self._ids
        self._cache, self._ids = None, []
        shared = 0
        for mine, theirs in zip(held, ids[:-1], strict=False):
            if mine != theirs:
                break
            shared += 1
        surplus = len(held) - shared
        if cache is None or not shared or not _cut(cache, surplus):
            return make_prompt_cache(self._model), 0
        return cache, shared

    def keep(self, cache: list[Any], ids: Sequence[int]) -> None:
        """Bring a cache back that holds exactly `ids`."""
        self._cache, self._ids = cache, list(ids)


def _cut(cache: list[Any], tokens: int) -> bool:
    """Take the last tokens out of a cache, if it can; state-space layers, for one, cannot."""
    if not tokens:
        return True
    return bool(can_trim_prompt_cache(cache)) and trim_prompt_cache(cache, tokens) == tokens
