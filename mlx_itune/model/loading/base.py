"""A base model, from its name to loaded weights."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.nn as nn

from mlx_itune.kit import network
from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.wording import brief
from mlx_itune.model.engine import compute as compute_module
from mlx_itune.model.loading import named
from mlx_itune.model.loading.fingerprint import fingerprint, function_of
from mlx_itune.model.loading.vetting import vet

__all__ = ["LoadedModel", "fingerprint", "load", "resolve", "vet"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Weights, configuration and tokenizer; never code, never pickles.
_HUB_FILES = ["*.json", "model*.safetensors", "tokenizer.model", "*.tiktoken", "*.txt", "*.jinja"]


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory: `compute` says how ("float", "quantized", "dequantized").

    fingerprint: of its tensors; function: what else decides what it computes (`function_of`).
    """

    model: nn.Module
    config: dict[str, Any]
    path: Path
    id: str
    fingerprint: str
    compute: str
    function: Mapping[str, Any] = field(default_factory=dict)

    def papers(self) -> dict[str, Any]:
        """What travels with an adapter, so that a changed base is noticed."""
        return {"id": self.id, "fingerprint": self.fingerprint, "config": dict(self.function)}


def resolve(model: str) -> Path:
    """The directory of a named model, a local path or a Hub id `org/name`. Raises ModelError."""
    if model in named.NAMES:
        return named.found(model)
    path = Path(model).expanduser()
    if path.exists():
        return path
    if not _HUB_ID.fullmatch(model):
        raise ModelError(
            "no such model",
            where=model,
            hint=f"give a model directory, a Hub id like org/name, or {' or '.join(named.NAMES)}",
        )
    return _from_hub(model, offline=network.offline())


def is_here(model: str) -> bool:
    """Whether a model is on this machine; nothing is fetched for the answer."""
    if model in named.NAMES or Path(model).is_dir():
        return True
    try:
        return bool(_HUB_ID.fullmatch(model) and _from_hub(model, offline=True))
    except ModelError:
        return False


def load(
    model: str,
    *,
    compute: str = "auto",
    memory_bytes: int | None = None,
) -> LoadedModel:
    """Vet and load a model with weights in memory; no code of the model's is ever run.

    compute: "auto", "dequantized" or "quantized"; memory_bytes: what may be taken, if
    that is less than is free (see model/compute). Raises ModelError.
    """
    path = resolve(model)
    built, config = read(path, lazy=False)
    function = function_of(built, config)
    built.freeze()
    mode = compute_module.apply(built, compute, memory_bytes)
    return LoadedModel(
        built, config, path, public_id(model, path), fingerprint(path), mode, function
    )


def read(path: Path, *, lazy: bool = True) -> tuple[nn.Module, dict[str, Any]]:
    """A vetted model directory exactly as mlx-lm reads it: its module, with weights that stay on
    disk until they are used if `lazy`, and its effective config. Raises ModelError."""
    vet(path)
    from mlx_lm.utils import load_model

    with mlx_lm_errors(path):
        model, config = load_model(path, lazy=lazy, strict=True)
    return model, config


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


@contextmanager
def mlx_lm_errors(path: Path) -> Iterator[None]:
    """mlx-lm reports a bad model with whatever exception it met first: ModelError, then."""
    try:
        yield
    except (MemoryError, ModelError):
        raise
    except Exception as error:
        raise ModelError(f"mlx-lm cannot load it: {brief(error)}", where=str(path)) from error


def public_id(model: str, path: Path) -> str:
    """A name that may travel with an artefact: never a path of this machine."""
    if model in named.NAMES:
        return f"mlx-itune/{model}"
    return path.resolve().name if Path(model).expanduser().exists() else model


def _from_hub(model: str, *, offline: bool) -> Path:
    # Read when huggingface_hub is imported; set here for callers that use the library directly.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=_HUB_FILES, local_files_only=offline))
    except LocalEntryNotFoundError as error:
        hint = "run once without --offline" if offline else "check the network"
        raise ModelError("not in the local Hub cache", where=model, hint=hint) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(
            f"cannot be fetched from the Hub: {brief(error)}",
            where=model,
            hint="check the name",
        ) from error
