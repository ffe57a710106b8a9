"""How llama.cpp knows an architecture: its names for tensors, and the numbers it must be told.

Names and keys: github.com/ggml-org/ggml, docs/gguf.md, and llama.cpp's loaders (src/models). What
is described is the model as mlx-lm computes it; where llama.cpp's fixed graph computes something
else, `metadata` refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlx_itune.export.gguf.rotary import Rotary, scaled
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
