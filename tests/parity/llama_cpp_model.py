"""GGUF files in llama.cpp itself, through llama-cpp-python: log-probabilities of given tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONTEXT_TOKENS = 128


@contextmanager
def opened(path: Path, *, lora: Path | None = None) -> Iterator[Any]:
    """A llama_cpp.Llama that computes the file's blocks as they are.

    Without `use_extra_bufts` it does not re-pack them for AMX, whose instructions some virtual
    machines announce and then fault on.
    """
    import llama_cpp

    defaults = llama_cpp.llama_model_default_params

    def without_repacking() -> Any:
        parameters = defaults()
        parameters.use_extra_bufts = False
        return parameters

    llama_cpp.llama_cpp.llama_model_default_params = without_repacking
    try:
        model = llama_cpp.Llama(
            str(path),
            n_ctx=CONTEXT_TOKENS,
            n_batch=CONTEXT_TOKENS,
            logits_all=True,
            verbose=False,
            n_threads=2,
            lora_path=str(lora) if lora else None,
        )
    finally:
        llama_cpp.llama_cpp.llama_model_default_params = defaults
    try:
        yield model
    finally:
        model.close()


def log_probabilities(model: Any, ids: Sequence[int]) -> NDArray[np.float64]:
    """(T, V): log-probabilities of the next token after each of `ids`."""
    model.reset()
    model.eval(list(ids))
    return normalized(np.array(model.scores[: len(ids)]))


def normalized(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Logits (T, V) as log-probabilities."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
