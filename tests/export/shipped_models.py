"""Small random models of the architectures that are exported, as mlx-lm stores them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)

import mlx.core as mx  # isort: skip
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_itune.dataset.rendering.render import TokenizedExample
from mlx_itune.dataset.tokens.tokenizer import load_tokenizer
from mlx_itune.export.fusing.fuse import FuseResult, fuse
from mlx_itune.export.request import HeldOut, Request
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
_PART_ROTARY = {"partial_rotary_factor": 0.5}
_UNTIED = {"tie_word_embeddings": False}
_NO_BIAS = {"attention_bias": False, "mlp_bias": False}
_WINDOWS = {"sliding_window": 16, "sliding_window_pattern": 2}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, **_UNTIED}
_SPARSE = {**_EXPERTS, "decoder_sparse_step": 1, "moe_intermediate_size": 64}
_PLAIN = {"head_dim": None}
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SHIPPED: dict[str, dict[str, Any]] = {
    "llama": {**_UNTIED, "rope_scaling": {**_LLAMA3, "original_max_position_embeddings": 64}},
    "mistral": _UNTIED,
    "qwen2": {"tie_word_embeddings": True, **_PLAIN},
    "qwen3": {"tie_word_embeddings": True},
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3_text": {"query_pre_attn_scalar": 16, **_WINDOWS},
    "phi3": _PLAIN,
    "smollm3": {"no_rope_layer_interval": 2, **_PLAIN},
    "granite": {
        "logits_scaling": 3.0,
        "attention_multiplier": 0.2,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        **_NO_BIAS,
        **_PLAIN,
    },
    "olmo2": {**_UNTIED, **_PLAIN},
    "qwen3_moe": {**_SPARSE, "mlp_only_layers": [], "norm_topk_prob": True},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, **_PLAIN},
}
# Beyond those that every export has to know.
_NORM = {"layer_norm_eps": 1e-5}
ALSO_HF: dict[str, dict[str, Any]] = {
    "cohere": {"logit_scale": 0.3, **_NORM, **_PLAIN},
    "cohere2": {"logit_scale": 0.3, **_NORM, **_WINDOWS},
    "glm4": {"attention_bias": False, **_PART_ROTARY, **_UNTIED},
    "nemotron": {
        "hidden_act": "relu2",
        "norm_eps": 1e-5,
        **_PART_ROTARY,
        **_NO_BIAS,
        **_UNTIED,
        **_PLAIN,
    },
    "olmoe": {**_EXPERTS, "norm_topk_prob": True, **_PLAIN},
    "phi": {"num_key_value_heads": 4, **_PART_ROTARY, **_NORM, **_PLAIN},
    "qwen2_moe": {**_SPARSE, "shared_expert_intermediate_size": 64, **_PLAIN},
    "stablelm": {"use_qkv_bias": True, **_PART_ROTARY, **_NORM, **_UNTIED, **_PLAIN},
}


def write_model(
    out: Path, name: str, *, bits: int | None = None, mode: str = "affine", seed: int = 0
) -> Path:
    """A random model directory of one architecture; float32, or quantized in groups of 32."""

    def random(path: str, like: Any, key: Any) -> Any:
        return mx.random.normal(like.shape, key=key) * like.shape[-1] ** -0.5 + (like.ndim == 1)

    grid = None if bits is None else {"group_size": 32, "bits": bits, "mode": mode}
    config = {"model_type": name, **_SHAPE, **(SHIPPED | ALSO_HF)[name]}
    config = {key: value for key, value in config.items() if value is not None}
    return write_random(out, config, random, seed=seed, quantization=grid)


def write_random(
    out: Path,
    config: dict[str, Any],
    random: Callable[[str, Any, Any], Any],
    *,
    seed: int,
    dtype: Any = mx.float32,
    quantization: dict[str, Any] | None = None,
    spare_rows: int = 0,
) -> Path:
    """A model directory of this config, whose tensors are `random(name, like, key)`."""
    from mlx_lm.utils import _get_classes

    out.mkdir(parents=True)
    config = config | {"vocab_size": write_tiny_tokenizer(out) + spare_rows}
    model_class, arguments = _get_classes(config)
    model = model_class(arguments.from_dict(config))
    if config["model_type"] == "gemma3_text" and config.get("tie_word_embeddings") is None:
        # It learns from its tensors whether its head is tied.
        model.sanitize({})
    weights = tree_flatten(model.parameters())
    keys = mx.random.split(mx.random.key(seed), len(weights))
    model.load_weights([(n, random(n, w, k)) for k, (n, w) in zip(keys, weights, strict=True)])
    model.set_dtype(dtype)
    if quantization is not None:
        nn.quantize(model, **quantization)
        config["quantization"] = {"mode": "affine", "bits": 4, **quantization}
    saved = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(out / "model.safetensors"), saved, metadata={"format": "mlx"})
    (out / "config.json").write_text(json.dumps(config, indent=2))
    return out


def write_adapter(
    out: Path,
    model: Path | str,
    *,
    kind: str = "lora",
    seed: int = 3,
    strength: float | None = None,
    template: str = "auto",
    **where: Any,
) -> Path:
    """A random adapter on a model: rank 4, not trained, but far from no change."""
    loaded = base.load(str(model), compute="dequantized")
    lora.attach(loaded.model, rank=4, scale=1.7, seed=seed, kind=kind, **where)
    if strength is None:
        strength = 0.02 if kind in lora.ON_THE_GRID else 0.1
    for n, (_, layer) in enumerate(lora.adapted(loaded.model)):
        for name in layer.factors:
            noise = mx.random.normal(layer[name].shape, key=mx.random.key(100 * seed + n))
            layer[name] = layer[name] + strength * noise
    config = adapters.config_of(loaded.model, kind=kind, rank=4, scale=1.7)
    provenance = {"base": loaded.papers(), "tokenizer": {"template": template}}
    adapters.save(out, loaded.model, config, provenance)
    return out


def random_rows(count: int, first: int = 0) -> list[TokenizedExample]:
    """Rows of 24 random tokens, of which the last 16 are learned."""
    made = []
    for n in range(first, first + count):
        ids = np.random.default_rng(n).integers(6, 300, 24).astype(np.int32)
        made.append(TokenizedExample(ids, (np.arange(24) >= 8).astype(np.float32), f"row {n}"))
    return made


def fused(
    folder: Path, adapter: Path, out: Path, data: Any = None, calibration: Any = (), **options: Any
) -> FuseResult:
    """Base and adapter merged, measured on random rows and calibrated on others."""
    data = random_rows(6) if data is None else data
    rows = HeldOut(data, random_rows(16, first=100) if calibration == () else calibration)
    return fuse(Request(str(folder), adapter, out, load_tokenizer(folder), rows=rows, **options))


def tuned(folder: Path, adapter: Path | None, compute: str = "auto") -> Any:
    """The base with its adapter on, if there is one."""
    loaded = base.load(str(folder), compute=compute)
    if adapter is not None:
        adapters.apply(loaded, adapters.load(adapter))
    loaded.model.eval()
    return loaded.model


def mlx_logits(model_dir: Path, adapter_dir: Path | None, ids: list[list[int]]) -> Any:
    """Logits (B, T, V) float32 of base, or base + adapter."""
    return tuned(model_dir, adapter_dir, "dequantized")(mx.array(ids)).astype(mx.float32)


def settings(file: Path, **changes: Any) -> None:
    """Other values in a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def spoil(file: Path, name: str, value: float) -> None:
    """Another first number in a tensor of a safetensors file."""
    tensors: Any = mx.load(str(file))
    flat = tensors[name].reshape(-1)
    flat = mx.concatenate([mx.array([value], dtype=flat.dtype), flat[1:]])
    tensors[name] = flat.reshape(tensors[name].shape)
    mx.eval(tensors)
    mx.save_safetensors(str(file), tensors, metadata={"format": "mlx"})
