"""The architectures that go to GGUF: llama.cpp's names for tensors, the numbers it must be told.

Names and keys: github.com/ggml-org/ggml, docs/gguf.md, and llama.cpp's loaders (src/models/*.cpp).
What is described is the model as mlx-lm computes it; where llama.cpp's fixed graph computes
something else, `metadata` and the architectures' own functions refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.nn as nn

from mlx_itune.export.gguf.rotary import (
    Rotary,
    longrope,
    plain,
    scaled,
    with_local_base,
    without_factors,
)
from mlx_itune.kit.errors import ModelError

Keys = dict[str, Any]

QKV = frozenset({"attn_q", "attn_k", "attn_v"})
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


@dataclass(frozen=True)
class Facts:
    """What mlx-lm's module computes with, read from its own arguments and, failing that, config.

    ``args`` has mlx-lm's defaults filled in; ``config`` is only asked for what mlx-lm ignores.
    """

    args: Any
    config: Mapping[str, Any]
    tied: bool
    rows: int

    def get(self, name: str, default: Any = None) -> Any:
        """An argument of mlx-lm's model."""
        return getattr(self.args, name, default)

    @property
    def heads(self) -> int:
        """Query heads."""
        return int(self.args.num_attention_heads)

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return int(self.args.num_key_value_heads or self.heads)

    @property
    def head_dim(self) -> int:
        """Values of one head."""
        return int(self.get("head_dim") or self.args.hidden_size // self.heads)

    @property
    def context_tokens(self) -> int:
        """How long a row may be."""
        return int(
            self.get("max_position_embeddings")
            or self.config.get("max_position_embeddings")
            or 8192
        )


def _none(_: Facts) -> Keys:
    return {}


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's architectures.

    ``block``: names inside a block, mlx-lm's to GGUF's. ``interleaved``: it rotates neighbouring
    values, so that the rows of q and k take another order. ``biases``: layers that may have one.
    ``square``: heads times their size must be the width of the model.
    """

    name: str
    block: Mapping[str, str]
    rotary: Callable[[Facts], Rotary] = scaled
    extra: Callable[[Facts], Keys] = _none
    interleaved: bool = False
    norm_offset: int = 0
    biases: frozenset[str] = QKV
    square: bool = False
    needs_output: bool = False
    notes: Callable[[Facts], list[str]] = field(default=lambda _: [])

    def tensor(self, path: str) -> str | None:
        """The GGUF name of a layer of mlx-lm's, without `.weight`; None where there is none."""
        if path in _TOP:
            return _TOP[path]
        parts = path.split(".", 3)
        if len(parts) == 4 and parts[:2] == ["model", "layers"] and parts[3] in self.block:
            return f"blk.{parts[2]}.{self.block[parts[3]]}"
        return None

    def permuted(self, facts: Facts) -> bool:
        """Whether rows of q and k change places. Raises ModelError for a rotation it has not."""
        traditional = bool(facts.get("rope_traditional"))
        if traditional and not self.interleaved:
            raise ModelError(f"rope_traditional is not what llama.cpp's {self.name} computes")
        return self.interleaved and not traditional


def metadata(architecture: Architecture, facts: Facts) -> Keys:
    """Every key under the architecture's name, without that name.

    Raises ModelError where llama.cpp would compute something else.
    """
    args, head_dim = facts.args, facts.head_dim
    if architecture.square and head_dim * facts.heads != args.hidden_size:
        raise ModelError(
            f"{facts.heads} heads of {head_dim} do not make {args.hidden_size}, which llama.cpp's "
            f"{architecture.name} needs"
        )
    return {
        "vocab_size": facts.rows,
        "context_length": facts.context_tokens,
        "embedding_length": int(args.hidden_size),
        "block_count": int(args.num_hidden_layers),
        "feed_forward_length": int(args.intermediate_size),
        "attention.head_count": facts.heads,
        "attention.head_count_kv": facts.kv_heads,
        "attention.layer_norm_rms_epsilon": float(args.rms_norm_eps),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": head_dim,
        **architecture.rotary(facts).keys,
        **architecture.extra(facts),
    }


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
