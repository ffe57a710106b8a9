"""Small random models of several architectures, and gradients of their LoRA parameters."""

from __future__ import annotations

import importlib
from typing import Any

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)

import mlx.core as mx  # isort: skip
import numpy as np
from mlx.utils import tree_flatten, tree_map

from mlx_itune.model import lora

_SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {"tie_word_embeddings": True},
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3_text": {
        "sliding_window": 8,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 16,
    },
}


def build(name: str, seed: int = 0) -> Any:
    """A random model with LoRA of rank 4 whose B is not zero any more."""
    module = importlib.import_module(f"mlx_lm.models.{name}")
    config = {"model_type": name, **_SHAPE, **ARCHITECTURES[name]}
    model = module.Model(module.ModelArgs.from_dict(config))
    weights = tree_flatten(model.parameters())
    keys = mx.random.split(mx.random.key(seed), len(weights))
    model.load_weights(
        [
            (path, mx.random.normal(w.shape, key=key) * (w.shape[-1] ** -0.5) + (w.ndim == 1))
            for key, (path, w) in zip(keys, weights, strict=True)
        ]
    )
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
