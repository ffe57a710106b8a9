"""Attention for MLX on Linux CPUs, and its gradient; the same function as mlx-lm's.

Only the scores that a causal mask lets through are computed: queries go in blocks, each with the
keys it may see, sequence by sequence where several are packed in one row, and keys that come before
all of them (a shared prefix) in one product for all queries. Exponentials are the cost here, then
reductions; `cpu` has what is fast of either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import mlx.core as mx

from mlx_itune.model.engine.cpu_math import LOG2_E, exp2, on_one_stream, row_max, row_sum

# Queries per block of a causal attention: small enough to skip most of the upper half.
BLOCK_TOKENS = 72
# Added to a score that the mask hides: exp2 of it is exactly 0, and nothing overflows.
HIDDEN = -1e30

Arrays = list[mx.array]


@dataclass(frozen=True)
class Block:
    """Queries [start, stop) against keys [first, last); bias is added to scores, in log2 units.

    Queries and keys count from the row's first, the keys of a shared prefix before them.
    """

    start: int
    stop: int
    first: int
    last: int
    bias: mx.array | None


@dataclass(frozen=True)
class Plan:
    """The blocks cover every query once, in order; all queries see keys [0, shared) besides.

    shared_bias: (queries, shared), or None where no window ends.
    """

    blocks: tuple[Block, ...]
    shared: int = 0
    shared_bias: mx.array | None = None


def causal_plan(
    lengths: Sequence[int],
    shared: int = 0,
    window: int | None = None,
    block_tokens: int = BLOCK_TOKENS,
) -> Plan:
    """Sequences of `lengths` side by side, each after the same `shared` keys.

    window: how many keys, itself included, a query sees at most; None is no limit.
    """
    blocks: list[Block] = []
    begin = 0
    for length in lengths:
        parts = -(-length // block_tokens)
        cuts = [begin + length * part // parts for part in range(parts + 1)]
        for start, stop in pairwise(cuts):
            low = begin if window is None else max(begin, start - window + 1)
            queries = mx.arange(start, stop)[:, None]
            keys = mx.arange(low, stop)[None]
            allowed = queries >= keys
            if window is not None and stop - low > window:
                allowed = allowed & (queries - keys < window)
            blocks.append(Block(start, stop, shared + low, shared + stop, additive(allowed)))
        begin += length
    bias = None
    if window is not None and shared and shared + max(lengths) > window:
        places = mx.concatenate([mx.arange(shared, shared + length) for length in lengths])
        bias = additive(places[:, None] - mx.arange(shared)[None] < window)
    return Plan(tuple(blocks), shared, bias)


def dense_plan(tokens: int, seen: int, mask: mx.array | None) -> Plan:
    """Every query against every key under a mask (..., queries, keys), boolean or added."""
    if mask is None:
        bias = None
    elif mask.dtype == mx.bool_:
        bias = additive(mask)
    else:
        bias = mx.maximum(mask.astype(mx.float32) * LOG2_E, HIDDEN)
    return Plan((Block(0, tokens, 0, seen, bias),))


def additive(allowed: mx.array) -> mx.array:
    """0 where a score counts, HIDDEN where not; float32."""
    return (1 - allowed.astype(mx.float32)) * HIDDEN


def attend(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, plan: Plan
) -> mx.array:
    """softmax(scale * Q K^T + bias) V: queries (B, heads, T, D), the others (B, kv heads, S, D)."""
    out: mx.array = _operation(scale, plan)(queries, keys, values)[0]
    return out


def _operation(scale: float, plan: Plan) -> Callable[..., Arrays]:
    def forward(queries: mx.array, keys: mx.array, values: mx.array) -> Arrays:
        rows = _Rows(queries, keys.shape[1])
        q = rows.grouped(queries * (scale * LOG2_E))
        before = None
        if plan.shared:
            scores = rows.ungroup(rows.flat(q) @ _transposed(keys[:, :, : plan.shared]))
            before = scores if plan.shared_bias is None else scores + plan.shared_bias
            before_peak = row_max(before)
        outs, sums, peaks, kept = [], [], [], []
        for block in plan.blocks:
            part = rows.flat(q[..., block.start : block.stop, :])
            scores = rows.ungroup(part @ _transposed(_seen(keys, block)))
            if block.bias is not None:
                scores = scores + _fold(block.bias, rows.kv_heads)
            peak = row_max(scores)
            if before is not None:
                peak = mx.maximum(peak, before_peak[..., block.start : block.stop, :])
                peaks.append(peak)
            weights = exp2(scores - peak)
            sums.append(row_sum(weights))
            outs.append(rows.ungroup(rows.flat(weights) @ _seen(values, block)))
            kept.append(weights)
        out, total = _joined(outs), _joined(sums)
        if before is not None:
            weights = exp2(before - _joined(peaks))
            total = total + row_sum(weights)
            out = out + rows.ungroup(rows.flat(weights) @ values[:, :, : plan.shared])
            kept.append(weights)
        inverse = 1 / total
        return [rows.joined(out * inverse), inverse, *kept]

    def backward(primals: Arrays, cotangents: Arrays, outputs: Arrays) -> Arrays:
        queries, keys, values = primals
        rows = _Rows(queries, keys.shape[1])
        out, inverse, kept = outputs[0], outputs[1], outputs[2:]
        q = rows.grouped(queries * (scale * LOG2_E))
        # rowsum(dO * O) equals rowsum(dP * P) (FlashAttention, 2205.14135, appendix B.2).
        delta = rows.grouped(row_sum(cotangents[0] * out)) * inverse
        d_out = rows.grouped(cotangents[0]) * inverse
        d_queries, d_keys, d_values = [], _Pieces(), _Pieces()
        for block, weights in zip(plan.blocks, kept, strict=False):
            places = slice(block.start, block.stop)
            d_rows = rows.flat(d_out[..., places, :])
            d_weights = rows.ungroup(d_rows @ _transposed(_seen(values, block)))
            d_scores = rows.flat(weights * (d_weights - delta[..., places, :]))
            d_queries.append(rows.ungroup(d_scores @ _seen(keys, block)))
            d_keys.add(block, _transposed(d_scores) @ rows.flat(q[..., places, :]))
            d_values.add(block, _transposed(rows.flat(weights)) @ d_rows)
        d_q = _joined(d_queries)
        if plan.shared:
            weights, d_rows = kept[-1], rows.flat(d_out)
            d_weights = rows.ungroup(d_rows @ _transposed(values[:, :, : plan.shared]))
            d_scores = rows.flat(weights * (d_weights - delta))
            d_q = d_q + rows.ungroup(d_scores @ keys[:, :, : plan.shared])
            d_keys.begin_with(_transposed(d_scores) @ rows.flat(q))
            d_values.begin_with(_transposed(rows.flat(weights)) @ d_rows)
        return [
            rows.joined(d_q * scale),
            d_keys.joined(keys.shape[2]) * (1 / LOG2_E),
            d_values.joined(keys.shape[2]),
        ]

    return on_one_stream(forward, backward)


class _Rows:
    """Query heads grouped by the key head they share: (B, kv heads, heads per kv head, T, D)."""

    def __init__(self, queries: mx.array, kv_heads: int) -> None:
        self.batch, self.heads = queries.shape[:2]
        self.kv_heads = kv_heads
        self.per_kv_head = self.heads // kv_heads

    def grouped(self, x: mx.array) -> mx.array:
        return x.reshape(self.batch, self.kv_heads, self.per_kv_head, *x.shape[2:])

    def flat(self, x: mx.array) -> mx.array:
        """(B, kv heads, per kv head * T, D), one matrix for all heads that share keys."""
        return x.reshape(self.batch, self.kv_heads, -1, x.shape[-1])

    def ungroup(self, x: mx.array) -> mx.array:
        """What `flat` took, back as five axes."""
        return x.reshape(self.batch, self.kv_heads, self.per_kv_head, -1, x.shape[-1])

    def joined(self, x: mx.array) -> mx.array:
        """(B, heads, T, D)."""
        return x.reshape(self.batch, self.heads, *x.shape[3:])


class _Pieces:
    """The gradient of keys or values, from blocks of which a later one sees all an earlier saw."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, int, mx.array]] = []

    def add(self, block: Block, part: mx.array) -> None:
        self._parts.append((block.first, block.last, part))

    def begin_with(self, part: mx.array) -> None:
        self._parts.insert(0, (0, part.shape[2], part))

    def joined(self, length: int) -> mx.array:
        pieces: list[tuple[int, int, mx.array]] = []
        # From the last block backwards: the longest of a sequence comes first and takes the others.
        for first, last, part in reversed(self._parts):
            if pieces and last > pieces[-1][0]:
                begin, end, total = pieces.pop()
                start = min(begin, first)
                if first < begin:
                    missing = mx.zeros((*part.shape[:2], begin - first, part.shape[3]))
                    total = mx.concatenate([missing, total], axis=2)
                inside = (slice(None), slice(None), slice(first - start, last - start))
                total[inside] = total[inside] + part
                pieces.append((start, end, total))
            else:
                pieces.append((first, last, part))
        ordered = [part for _, _, part in reversed(pieces)]
        return ordered[0] if len(ordered) == 1 else mx.concatenate(ordered, axis=2)


def _seen(array: mx.array, block: Block) -> mx.array:
    return array[:, :, block.first : block.last]


def _transposed(array: mx.array) -> mx.array:
    return array.swapaxes(-1, -2)


def _joined(parts: Arrays) -> mx.array:
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-2)


def _fold(bias: mx.array, shared: int) -> mx.array:
    """A mask (..., heads or 1, tokens, keys), shaped for (B, kv heads, per kv head, ...)."""
    if bias.ndim < 3:
        return bias
    if bias.shape[-3] == 1:
        return mx.expand_dims(bias, -3)
    return mx.unflatten(bias, -3, (shared, -1))
