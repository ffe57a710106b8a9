"""Which ways of computing a step are taken, and why: what is exact for the model, what fits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_itune.model.engine import cpu, host
from mlx_itune.model.engine.checkpointing import checkpointed_blocks
from mlx_itune.model.engine.loss import Nll, plain_nll, weighted_nll
from mlx_itune.model.engine.memory import (
    bytes_per_token,
    default_budget_bytes,
    hidden_size,
    logits_bytes,
)
from mlx_itune.model.engine.probe import Exact
from mlx_itune.model.engine.training_caches import KeysValues, Rows, caches, recorded
from mlx_itune.model.loading import backend
from mlx_itune.training.engine.microbatch import OVERHEAD_TOKENS, MicroBatch, Packing, Prefix
from mlx_itune.training.settings import TrainSettings

# Tokens of a micro-batch: on a CPU as many as keep its arrays small, on a GPU as many as keep it
# busy.
CPU_TOKENS, GPU_TOKENS = 384, 4096
FEWEST_TOKENS = 64
# Of a longer row, a CPU keeps the activations of as many blocks as keep memory at this: so it
# depends little on the longest row, and on a CPU memory that is touched anew costs time as well.
CPU_KEPT_TOKENS = 384
# A row of so many tokens times hidden size is computed alone on a Linux CPU, block by block, with
# NumPy's help (model/host): a narrow model's blocks are too little work for that.
_AT_ONCE_NUMBERS, _AT_ONCE_TOKENS = 768 * 512, 384
# What a micro-batch costs besides its tokens, in tokens: a fast GPU waits for the host.
_CUDA_OVERHEAD_TOKENS = 2048
# A prefix is cut into parts of no fewer tokens.
_PART_TOKENS = 96


@dataclass(frozen=True)
class Paths:
    """What a learner does.

    kept_tokens: how many may keep what all blocks make of them; at_once_tokens: above so many a
    micro-batch is computed alone, block by block.
    """

    nll: Nll
    cached: bool
    cache_count: int
    blocks: int
    packing: Packing
    sharing: bool
    packed_sharing: bool
    micro_batch_tokens: int
    kept_tokens: float
    at_once_tokens: float
    overhead_tokens: int
    words: dict[str, str]

    def sums(
        self, model: nn.Module, batch: MicroBatch, shared: KeysValues | None = None
    ) -> tuple[mx.array, mx.array]:
        """The weighted loss of a micro-batch and its weight; shared: its prefix's."""
        before = shared[0][0].shape[2] if shared else 0
        made = None
        if self.cached or shared or batch.lengths:
            rows = Rows(batch.input_ids.shape[1] - 1, batch.lengths, before)
            made = caches(self.cache_count, rows, shared)
        if self.at_once(batch):
            with host.at_once(), checkpointed_blocks(model, at_once=True):
                return self.nll(model, batch.input_ids, batch.weights, caches=made)
        with checkpointed_blocks(model, self._recomputed(model, batch.tokens)):
            return self.nll(model, batch.input_ids, batch.weights, caches=made)

    def at_once(self, batch: MicroBatch) -> bool:
        """Whether a micro-batch is computed alone, block by block, on all cores."""
        return batch.prefix is None and batch.tokens > self.at_once_tokens

    def rounds(self, group: Sequence[MicroBatch]) -> list[list[MicroBatch]]:
        """What may be computed side by side, and then each that is computed alone."""
        alone = [[batch] for batch in group if self.at_once(batch)]
        beside = [batch for batch in group if not self.at_once(batch)]
        return [beside, *alone] if beside else alone

    def divides(self, batch: MicroBatch) -> bool:
        """Whether a micro-batch is one sequence, long enough to be computed in parts."""
        single = len(batch.input_ids) == 1 and (batch.lengths is None or len(batch.lengths[0]) == 1)
        tokens = batch.input_ids.shape[1] - 1
        fair = self.cached and self.sharing and not self.at_once(batch)
        return single and fair and tokens >= 2 * _PART_TOKENS

    def prefix_sums(
        self, model: nn.Module, prefix: Prefix, streams: Sequence[Any] = ()
    ) -> tuple[mx.array, mx.array, KeysValues]:
        """The same for a prefix, and its keys and values.

        streams: on these it runs in as many parts, each behind the ones before it: a later part's
        first layers beside an earlier one's next.
        """
        parts = min(max(1, len(streams)), 1 + prefix.tokens // _PART_TOKENS)
        cuts = [prefix.tokens * part // parts for part in range(parts + 1)]
        nll, weight, kept = mx.array(0.0), mx.array(0.0), None
        for part, (start, stop) in enumerate(pairwise(cuts)):
            ids = prefix.input_ids[:, start : stop + 1]
            weights = prefix.weights[:, start : stop + 1]
            made = caches(self.cache_count, Rows(stop - start, None, start), kept, record=True)
            recomputed = self._recomputed(model, prefix.tokens)
            with mx.stream(streams[part]) if parts > 1 else nullcontext():
                with checkpointed_blocks(model, recomputed):
                    more, learned = self.nll(model, ids, weights, caches=made)
                nll, weight = nll + more, weight + learned
                kept = _extended(kept, recorded(made))
        return nll, weight, kept or []

    def _recomputed(self, model: nn.Module, tokens: int) -> int:
        return recomputed_blocks(self.blocks, tokens, self.kept_tokens) if model.training else 0


def recomputed_blocks(blocks: int, tokens: int, kept_tokens: float) -> int:
    """How many blocks are made again for the backward pass, so that memory is that of fewer tokens.

    One more than that, for the one that is being made again.
    """
    if tokens <= kept_tokens:
        return 0
    return min(blocks, 1 + math.ceil(blocks * (1 - kept_tokens / tokens)))


def at_once_tokens(hidden: int) -> float:
    """Above so many tokens a row is computed alone, block by block, on this device."""
    if not cpu.is_faster():
        return float("inf")
    return float(max(_AT_ONCE_TOKENS, _AT_ONCE_NUMBERS // max(1, hidden)))


def _at_once(
    model: nn.Module, exact: Exact, settings: TrainSettings, nll: Nll | None, words: dict[str, str]
) -> float:
    tokens = at_once_tokens(hidden_size(model))
    if tokens == float("inf") or nll is not None or settings.gradient_checkpointing != "auto":
        return float("inf")
    if not exact.at_once:
        words["long_rows"] = f"as others: {exact.reasons.get('at_once', 'not exact')}"
        return float("inf")
    words["long_rows"] = f"above {int(tokens)} tokens block by block, on all cores"
    return tokens


def _extended(before: KeysValues | None, behind: KeysValues) -> KeysValues:
    if before is None:
        return behind
    return [
        (mx.concatenate([k, more_k], axis=2), mx.concatenate([v, more_v], axis=2))
        for (k, v), (more_k, more_v) in zip(before, behind, strict=True)
    ]


def choose(
    model: nn.Module, exact: Exact, settings: TrainSettings, lanes: int, nll: Nll | None = None
) -> Paths:
    """The paths for a model with its adapter on; nll overrides how the head is computed."""
    words: dict[str, str] = {}
    head = exact.head if nll is None else nll is weighted_nll
    words["head"] = "learned positions, in chunks" if head else "every position"
    if not exact.head:
        words["head"] += f" ({exact.reasons.get('head', 'not exact')})"
    packing = _packing(exact, settings, words)
    sharing = _sharing(exact, settings, words)
    room_tokens = _room(model, settings, lanes) / bytes_per_token(model)
    tokens = micro_batch_tokens(settings, room_tokens, backend.on_cpu())
    words["micro_batch_tokens"] = str(tokens)
    kept = _kept(exact, settings, room_tokens, words)
    return Paths(
        nll=nll or (weighted_nll if exact.head else plain_nll),
        cached=exact.caches and cpu.is_faster(),
        cache_count=exact.cache_count,
        blocks=len(model.layers),
        packing=packing,
        sharing=sharing,
        packed_sharing=exact.packing_and_sharing,
        micro_batch_tokens=tokens,
        kept_tokens=kept,
        at_once_tokens=_at_once(model, exact, settings, nll, words),
        overhead_tokens=overhead_tokens(),
        words=words,
    )


def overhead_tokens() -> int:
    """What a micro-batch costs on this device besides its tokens."""
    return OVERHEAD_TOKENS if backend.on_cpu() or mx.metal.is_available() else _CUDA_OVERHEAD_TOKENS


def _packing(exact: Exact, settings: TrainSettings, words: dict[str, str]) -> Packing:
    if settings.packing == "off":
        words["packing"] = "off, as asked"
        return "off"
    if not exact.packing:
        words["packing"] = f"off: {exact.reasons.get('packing', 'not exact')}"
        return "off"
    if cpu.is_faster():
        words["packing"] = "rows side by side, no padding"
        return "row"
    words["packing"] = "where it saves padding"
    return "bins"


def _sharing(exact: Exact, settings: TrainSettings, words: dict[str, str]) -> bool:
    if settings.prefix_sharing == "off":
        words["prefix"] = "off, as asked"
    elif not exact.sharing:
        words["prefix"] = f"off: {exact.reasons.get('prefix', 'not exact')}"
    else:
        words["prefix"] = "common first tokens once per step"
        if not exact.packing_and_sharing and exact.packing:
            words["prefix"] += f", not packed: {exact.reasons.get('packing_and_prefix', '')}"
        return True
    return False


def _room(model: nn.Module, settings: TrainSettings, lanes: int) -> float:
    """What the activations of one micro-batch may take."""
    budget = settings.memory_bytes or default_budget_bytes()
    parameters = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    trained = sum(array.size for _, array in tree_flatten(model.trainable_parameters()))
    # Gradients, AdamW's two moments, and room for the update.
    fixed = parameters + 4 * 5 * trained + lanes * logits_bytes(model)
    return float(max(0.0, (budget - fixed) / lanes))


def micro_batch_tokens(settings: TrainSettings, room_tokens: float, on_cpu: bool) -> int:
    """Tokens of a micro-batch, where the activations of `room_tokens` fit."""
    default = CPU_TOKENS if on_cpu else GPU_TOKENS
    affordable = max(FEWEST_TOKENS, int(room_tokens))
    return settings.micro_batch_tokens or min(default, affordable)


def kept_tokens(settings: TrainSettings, room_tokens: float, on_cpu: bool) -> float:
    """Micro-batches of more tokens than this keep their blocks' inputs only."""
    if settings.gradient_checkpointing == "auto":
        return min(room_tokens, CPU_KEPT_TOKENS) if on_cpu else room_tokens
    return 0.0 if settings.gradient_checkpointing == "on" else float("inf")


def _kept(
    exact: Exact, settings: TrainSettings, room_tokens: float, words: dict[str, str]
) -> float:
    kept = kept_tokens(settings, room_tokens, backend.on_cpu())
    if not exact.checkpointing:
        kept = float("inf")
        words["checkpointing"] = f"off: {exact.reasons.get('checkpointing', 'not exact')}"
    elif settings.gradient_checkpointing == "auto":
        words["checkpointing"] = f"above {int(kept)} tokens, as many blocks as it takes"
    else:
        words["checkpointing"] = "off, as asked" if kept else "every block"
    return kept
