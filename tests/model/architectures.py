"""Small random models of mlx-lm's architectures, and gradients of their LoRA parameters.

families.json holds a tiny config of each of this year's families, and some with a switch of theirs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)

import mlx.core as mx  # isort: skip
import numpy as np
from mlx.utils import tree_flatten, tree_map
from mlx_lm.utils import _get_classes

from mlx_itune.model.adapters import lora

FAMILIES = json.loads((Path(__file__).parent / "families.json").read_text())
# Those whose layers keep keys and values only; in one, queries are scaled by their place in the
# row, so that packing does not fit. Then those that keep a state or a convolution's inputs.
ARCHITECTURES = (
    "llama3 llama/sliding ministral3 qwen2 qwen3 gemma2 gemma3_text phi3 smollm3 cohere granite "
    "qwen3_moe ministral3/scaled"
).split()
STATEFUL = ["mamba2", "falcon_h1", "granitemoehybrid", "lfm2", "qwen3_next", "kimi_linear"]


def bare(name: str, seed: int = 0, **more: Any) -> Any:
    """A random model in float32, without an adapter."""
    config = {**FAMILIES[name], **more}
    kind, arguments = _get_classes(config=config)
    model = kind(arguments.from_dict(config))
    flat = tree_flatten(model.parameters())
    keys = mx.random.split(mx.random.key(seed), len(flat))
    drawn = [
        (path, mx.random.normal(a.shape, key=key) * (a.shape or (1,))[-1] ** -0.5 + (a.ndim == 1))
        for key, (path, a) in zip(keys, flat, strict=True)
        if mx.issubdtype(a.dtype, mx.floating)
    ]
    model.load_weights(drawn, strict=False)
    return model


def build(name: str, seed: int = 0, **more: Any) -> Any:
    """The same with LoRA of rank 4 whose B is not zero any more."""
    model = bare(name, seed, **more)
    lora.attach(model, rank=4, scale=2.0, seed=seed)
    key = mx.random.key(seed + 1)
    model.update(
        tree_map(
            lambda a: a + 0.05 * mx.random.normal(a.shape, key=key), model.trainable_parameters()
        )
    )
    mx.eval(model.parameters())
    return model


def loss_and_gradients(
    model: Any, nll: Any, ids: Any, weights: Any
) -> tuple[float, dict[str, Any]]:
    """The summed loss and its LoRA gradients by name."""
    parameters = model.trainable_parameters()

    def loss(values: Any) -> Any:
        model.update(values)
        return nll(model, ids, weights)[0]

    value, gradients = mx.value_and_grad(loss)(parameters)
    mx.eval(value, gradients)
    model.update(parameters)
    return np.asarray(value).item(), dict(tree_flatten(gradients))


def furthest(first: dict[str, Any], second: dict[str, Any]) -> float:
    """The largest difference of any entry, relative to its tensor's largest."""
    assert first.keys() == second.keys()
    ratios = [
        np.asarray(mx.abs(first[name] - second[name]).max() / mx.abs(first[name]).max())
        for name in first
    ]
    return float(np.max(ratios))
