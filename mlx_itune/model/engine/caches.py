"""Key-value caches for decoding, as each architecture of mlx-lm wants them."""

from __future__ import annotations

from typing import Any

import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from mlx_itune.kit.errors import ModelError

# Their attention takes one mask for all rows: their heads come in groups, which a mask of rows is
# then broadcast against.
_ONE_MASK = ("gemma2", "phi3small")


def single_cache(model: nn.Module) -> list[Any]:
    """An empty cache for one row, one entry per layer."""
    cache: list[Any] = make_prompt_cache(model)
    return cache


def can_batch(model: nn.Module) -> bool:
    """Whether rows of different lengths can be decoded together."""
    kept = all(hasattr(layer, "merge") for layer in make_prompt_cache(model))
    return kept and getattr(model, "model_type", None) not in _ONE_MASK


def batch_cache(model: nn.Module, rows: int) -> list[Any]:
    """An empty cache for ``rows`` rows of different lengths, one entry per layer.

    Its entries have ``prepare(lengths, right_padding)``, ``finalize()`` and ``filter(indices)``.
    Raises ModelError where mlx-lm cannot batch the architecture.
    """
    if not can_batch(model):
        raise ModelError("mlx-lm cannot batch this architecture", hint="use a batch of 1")
    layers = list(zip(*(make_prompt_cache(model) for _ in range(rows)), strict=True))
    return [layer[0].merge(list(layer)) for layer in layers]
