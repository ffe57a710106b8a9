"""Small random models of every architecture that goes to GGUF, as directories on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)

import mlx.core as mx  # isort: skip

from tests.conftest import SPECIAL_TOKENS
from tests.export.shipped_models import SHIPPED, write_random

_SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
_GRANITE = {
    "logits_scaling": 2.0,
    "attention_multiplier": 0.2,
    "embedding_multiplier": 2.0,
    "residual_multiplier": 0.5,
    "attention_bias": True,
    "mlp_bias": True,
}
_EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 96,
    "norm_topk_prob": True,
    "head_dim": 32,
}
_LONG = [1.0 + 0.5 * i for i in range(8)]
# The part before a slash is mlx-lm's model_type.
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 64},
    "llama/3": {
        "tie_word_embeddings": True,
        "rope_theta": 500000.0,
        "rope_scaling": SHIPPED["llama"]["rope_scaling"],
    },
    "llama/linear": {"rope_scaling": {"type": "linear", "factor": 2.0}, "attention_bias": True},
    "llama/traditional": {"rope_traditional": True},
    "mistral": {"sliding_window": None, "head_dim": 32},
    "mixtral": _EXPERTS,
    "qwen2": {"tie_word_embeddings": True},
    "qwen2/yarn": {
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    },
    "qwen3": {"head_dim": 64, "tie_word_embeddings": True},
    "qwen3_moe": _EXPERTS,
    "gemma2": {"head_dim": 64, "query_pre_attn_scalar": 64},
    "gemma3_text": {
        "head_dim": 64,
        "query_pre_attn_scalar": 64,
        "num_hidden_layers": 6,
        "sliding_window": 16,
        "rope_theta": 1000000.0,
    },
    "gemma3_text/pattern": {
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 16,
        "sliding_window_pattern": 2,
        "rope_local_base_freq": 5000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "phi3": {"num_key_value_heads": 4},
    "phi3/long": {
        "partial_rotary_factor": 0.5,
        "original_max_position_embeddings": 64,
        "rope_scaling": {"type": "longrope", "long_factor": _LONG, "short_factor": [1.0] * 8},
    },
    "smollm3": {"num_hidden_layers": 4, "tie_word_embeddings": True},
    "granite": {**_GRANITE, "tie_word_embeddings": True},
    "olmo2": {},
    "olmo2/tied": {"tie_word_embeddings": True},
}


def write_model(
    out: Path,
    name: str,
    *,
    quantization: dict[str, Any] | None = None,
    dtype: Any = mx.float16,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Write one, its weights in ``dtype`` or quantized from that; logits spread over some nats."""

    def random(path: str, like: Any, key: Any) -> Any:
        noise = mx.random.normal(like.shape, key=key)
        if like.ndim > 1:
            return noise * like.shape[-1] ** -0.5
        around = 0 if name.startswith("gemma") else 1
        return 0.1 * noise + (around if path.endswith("norm.weight") else 0)

    ends = {"eos_token_id": SPECIAL_TOKENS.index("<|end|>")}
    config = {"model_type": name.partition("/")[0], **_SHAPE, **MODELS[name], **ends, **changes}
    # Some rows more than tokens: transformers adds a token or two of its own to some types.
    return write_random(
        out, config, random, seed=seed, dtype=dtype, quantization=quantization, spare_rows=16
    )
