"""Attention of a row that is computed at once (see `host`), and its gradient.

As `cpu_attention` has it, a head a core, in larger blocks of queries; what a block's softmax was is
made again for the gradient (FlashAttention, 2205.14135).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_itune.model.engine import host
from mlx_itune.model.engine.cpu_attention import Plan
from mlx_itune.model.engine.cpu_math import LOG2_E
from mlx_itune.model.engine.host import Arrays, Floats
from mlx_itune.model.loading import backend

# Queries per block: products of fewer rows are slow, of more compute more that is hidden.
BLOCK_TOKENS = 256


def attend(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, plan: Plan
) -> mx.array:
    """`cpu_attention.attend`, at once. The plan shares no keys and its biases have two axes."""

    def forward(queries: mx.array, keys: mx.array, values: mx.array) -> Arrays:
        now = host.current()
        if now is not None and now.again is not None:
            return next(now.again)
        made = _attend(host.seen(queries), host.seen(keys), host.seen(values), scale, plan)
        if now is not None:
            now.kept.outputs.append(made)
        return made

    def backward(primals: Arrays, cotangents: Arrays, outputs: Arrays) -> Arrays:
        mx.eval(primals, cotangents[0], outputs)
        queries, keys, values = (np.asarray(a) for a in primals)
        made = np.asarray(outputs[0]), np.asarray(outputs[1]), np.asarray(cotangents[0])
        return _attend_backward(queries, keys, values, *made, scale, plan)

    operation: Any = mx.custom_function(forward)
    operation.vjp(backward)
    out: mx.array = operation(queries, keys, values)[0]
    return out


def fits(plan: Plan) -> bool:
    """Whether `attend` knows this plan."""
    return not plan.shared and all(b.bias is None or b.bias.ndim == 2 for b in plan.blocks)


@dataclass(frozen=True)
class _Span:
    """A block of a plan, and of its bias what is not 0: added to the keys [first, last)."""

    queries: slice
    keys: slice
    biased: slice
    bias: Floats | None

    @property
    def size(self) -> int:
        """How many scores it has."""
        size: int = (self.queries.stop - self.queries.start) * (self.keys.stop - self.keys.start)
        return size

    def shaped(self, memory: Floats) -> Floats:
        """Room for its scores, of a piece of memory that has enough."""
        return memory[: self.size].reshape(self.queries.stop - self.queries.start, -1)


def _spans(plan: Plan) -> list[_Span]:
    spans = []
    for block in plan.blocks:
        bias = None if block.bias is None else host.seen(block.bias * (1 / LOG2_E))
        columns = np.zeros(0, np.intp) if bias is None else np.flatnonzero(bias.any(axis=0))
        biased = slice(int(columns[0]), int(columns[-1]) + 1) if len(columns) else slice(0, 0)
        part = bias[:, biased] if bias is not None and len(columns) else None
        spans.append(
            _Span(slice(block.start, block.stop), slice(block.first, block.last), biased, part)
        )
    return spans


def _attend(queries: Floats, keys: Floats, values: Floats, scale: float, plan: Plan) -> Arrays:
    """Outputs (B, heads, T, D), and the logarithms of the sums of exponentials (B, heads, T)."""
    batch, heads, tokens, _ = queries.shape
    # Token by token, as what follows wants it.
    made, memory = host.empty((batch, tokens, heads, values.shape[-1]))
    out = memory.swapaxes(1, 2)
    made_sums, sums = host.empty((batch, heads, tokens))
    spans, per_key_head = _spans(plan), heads // keys.shape[1]
    largest = max(span.size for span in spans)

    def head(place: tuple[int, int]) -> None:
        row, at = place
        q = np.ascontiguousarray(queries[row, at])
        k = np.ascontiguousarray(keys[row, at // per_key_head])
        v = np.ascontiguousarray(values[row, at // per_key_head])
        memory = np.empty(largest, np.float32)
        for span in spans:
            scores = backend.product(
                q[span.queries], k[span.keys].T, scale, out=span.shaped(memory)
            )
            if span.bias is not None:
                scores[:, span.biased] += span.bias
            peaks = scores.max(axis=1, keepdims=True)
            np.subtract(scores, peaks, out=scores)
            np.exp(scores, out=scores)
            totals = scores.sum(axis=1, keepdims=True)
            backend.product(scores, v[span.keys], out=out[row, at, span.queries])
            out[row, at, span.queries] /= totals
            sums[row, at, span.queries] = (np.log(totals) + peaks)[:, 0]

    host.on_all_cores(head, [(row, at) for row in range(batch) for at in range(heads)])
    return [made.swapaxes(1, 2), made_sums]


def _attend_backward(
    queries: Floats,
    keys: Floats,
    values: Floats,
    out: Floats,
    sums: Floats,
    cotangent: Floats,
    scale: float,
    plan: Plan,
) -> Arrays:
    """The gradients of queries, keys and values. FlashAttention, 2205.14135, appendix B.4."""
    batch, heads = queries.shape[:2]
    made, memory = zip(
        *(host.empty((batch, a.shape[2], a.shape[1], a.shape[3])) for a in (queries, keys, values)),
        strict=True,
    )
    d_queries, d_keys, d_values = (a.swapaxes(1, 2) for a in memory)
    spans, per_key_head = _spans(plan), heads // keys.shape[1]
    largest = max(span.size for span in spans)

    def key_head(place: tuple[int, int]) -> None:
        row, at = place
        k, v = np.ascontiguousarray(keys[row, at]), np.ascontiguousarray(values[row, at])
        memories = np.empty((2, largest), np.float32)
        for head in range(at * per_key_head, (at + 1) * per_key_head):
            q = np.ascontiguousarray(queries[row, head])
            d_out = np.ascontiguousarray(cotangent[row, head])
            delta = np.einsum("td,td->t", d_out, out[row, head])[:, None]
            for span in spans:
                weights, d_scores = (span.shaped(memory) for memory in memories)
                backend.product(q[span.queries], k[span.keys].T, scale, out=weights)
                if span.bias is not None:
                    weights[:, span.biased] += span.bias
                np.subtract(weights, sums[row, head, span.queries, None], out=weights)
                np.exp(weights, out=weights)
                d_rows = d_out[span.queries]
                backend.product(weights.T, d_rows, out=d_values[row, at, span.keys], add=True)
                backend.product(d_rows, v[span.keys].T, out=d_scores)
                np.subtract(d_scores, delta[span.queries], out=d_scores)
                np.multiply(d_scores, weights, out=d_scores)
                backend.product(
                    d_scores, k[span.keys], scale, out=d_queries[row, head, span.queries]
                )
                backend.product(
                    d_scores.T, q[span.queries], scale, out=d_keys[row, at, span.keys], add=True
                )

    host.on_all_cores(key_head, [(row, at) for row in range(batch) for at in range(keys.shape[1])])
    return [a.swapaxes(1, 2) for a in made]
