"""Small random models of the architectures that are exported, as mlx-lm stores them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)

import mlx.core as mx  # isort: skip
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.adapters import lora
from mlx_itune.model.loading import base
from tests.conftest import SPECIAL_TOKENS, write_tiny_tokenizer

_SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "eos_token_id": SPECIAL_TOKENS.index("<|end|>"),
    "pad_token_id": SPECIAL_TOKENS.index("<|pad|>"),
    "bos_token_id": None,
}
SHIPPED: dict[str, dict[str, Any]] = {
    "llama": {
        "tie_word_embeddings": False,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "mistral": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True, "head_dim": None},
    "qwen3": {"tie_word_embeddings": True},
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3_text": {
        "sliding_window": 16,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 16,
    },
    "phi3": {"head_dim": None},
    "smollm3": {"no_rope_layer_interval": 2, "head_dim": None},
    "granite": {
        "logits_scaling": 3.0,
        "attention_multiplier": 0.2,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "attention_bias": False,
        "mlp_bias": False,
        "head_dim": None,
    },
    "olmo2": {"head_dim": None, "tie_word_embeddings": False},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 64,
        "norm_topk_prob": True,
        "tie_word_embeddings": False,
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": None},
}
# Beyond those that every export has to know.
ALSO_HF: dict[str, dict[str, Any]] = {
    "cohere": {"logit_scale": 0.3, "head_dim": None, "layer_norm_eps": 1e-5},
    "cohere2": {
        "logit_scale": 0.3,
        "sliding_window": 16,
        "sliding_window_pattern": 2,
        "layer_norm_eps": 1e-5,
    },
    "glm4": {
        "attention_bias": False,
        "partial_rotary_factor": 0.5,
        "tie_word_embeddings": False,
    },
    "nemotron": {
        "hidden_act": "relu2",
        "partial_rotary_factor": 0.5,
        "norm_eps": 1e-5,
        "head_dim": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
    },
    "olmoe": {
        "head_dim": None,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "tie_word_embeddings": False,
    },
    "phi": {
        "num_key_value_heads": 4,
        "partial_rotary_factor": 0.5,
        "layer_norm_eps": 1e-5,
        "head_dim": None,
    },
    "qwen2_moe": {
        "head_dim": None,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 64,
        "decoder_sparse_step": 1,
        "tie_word_embeddings": False,
    },
    "stablelm": {
        "head_dim": None,
        "layer_norm_eps": 1e-5,
        "use_qkv_bias": True,
        "partial_rotary_factor": 0.5,
        "tie_word_embeddings": False,
    },
}


def write_model(
    out: Path, name: str, *, bits: int | None = None, mode: str = "affine", seed: int = 0
) -> Path:
    """A random model directory of one architecture; float32, or quantized in groups of 32."""
    from mlx_lm.utils import _get_classes

    out.mkdir(parents=True)
    vocabulary = write_tiny_tokenizer(out)
    config = {"model_type": name, "vocab_size": vocabulary, **_SHAPE, **(SHIPPED | ALSO_HF)[name]}
    config = {key: value for key, value in config.items() if value is not None}
    model_class, arguments = _get_classes(config)
    model = model_class(arguments.from_dict(config))
    if name == "gemma3_text":
        model = _tied(model)
    weights = tree_flatten(model.parameters())
    keys = mx.random.split(mx.random.key(seed), len(weights))
    model.load_weights(
        [
            (path, mx.random.normal(w.shape, key=key) * (w.shape[-1] ** -0.5) + (w.ndim == 1))
            for key, (path, w) in zip(keys, weights, strict=True)
        ]
    )
    if bits is not None:
        nn.quantize(model, group_size=32, bits=bits, mode=mode)
        config["quantization"] = {"group_size": 32, "bits": bits, "mode": mode}
    mx.save_safetensors(
        str(out / "model.safetensors"),
        dict(tree_flatten(model.parameters())),
        metadata={"format": "mlx"},
    )
    (out / "config.json").write_text(json.dumps(config, indent=2))
    return out


def write_adapter(out: Path, model_dir: Path, *, kind: str = "lora", **where: Any) -> Path:
    """A random adapter on a model directory: rank 4, not trained, but far from no change."""
    loaded = base.load(str(model_dir), compute="dequantized")
    lora.attach(loaded.model, rank=4, scale=1.7, seed=3, kind=kind, **where)
    for n, (_, layer) in enumerate(lora.adapted(loaded.model)):
        for name in layer.factors:
            noise = mx.random.normal(layer[name].shape, key=mx.random.key(n))
            layer[name] = layer[name] + (0.02 if kind in lora.ON_THE_GRID else 0.1) * noise
    provenance = {
        "base": loaded.papers(),
        "tokenizer": {"template": "auto"},
    }
    config = adapters.config_of(loaded.model, kind=kind, rank=4, scale=1.7)
    adapters.save(out, loaded.model, config, provenance)
    return out


def mlx_logits(model_dir: Path, adapter_dir: Path | None, ids: list[list[int]]) -> Any:
    """Logits (B, T, V) float32 of base, or base + adapter."""
    loaded = base.load(str(model_dir), compute="dequantized")
    if adapter_dir is not None:
        adapters.apply(loaded, adapters.load(adapter_dir))
    loaded.model.eval()
    return loaded.model(mx.array(ids)).astype(mx.float32)


def _tied(model: Any) -> Any:
    model.sanitize({})
    return model
