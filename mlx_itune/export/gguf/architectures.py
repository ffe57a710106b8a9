"""The architectures that go to GGUF: what mlx-lm and llama.cpp call things, and where they differ.

llama.cpp's side: its loaders, src/models/*.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.nn as nn

from mlx_itune.export.gguf.layout import QKV, Architecture, Facts, Keys
from mlx_itune.export.gguf.rotary import longrope, plain, with_local_base, without_factors
from mlx_itune.kit.errors import ModelError

_ATTENTION = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
_MLP = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_QK_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_GEMMA_NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_EXPERTS = {
    "switch_mlp.gate_proj": "ffn_gate_exps",
    "switch_mlp.up_proj": "ffn_up_exps",
    "switch_mlp.down_proj": "ffn_down_exps",
    "gate": "ffn_gate_inp",
}
# Layers at which llama.cpp takes a Gemma for the one of 27B, which it scales otherwise.
_GEMMA_27B = {"gemma2": 46, "gemma3": 62}


def architecture_of(model: nn.Module, config: Mapping[str, Any]) -> tuple[Architecture, Facts]:
    """llama.cpp's architecture of a model that mlx-lm read, and the facts about it.

    Raises ModelError for one that is not supported.
    """
    kind = config.get("model_type")
    inner = getattr(model, "language_model", model)
    if kind == "gemma3" and inner is not model:
        kind = "gemma3_text"
    found = ARCHITECTURES.get(str(kind))
    if found is None:
        raise ModelError(
            f"model_type {kind!r} cannot be exported to GGUF",
            hint="supported: " + ", ".join(sorted(ARCHITECTURES)),
        )
    rows = int(inner.model.embed_tokens.weight.shape[0])
    text = config.get("text_config") if inner is not model else None
    facts = Facts(inner.args, text or config, "lm_head" not in inner, rows)
    return found, facts


def _llama(facts: Facts) -> Keys:
    if "sliding_attention" not in (facts.get("layer_types") or ()):
        return {}
    # llama.cpp's llama has no window; within one, there is nothing that it would hide.
    return {"context_length": min(facts.context_tokens, int(facts.args.sliding_window))}


def _llama_notes(facts: Facts) -> list[str]:
    if "context_length" not in _llama(facts):
        return []
    return [
        f"context length {_llama(facts)['context_length']}: beyond its sliding window llama.cpp "
        "would compute something else"
    ]


def _mixture(facts: Facts) -> Keys:
    count = facts.get("num_local_experts") or facts.get("num_experts")
    return {"expert_count": int(count), "expert_used_count": int(facts.args.num_experts_per_tok)}


def _qwen3_moe(facts: Facts) -> Keys:
    args = facts.args
    if args.mlp_only_layers or args.decoder_sparse_step != 1:
        raise ModelError("has layers without experts, which llama.cpp's qwen3moe cannot have")
    if not args.norm_topk_prob:
        raise ModelError("norm_topk_prob is false, and llama.cpp's qwen3moe always norms")
    width = int(args.moe_intermediate_size)
    return {**_mixture(facts), "expert_feed_forward_length": width}


def _gemma_scale(facts: Facts, name: str) -> None:
    is_27b = facts.args.num_hidden_layers == _GEMMA_27B[name]
    theirs = facts.args.hidden_size // facts.heads if is_27b else facts.head_dim
    if facts.args.query_pre_attn_scalar != theirs:
        raise ModelError(
            f"query_pre_attn_scalar is {facts.args.query_pre_attn_scalar}, and llama.cpp's {name} "
            f"takes {theirs}"
        )


def _gemma2(facts: Facts) -> Keys:
    _gemma_scale(facts, "gemma2")
    return {
        "attn_logit_softcapping": float(facts.args.attn_logit_softcapping),
        "final_logit_softcapping": float(facts.args.final_logit_softcapping),
        # mlx-lm computes Gemma 2 without its window: so wide that it hides nothing.
        "attention.sliding_window": max(facts.context_tokens, _gemma2_window(facts)),
    }


def _gemma2_window(facts: Facts) -> int:
    return int(facts.config.get("sliding_window") or 4096)


def _gemma2_notes(facts: Facts) -> list[str]:
    if facts.context_tokens <= _gemma2_window(facts):
        return []
    return [
        f"no sliding window of {_gemma2_window(facts)} tokens, as mlx-lm computes and trains "
        "without it"
    ]


def _gemma3(facts: Facts) -> Keys:
    _gemma_scale(facts, "gemma3")
    pattern = int(facts.args.sliding_window_pattern)
    if pattern == 1:
        return {}
    keys: Keys = {"attention.sliding_window": int(facts.args.sliding_window)}
    # 6 is what every version of llama.cpp takes.
    return keys if pattern == 6 else keys | {"attention.sliding_window_pattern": pattern}


def _phi3(facts: Facts) -> Keys:
    # mlx-lm computes Phi without a window, and so does llama.cpp where it is 0.
    return {"attention.sliding_window": 0}


def _smollm3(facts: Facts) -> Keys:
    given = [bool(x) for x in facts.args.no_rope_layers]
    if given != [(i + 1) % 4 != 0 for i in range(len(given))]:
        raise ModelError(
            "rotates other layers than llama.cpp's smollm3, which leaves out every 4th"
        )
    return {}


def _granite(facts: Facts) -> Keys:
    args = facts.args
    return {
        "attention.scale": float(args.attention_multiplier),
        "embedding_scale": float(args.embedding_multiplier),
        "residual_scale": float(args.residual_multiplier),
        "logit_scale": float(args.logits_scaling),
    }


_DENSE = {**_ATTENTION, **_MLP, **_NORMS}
_BIASED = QKV | {"attn_output", "ffn_gate", "ffn_up", "ffn_down"}
_GEMMA_BLOCK = {**_ATTENTION, **_MLP, **_GEMMA_NORMS}
_LLAMA = Architecture(
    "llama", _DENSE, extra=_llama, interleaved=True, biases=_BIASED, notes=_llama_notes
)

# By mlx-lm's model_type.
ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": Architecture(
        "llama",
        {**_ATTENTION, **_NORMS, **{f"block_sparse_moe.{k}": v for k, v in _EXPERTS.items()}},
        rotary=plain,
        extra=_mixture,
        interleaved=True,
    ),
    "qwen2": Architecture("qwen2", _DENSE, rotary=without_factors, square=True),
    "qwen3": Architecture("qwen3", {**_DENSE, **_QK_NORMS}, rotary=without_factors),
    "qwen3_moe": Architecture(
        "qwen3moe",
        {**_ATTENTION, **_NORMS, **_QK_NORMS, **{f"mlp.{k}": v for k, v in _EXPERTS.items()}},
        rotary=plain,
        extra=_qwen3_moe,
    ),
    "gemma2": Architecture(
        "gemma2", _GEMMA_BLOCK, rotary=plain, extra=_gemma2, norm_offset=1, notes=_gemma2_notes
    ),
    "gemma3_text": Architecture(
        "gemma3",
        {**_GEMMA_BLOCK, **_QK_NORMS},
        rotary=with_local_base,
        extra=_gemma3,
        norm_offset=1,
    ),
    "phi3": Architecture(
        "phi3",
        {
            "self_attn.qkv_proj": "attn_qkv",
            "self_attn.o_proj": "attn_output",
            # Gate and up in one tensor, gate first, under the name of up.
            "mlp.gate_up_proj": "ffn_up",
            "mlp.down_proj": "ffn_down",
            **_NORMS,
        },
        rotary=longrope,
        extra=_phi3,
        square=True,
    ),
    "smollm3": Architecture(
        "smollm3", _DENSE, rotary=without_factors, extra=_smollm3, interleaved=True
    ),
    "granite": Architecture("granite", _DENSE, extra=_granite, interleaved=True, biases=_BIASED),
    "olmo2": Architecture(
        "olmo2",
        {
            **_ATTENTION,
            **_MLP,
            **_QK_NORMS,
            "post_attention_layernorm": "post_attention_norm",
            "post_feedforward_layernorm": "post_ffw_norm",
        },
        rotary=without_factors,
        square=True,
        needs_output=True,
    ),
}
