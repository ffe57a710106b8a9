"""Which ways of computing a step are taken, and why: what is exact for the model, what fits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_itune.model.engine import backward
from mlx_itune.model.engine.attention import weights_kept
from mlx_itune.model.engine.memory import (
    attention_bytes,
    bytes_per_token,
    default_budget_bytes,
    logits_bytes,
)
from mlx_itune.model.engine.probe import Exact, exact_ways
from mlx_itune.model.engine.training_caches import Kind
from mlx_itune.model.loading import backend
from mlx_itune.training.engine.microbatch import Device
from mlx_itune.training.engine.rank_choice import Ranks
from mlx_itune.training.settings import TrainSettings

# Tokens of a micro-batch: as many as keep a GPU busy.
_FEWEST_TOKENS, _MOST_TOKENS = 64, 4096
# Of the memory that is left, what activations may take: the rest is work space.
ROOM_SHARE = 0.7
# What activations may take on a CPU, if it is more than the weights take.
_CPU_BYTES = 3 << 27
# What a rectangle costs besides its positions, in positions: on a GPU its launches.
_CPU_OVERHEAD_TOKENS, _METAL_OVERHEAD_TOKENS, _CUDA_OVERHEAD_TOKENS = 32, 512, 2048


@dataclass(frozen=True)
class Ways:
    """What a learner does. kept_tokens: how many of a rectangle may keep what all blocks make of
    them, if they saw none of each other; weights kept of `keys` are as much again."""

    device: Device
    head: bool
    caches: tuple[Kind, ...]
    gap_tokens: int
    packing: bool
    sharing: bool
    blocks: int
    micro_batch_tokens: int
    kept_tokens: float
    keys: float
    kind: str | None
    learned_multiple: int
    words: dict[str, str]

    def recomputed_blocks(self, rows: int, queries: int, keys: int) -> int:
        """How many blocks are made again for the backward pass of rows that see so many keys."""
        kept = weights_kept(queries, keys, self.kind, backend.on_cpu())[0]
        tokens = rows * queries * (1 + kept / self.keys)
        return recomputed_blocks(self.blocks, tokens, self.kept_tokens)


def recomputed_blocks(blocks: int, tokens: float, kept_tokens: float) -> int:
    """How many blocks are made again for the backward pass, so that memory is that of fewer tokens.

    One more than that, for the one that is being made again.
    """
    if tokens <= kept_tokens:
        return 0
    return min(blocks, 1 + math.ceil(blocks * (1 - kept_tokens / tokens)))


def device_here(lanes: int) -> Device:
    """This machine's."""
    if backend.on_cpu():
        return Device(lanes, multiple=4, overhead_tokens=_CPU_OVERHEAD_TOKENS)
    if mx.metal.is_available():
        return Device(1, multiple=16, bucketed=True, overhead_tokens=_METAL_OVERHEAD_TOKENS)
    return Device(1, multiple=128, bucketed=True, overhead_tokens=_CUDA_OVERHEAD_TOKENS)


def ways_for(
    model: nn.Module, settings: TrainSettings, lanes: int, exact: Exact | None = None
) -> Ways:
    """The ways for a model with its adapter on; exact: what is, looked up if None."""
    exact = exact or exact_ways(model)
    words = {"head": "learned positions, in chunks" if exact.head else "every position"}
    if not exact.head:
        words["head"] += f" ({exact.reasons.get('head', 'not exact')})"
    packing = _chosen("packing", settings.packing, exact.packing, exact, words)
    sharing = _chosen("prefix", settings.prefix_sharing, exact.sharing, exact, words)
    weights_bytes = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    each_bytes = bytes_per_token(model)
    room_tokens = _room(model, settings, lanes, weights_bytes) / each_bytes
    tokens = micro_batch_tokens(settings, room_tokens, each_bytes, weights_bytes)
    words["micro_batch_tokens"] = str(tokens)
    kept = kept_tokens(settings, room_tokens, each_bytes, weights_bytes)
    if not exact.checkpointing:
        kept = math.inf
        words["checkpointing"] = f"off: {exact.reasons.get('checkpointing', 'not exact')}"
    elif settings.gradient_checkpointing == "auto":
        words["checkpointing"] = f"above {int(kept)} tokens, as many blocks as it takes"
    else:
        words["checkpointing"] = "off, as asked" if kept else "every block"
    return Ways(
        device=device_here(lanes),
        head=exact.head,
        caches=exact.caches,
        gap_tokens=exact.gap_tokens,
        packing=packing,
        sharing=sharing,
        blocks=len(model.layers),
        micro_batch_tokens=tokens,
        kept_tokens=kept / lanes,
        keys=each_bytes / attention_bytes(model),
        kind=getattr(model, "model_type", None),
        learned_multiple=1 if backend.on_cpu() else 64,
        words=words,
    )


def with_backward(
    ways: Ways,
    model: nn.Module,
    settings: TrainSettings,
    rows: int,
    *,
    chosen: str | None = None,
    ranks: Ranks | None = None,
) -> Ways:
    """On a GPU, also how quantized layers go back, which the model does from then on.

    rows: positions of a step; chosen: as before, when a run is resumed.
    """
    if backend.on_cpu() or settings.compute != "auto":
        return ways
    if chosen not in ("quantized", "dequantized"):
        found = backward.timing(model, min(rows, ways.micro_batch_tokens))
        if found is None:
            return ways
        # All processes of a run decide alike.
        both = (ranks or Ranks()).numbers(found.quantized_s, found.dequantized_s)
        chosen = "dequantized" if both[1] < both[0] else "quantized"
    if chosen == "dequantized":
        budget = settings.memory_bytes or default_budget_bytes()
        backward.unpack(model, backward.COPY_SHARE * budget)
    return replace(ways, words={**ways.words, "backward": chosen})


_WORDS = {"packing": "where it saves padding", "prefix": "common first tokens once per step"}


def _chosen(name: str, asked: str, is_exact: bool, exact: Exact, words: dict[str, str]) -> bool:
    if asked == "off":
        words[name] = "off, as asked"
    elif not is_exact:
        words[name] = f"off: {exact.reasons.get(name, 'not exact')}"
    else:
        words[name] = _WORDS[name]
    return asked != "off" and is_exact


def _room(model: nn.Module, settings: TrainSettings, lanes: int, weights_bytes: int) -> float:
    """What the activations of one micro-batch may take."""
    budget = settings.memory_bytes or default_budget_bytes()
    trained = sum(array.size for _, array in tree_flatten(model.trainable_parameters()))
    # Gradients, AdamW's two moments, and room for the update.
    fixed = weights_bytes + 4 * 5 * trained + lanes * logits_bytes(model)
    return float(ROOM_SHARE * max(0.0, budget - fixed))


def micro_batch_tokens(
    settings: TrainSettings, room_tokens: float, token_bytes: float, weights_bytes: float
) -> int:
    """Tokens of a micro-batch, where the activations of `room_tokens` fit."""
    most = min(room_tokens, _cheap_tokens(token_bytes, weights_bytes), _MOST_TOKENS)
    return settings.micro_batch_tokens or max(_FEWEST_TOKENS, int(most))


def kept_tokens(
    settings: TrainSettings, room_tokens: float, token_bytes: float, weights_bytes: float
) -> float:
    """Micro-batches of more tokens than this keep their blocks' inputs only."""
    if settings.gradient_checkpointing == "auto":
        return min(room_tokens, _cheap_tokens(token_bytes, weights_bytes))
    return 0.0 if settings.gradient_checkpointing == "on" else math.inf


def _cheap_tokens(token_bytes: float, weights_bytes: float) -> float:
    """As many as a CPU keeps the activations of: memory that is touched anew costs time there."""
    return max(weights_bytes, _CPU_BYTES) / token_bytes if backend.on_cpu() else math.inf
