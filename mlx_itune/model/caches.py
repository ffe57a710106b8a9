"""Key-value caches for decoding, as each architecture of mlx-lm wants them."""

from __future__ import annotations

from typing import Any

import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from mlx_itune.kit.errors import ModelError


def single_cache(model: nn.Module) -> list[Any]:
    """An empty cache for one row, one entry per layer."""
    cache: list[Any] = make_prompt_cache(model)
    return cache


def batch_cache(model: nn.Module, rows: int) -> list[Any]:
    """An empty cache for ``rows`` rows of different lengths, one entry per layer.

    Its entries have ``prepare(lengths, right_padding)``, ``finalize()`` and ``filter(indices)``.
    Raises ModelError where mlx-lm has no batched cache for the architecture.
    """
    layers = list(zip(*(make_prompt_cache(model) for _ in range(rows)), strict=True))
    if not all(hasattr(layer[0], "merge") for layer in layers):
        raise ModelError("mlx-lm cannot batch this architecture's cache", hint="use a batch of 1")
    return [layer[0].merge(list(layer)) for layer in layers]
