"""The architectures that go to GGUF: llama.cpp's names for tensors, the numbers it must be told.
Keys: github.com/ggml-org/ggml, docs/gguf.md, and llama.cpp's loaders (src/models/*.cpp). Where its
fixed graph computes something else than mlx-lm, that is refused here."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gguf
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mlx_itune.kit.errors import ModelError

Float32 = NDArray[np.float32]

_QKV = frozenset({"attn_q", "attn_k", "attn_v"})
_BIASED = _QKV | {"attn_output", "ffn_gate", "ffn_up", "ffn_down"}
# Layers at which llama.cpp takes a Gemma for the one of 27B, which it scales otherwise.
_GEMMA_27B = {"gemma2": 46, "gemma3": 62}


@dataclass(frozen=True)
class Facts:
    """What mlx-lm's module computes with, read from its own arguments and, failing that, config.
    ``args`` has mlx-lm's defaults filled in; ``config`` is only asked for what mlx-lm ignores."""

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
        name = "max_position_embeddings"
        return int(self.get(name) or self.config.get(name) or 8192)


@dataclass(frozen=True)
class Told:
    """What llama.cpp is told: keys under the architecture's name, tensors (pairs,), and remarks."""

    keys: Mapping[str, Any]
    tensors: Mapping[str, Float32] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __or__(self, other: Told) -> Told:
        return Told(
            {**self.keys, **other.keys},
            {**self.tensors, **other.tensors},
            (*self.notes, *other.notes),
        )


Part = Callable[[Facts], Told]


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's architectures. ``interleaved``: it rotates neighbouring values, so that
    the rows of q and k take another order. ``biases``: layers that may have one. ``square``: heads
    times their size must be the width of the model. ``needs_output``: a tied table is written
    twice."""

    name: str
    rotary: Part
    extra: Part = lambda _: Told({})
    interleaved: bool = False
    norm_offset: int = 0
    biases: frozenset[str] = _QKV
    square: bool = False
    needs_output: bool = False

    def tensor_name(self, path: str, facts: Facts) -> str:
        """GGUF's name of a weight or bias of mlx-lm's. Raises ModelError where it has none."""
        name = gguf_name(self.name, path, int(facts.args.num_hidden_layers))
        if name is None or (name.endswith(".bias") and name.split(".")[-2] not in self.biases):
            raise ModelError(f"llama.cpp's {self.name} has no {path}")
        return name

    def row_order(self, name: str, rows: int, facts: Facts) -> NDArray[np.int32] | None:
        """The order of q or k rows in which the two halves that are rotated together alternate;
        None for a tensor whose rows stay where they are."""
        heads = {"attn_q": facts.heads, "attn_k": facts.kv_heads}.get(name.split(".")[-2])
        if heads is None or not self.interleaved or facts.get("rope_traditional"):
            return None
        halves = np.arange(rows, dtype=np.int32).reshape(heads, 2, rows // heads // 2)
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(-1)

    def told(self, facts: Facts) -> Told:
        """Every key, and tensor of factors. Raises ModelError where llama.cpp would compute
        something else."""
        args, head_dim = facts.args, facts.head_dim
        if facts.get("rope_traditional") and not self.interleaved:
            raise ModelError(f"rope_traditional is not what llama.cpp's {self.name} computes")
        if self.square and head_dim * facts.heads != args.hidden_size:
            raise ModelError(
                f"{facts.heads} heads of {head_dim} do not make {args.hidden_size}, which "
                f"llama.cpp's {self.name} needs"
            )
        common = {
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
        }
        return Told(common) | self.rotary(facts) | self.extra(facts)


def gguf_name(architecture: str, path: str, layers: int) -> str | None:
    """The gguf package's own name for a weight or bias of mlx-lm's; None where it has none."""
    # As Hugging Face's layout calls the experts.
    theirs = re.sub(r"(mlp|block_sparse_moe)\.switch_mlp", "mlp.experts", path)
    return _names(architecture, layers).get_name(theirs, try_suffixes=(".weight", ".bias"))


@functools.cache
def _names(architecture: str, layers: int) -> gguf.TensorNameMap:
    number = next((n for n, a in gguf.MODEL_ARCH_NAMES.items() if a == architecture), None)
    if number is None:
        raise ModelError(f"has the unknown architecture {architecture!r}")
    return gguf.get_tensor_name_map(number, layers)


def architecture_of(model: nn.Module, config: Mapping[str, Any]) -> tuple[Architecture, Facts]:
    """llama.cpp's architecture of a model that mlx-lm read, and the facts about it. Raises
    ModelError for one that is not supported."""
    kind = config.get("model_type")
    inner = getattr(model, "language_model", model)
    if kind == "gemma3" and inner is not model:
        kind = "gemma3_text"
    found = ARCHITECTURES.get(str(kind))
    if found is None:
        what = f"model_type {kind!r} cannot be exported to GGUF"
        raise ModelError(what, hint="supported: " + ", ".join(sorted(ARCHITECTURES)))
    rows = int(inner.model.embed_tokens.weight.shape[0])
    text = config.get("text_config") if inner is not model else None
    facts = Facts(inner.args, text or config, "lm_head" not in inner, rows)
    return found, facts


def _plain(facts: Facts) -> Told:
    """A base alone; mlx-lm's module of the architecture knows no scaling."""
    return Told({"rope.freq_base": float(facts.get("rope_theta", 10000.0))})


def _scaled(facts: Facts) -> Told:
    """A base and the scaling of mlx-lm's rope_utils. Raises ModelError for one llama.cpp lacks."""
    base = _plain(facts)
    scaling = facts.get("rope_scaling") or {}
    kind = scaling.get("type") or scaling.get("rope_type", "default")
    if kind == "default":
        return base
    if kind == "linear":
        return base | _linear(scaling)
    if kind == "llama3":
        factors = _llama3_factors(facts.head_dim, base.keys["rope.freq_base"], scaling)
        return base | Told({}, {"rope_freqs.weight": factors})
    if kind == "yarn":
        return base | _yarn(scaling)
    raise ModelError(f"llama.cpp has no rotary scaling {kind!r} as mlx-lm computes it")


def _without_factors(facts: Facts) -> Told:
    """The same where llama.cpp's loader refuses a tensor of factors. Raises ModelError for one."""
    found = _scaled(facts)
    if found.tensors:
        raise ModelError("llama.cpp takes llama3's rotary factors with llama and granite alone")
    return found


def _with_local_base(facts: Facts) -> Told:
    """Gemma 3: another base, and no scaling, in the layers with a window."""
    found = _without_factors(facts)
    local = float(facts.get("rope_local_base_freq", 10000.0))
    # Versions of llama.cpp before there was this key take 10,000.
    return found if local == 10000.0 else found | Told({"rope.freq_base_swa": local})


def _longrope(facts: Facts) -> Told:
    """Phi 3: part of each head is rotated, and long rows have a factor for each frequency."""
    pairs = int(facts.head_dim * facts.get("partial_rotary_factor", 1.0)) // 2
    original = int(facts.get("original_max_position_embeddings", 4096))
    sizes = {"rope.dimension_count": 2 * pairs, "rope.scaling.original_context_length": original}
    base = _plain(facts) | Told(sizes)
    scaling = facts.get("rope_scaling") or {}
    kind = scaling.get("type", "default")
    if kind == "default":
        return base
    if kind == "linear":
        return base | _linear(scaling)
    factors = np.broadcast_to(np.asarray(scaling["long_factor"], dtype=np.float32), (pairs,))
    stretch = facts.context_tokens / original
    if stretch > 1:
        magnitude = math.sqrt(1 + math.log(stretch) / math.log(original))
        base |= Told({"rope.scaling.attn_factor": magnitude})
    # llama.cpp would take the short factors in short contexts; mlx-lm takes the long ones always.
    tensors = {f"rope_factors_{length}.weight": factors.copy() for length in ("long", "short")}
    note = "long rotary factors in contexts of any length, as mlx-lm computes and trains"
    return base | Told({}, tensors, (note,))


def _linear(scaling: Mapping[str, Any]) -> Told:
    return Told({"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling["factor"])})


def _yarn(scaling: Mapping[str, Any]) -> Told:
    """Peng et al., 2309.00071, section 3.4."""
    if scaling.get("mscale", 1) != 1 or scaling.get("mscale_all_dim", 0) != 0:
        raise ModelError("llama.cpp has no mscale of its own in yarn scaling")
    for name, theirs in (("beta_fast", 32), ("beta_slow", 1)):
        # There are keys for them, which llama.cpp reads for other architectures only.
        if scaling.get(name, theirs) != theirs:
            what = f"yarn scaling with {name} {scaling[name]}, and llama.cpp takes {theirs}"
            raise ModelError(what)
    original = int(scaling.get("original_max_position_embeddings", 4096))
    keys = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(scaling["factor"]),
        "rope.scaling.original_context_length": original,
    }
    return Told(keys)


def _llama3_factors(dims: int, base: float, scaling: Mapping[str, Any]) -> Float32:
    """What Llama 3.1 divides each frequency by: 1 for fast ones, `factor` for slow ones."""
    factor = float(scaling["factor"])
    low = float(scaling.get("low_freq_factor", 1.0))
    high = float(scaling.get("high_freq_factor", 4.0))
    original = float(scaling.get("original_max_position_embeddings", 8192))
    wavelengths = 2 * math.pi * base ** (np.arange(0, dims, 2, dtype=np.float64) / dims)
    smooth = (original / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    slow = np.where(wavelengths > original / low, factor, between)
    return np.where(wavelengths <= original / high, 1.0, slow).astype(np.float32)


def _llama(facts: Facts) -> Told:
    if "sliding_attention" not in (facts.get("layer_types") or ()):
        return Told({})
    # llama.cpp's llama has no window; within one, there is nothing that it would hide.
    tokens = min(facts.context_tokens, int(facts.args.sliding_window))
    note = (
        f"context length {tokens}: beyond its sliding window llama.cpp would compute something else"
    )
    return Told({"context_length": tokens}, notes=(note,))


def _mixture(facts: Facts) -> Told:
    count = facts.get("num_local_experts") or facts.get("num_experts")
    used = int(facts.args.num_experts_per_tok)
    return Told({"expert_count": int(count), "expert_used_count": used})


def _qwen3_moe(facts: Facts) -> Told:
    args = facts.args
    if args.mlp_only_layers or args.decoder_sparse_step != 1:
        raise ModelError("has layers without experts, which llama.cpp's qwen3moe cannot have")
    if not args.norm_topk_prob:
        raise ModelError("norm_topk_prob is false, and llama.cpp's qwen3moe always norms")
    width = int(args.moe_intermediate_size)
    return _mixture(facts) | Told({"expert_feed_forward_length": width})


def _require_gemma_scale(facts: Facts, name: str) -> None:
    is_27b = facts.args.num_hidden_layers == _GEMMA_27B[name]
    theirs = facts.args.hidden_size // facts.heads if is_27b else facts.head_dim
    if facts.args.query_pre_attn_scalar != theirs:
        raise ModelError(
            f"query_pre_attn_scalar is {facts.args.query_pre_attn_scalar}, and llama.cpp's {name} "
            f"takes {theirs}"
        )


def _gemma2(facts: Facts) -> Told:
    _require_gemma_scale(facts, "gemma2")
    window = int(facts.config.get("sliding_window") or 4096)
    keys = {
        "attn_logit_softcapping": float(facts.args.attn_logit_softcapping),
        "final_logit_softcapping": float(facts.args.final_logit_softcapping),
        # mlx-lm computes Gemma 2 without its window: so wide that it hides nothing.
        "attention.sliding_window": max(facts.context_tokens, window),
    }
    note = f"no sliding window of {window} tokens, as mlx-lm computes and trains without it"
    return Told(keys, notes=(note,) if facts.context_tokens > window else ())


def _gemma3(facts: Facts) -> Told:
    _require_gemma_scale(facts, "gemma3")
    pattern = int(facts.args.sliding_window_pattern)
    if pattern == 1:
        return Told({})
    found = Told({"attention.sliding_window": int(facts.args.sliding_window)})
    # 6 is what every version of llama.cpp takes.
    return found if pattern == 6 else found | Told({"attention.sliding_window_pattern": pattern})


def _smollm3(facts: Facts) -> Told:
    given = [bool(x) for x in facts.args.no_rope_layers]
    if given != [(i + 1) % 4 != 0 for i in range(len(given))]:
        what = "rotates other layers than llama.cpp's smollm3, which leaves out every 4th"
        raise ModelError(what)
    return Told({})


def _granite(facts: Facts) -> Told:
    theirs = {
        "attention.scale": "attention_multiplier",
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "logit_scale": "logits_scaling",
    }
    return Told({key: float(getattr(facts.args, name)) for key, name in theirs.items()})


_LLAMA = Architecture("llama", _scaled, _llama, interleaved=True, biases=_BIASED)
# By mlx-lm's model_type.
ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": Architecture("llama", _plain, _mixture, interleaved=True),
    "qwen2": Architecture("qwen2", _without_factors, square=True),
    "qwen3": Architecture("qwen3", _without_factors),
    "qwen3_moe": Architecture("qwen3moe", _plain, _qwen3_moe),
    "gemma2": Architecture("gemma2", _plain, _gemma2, norm_offset=1),
    "gemma3_text": Architecture("gemma3", _with_local_base, _gemma3, norm_offset=1),
    # mlx-lm computes Phi without a window, and so does llama.cpp where it is 0.
    "phi3": Architecture(
        "phi3", _longrope, lambda _: Told({"attention.sliding_window": 0}), square=True
    ),
    "smollm3": Architecture("smollm3", _without_factors, _smollm3, interleaved=True),
    "granite": Architecture("granite", _scaled, _granite, interleaved=True, biases=_BIASED),
    "olmo2": Architecture("olmo2", _without_factors, square=True, needs_output=True),
}
