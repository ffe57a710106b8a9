"""Small random models of several architectures, and gradients of their LoRA parameters."""

from __future__ import annotations

import importlib
from typing import Any

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)

import mlx.core as mx  # isort: skip
import numpy as np
from mlx.utils import tree_flatten, tree_map

from mlx_itune.model.adapters import lora

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
# Those whose layers keep keys and values only.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    # Mistral's: a window in some layers of a llama.
    "llama/sliding": {
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 8,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
    },
    "ministral3": {
        "layer_types": ["full_attention", "sliding_attention"],
        "sliding_window": 9,
        "rope_parameters": {
            "rope_theta": 10000.0,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 512,
        },
    },
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {"tie_word_embeddings": True},
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3_text": {
        "sliding_window": 8,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 16,
    },
    "phi3": {"partial_rotary_factor": 0.5},
    "smollm3": {"no_rope_layer_interval": 2},
    "cohere": {"logit_scale": 0.3},
    "granite": {
        "logits_scaling": 3.0,
        "attention_multiplier": 0.2,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
        "tie_word_embeddings": False,
    },
}
# Queries are scaled by their place in the row: a shared prefix fits, packing does not.
PLACED: dict[str, dict[str, Any]] = {
    "ministral3/scaled": {
        **ARCHITECTURES["ministral3"],
        "rope_parameters": {
            "rope_theta": 10000.0,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 16,
        },
    },
}
# Those with layers that keep something else, which neither packing nor sharing fits.
STATEFUL: dict[str, dict[str, Any]] = {
    "mamba2": {
        "num_heads": 8,
        "state_size": 8,
        "intermediate_size": 128,
        "layer_norm_epsilon": 1e-5,
        "conv_kernel": 4,
        "n_groups": 2,
        "use_bias": False,
        "use_conv_bias": True,
        "tie_word_embeddings": True,
        "time_step_limit": [0.001, 100.0],
        "time_step_rank": 8,
    },
    "granitemoehybrid": {
        "attention_bias": False,
        "embedding_multiplier": 2.0,
        "attention_multiplier": 0.2,
        "logits_scaling": 3.0,
        "residual_multiplier": 0.5,
        "layer_types": ["mamba", "attention"],
        "shared_intermediate_size": 96,
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_proj_bias": False,
        "mamba_d_state": 8,
        "mamba_d_conv": 4,
        "mamba_n_groups": 2,
        "mamba_conv_bias": True,
    },
}


def build(name: str, seed: int = 0, **more: Any) -> Any:
    """A random model with LoRA of rank 4 whose B is not zero any more."""
    kind = name.partition("/")[0]
    module = importlib.import_module(f"mlx_lm.models.{kind}")
    config = {"model_type": kind, **_SHAPE, **(ARCHITECTURES | PLACED | STATEFUL)[name], **more}
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
