"""mlx-lm's own loading and answering, to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.nn as nn

from mlx_itune.model.loading.base import mlx_lm_errors
from mlx_itune.model.loading.vetting import vet


def reopen(path: Path) -> tuple[nn.Module, Any]:
    """What ``mlx_lm.load`` makes of a directory: (model, tokenizer). Raises ModelError."""
    vet(path)
    from mlx_lm import load

    with mlx_lm_errors(path):
        model, tokenizer = load(str(path))[:2]
    return model, tokenizer


def greedy(model: nn.Module, tokenizer: Any, prompt_ids: Sequence[int], max_tokens: int) -> str:
    """The text that ``mlx_lm.generate`` writes for ``prompt_ids`` by default (greedy)."""
    from mlx_lm import generate

    return str(generate(model, tokenizer, list(prompt_ids), max_tokens=max_tokens))


def mlx_lm_version() -> str:
    """The installed version of mlx-lm."""
    return version("mlx-lm")
