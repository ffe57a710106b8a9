"""Models exactly as mlx-lm reads them: the weights on disk, no cast, no replaced layer."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.nn as nn

from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.wording import brief
from mlx_itune.model.loading.vetting import vet


def read(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """A vetted model directory's module and effective config; weights stay on disk until used.

    Raises ModelError.
    """
    vet(path)
    from mlx_lm.utils import load_model

    try:
        model, config = load_model(path, lazy=True)
    except Exception as error:
        raise ModelError(f"mlx-lm cannot load it: {brief(error)}", where=str(path)) from error
    return model, config


def reopen(path: Path) -> tuple[nn.Module, Any]:
    """What ``mlx_lm.load`` makes of a directory: (model, tokenizer). Raises ModelError."""
    vet(path)
    from mlx_lm import load

    try:
        model, tokenizer = load(str(path))[:2]
    except Exception as error:
        raise ModelError(f"mlx-lm cannot load it: {brief(error)}", where=str(path)) from error
    return model, tokenizer


def greedy(model: nn.Module, tokenizer: Any, prompt_ids: Sequence[int], max_tokens: int) -> str:
    """The text that ``mlx_lm.generate`` writes for ``prompt_ids`` by default (greedy)."""
    from mlx_lm import generate

    return str(generate(model, tokenizer, list(prompt_ids), max_tokens=max_tokens))


def mlx_lm_version() -> str:
    """The installed version of mlx-lm."""
    return version("mlx-lm")
