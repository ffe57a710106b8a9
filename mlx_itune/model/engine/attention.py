"""Attention by blocks of queries, each with only the keys that it can see; the same function.

MLX's attention has no fused gradient on Metal or a CPU: the weights of every query and key of every
layer stand in memory until the backward pass, and what a mask hides is computed, too. Here nothing
is kept but what goes in and comes out, and a row of sums (FlashAttention, 2205.14135); blocks come
one after the other and are made again for the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import mlx.core as mx

from mlx_itune.model.engine import cpu
from mlx_itune.model.loading import backend

# From how many queries of a row on blocks pay (on a GPU they are more launches); the fewest and
# most of a block. Eight blocks compute nine pairs of sixteen.
_CPU, _GPU, _BLOCKS = (96, 64, 128), (1024, 256, 512), 8

# Blocks' weights that stand in memory at once, in all stages: MLX runs ahead.
_AT_ONCE = 7.0
# Architectures that do attention by themselves, or add to its scores what has a gradient.
_OWN = frozenset(
    "bailing_hybrid bailing_moe_v3 deepseek_v3 deepseek_v32 gemma2 glm4_moe_lite kimi_k3 "
    "kimi_linear longcat_flash mistral4 olmo".split()
)
# Within `by_blocks`, the masks that passes made, by identity, with the window of each.
_within: list[dict[int, tuple[mx.array, int | None]]] = []


def remember(mask: mx.array, window: int | None) -> None:
    """Tell that a mask hides what follows a query, and what is `window` or more before it."""
    for made in _within[-1:]:
        made[id(mask)] = mask, window


def block_of(queries: int, on_cpu: bool) -> int:
    """How many queries a block of a row has; 0 where blocks do not pay."""
    enough, fewest, most = _CPU if on_cpu else _GPU
    return min(most, max(fewest, queries // _BLOCKS)) if queries >= enough else 0


def weights_kept(queries: int, keys: int, kind: str | None, on_cpu: bool) -> tuple[float, float]:
    """How many numbers a query and head keep until their backward pass, and take within it.

    kind: the model's type, as there are architectures whose attention is not known here.
    """
    block = block_of(queries, on_cpu)
    if not block or kind in _OWN:
        return keys, 2.0 * keys
    return 0.0, _AT_ONCE * keys * min(1.0, block / queries)


@contextmanager
def by_blocks(block: int | None = None) -> Iterator[None]:
    """Within it, models compute the attention of rows so; a backward pass belongs inside, too.

    All of mlx-lm's models reach attention through one function of MLX, whose place is taken: where
    a call is not understood, by itself.
    """
    fast: Any = mx.fast
    plain = fast.scaled_dot_product_attention

    def attention(
        q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Any = None, **more: Any
    ) -> Any:
        understood = _is_known(mask) and more.keys() <= {"sinks"}
        size = block_of(q.shape[2], backend.on_cpu()) if block is None else block
        if not size or not understood or _is_fused(q):
            return plain(q, k, v, scale=scale, mask=mask, **more)
        sinks = more.get("sinks")
        given = [q, k, v] if sinks is None else [q, k, v, sinks]
        blocks = _Blocks(_parts(q.shape[2], k.shape[2], mask, size), scale, mask)
        return cpu.on_one_stream(blocks.forward, blocks.backward)(*given)[0]

    fast.scaled_dot_product_attention = attention
    _within.append({})
    try:
        yield
    finally:
        fast.scaled_dot_product_attention = plain
        _within.pop()


def _is_known(mask: Any) -> bool:
    """One for all heads; what is added to scores may have a gradient."""
    if mask is None or isinstance(mask, str):
        return mask in (None, "causal")
    one: bool = mask.ndim == 2 or (mask.ndim == 4 and mask.shape[1] == 1)
    return one and mask.dtype == mx.bool_


def _is_fused(q: mx.array) -> bool:
    """Whether MLX has a fused gradient: on CUDA, for some sizes."""
    return (
        mx.cuda.is_available()
        and not backend.on_cpu()
        and q.itemsize == 2
        and q.shape[3] <= 128
        and q.shape[2] % 128 == 0
    )


def _parts(queries: int, keys: int, mask: Any, block: int) -> list[tuple[slice, slice]]:
    """Which queries, and which keys they see at most."""
    known, window = _within[-1].get(id(mask), (None, None))
    causal = isinstance(mask, str) or known is not None
    parts, before = [], keys - queries
    # Of like size: a last one of a few rows costs as much as others.
    count = -(-queries // block)
    ends = [queries * part // count for part in range(count + 1)]
    for start, stop in pairwise(ends):
        first = max(0, before + start + 1 - window) if window else 0
        parts.append((slice(start, stop), slice(first, before + stop if causal else keys)))
    return parts


@dataclass(frozen=True)
class _Blocks:
    """Attention of queries (B, H, L, D) over keys (B, G, S, D) and values (B, G, S, E), of which
    H / G heads share each, with sinks (H,) or none; parts as `_parts` has them."""

    parts: list[tuple[slice, slice]]
    scale: float
    mask: Any

    def forward(self, q: mx.array, k: mx.array, v: mx.array, *sinks: mx.array) -> list[mx.array]:
        """Outputs (B, H, L, E), and float32 logarithms (B, H, L, 1) of the sums of exponentials."""
        made: list[mx.array] = []
        logs: list[mx.array] = []
        for rows, seen in self.parts:
            # One after the other: MLX would make the weights of all side by side.
            part = mx.depends([q[:, :, rows]], made[-1:])[0] if made else q[:, :, rows]
            scores = self._scores(part, k, rows, seen)
            peak = scores.max(axis=-1, keepdims=True)
            first = [sink.astype(mx.float32).reshape(k.shape[1], -1, 1, 1) for sink in sinks]
            for sink in first:
                peak = mx.maximum(peak, sink)
            powers = _exp(scores - peak)
            total = powers.sum(axis=-1, keepdims=True)
            for sink in first:
                total = total + _exp(sink - peak)
            weights = _shared(powers / total, k).astype(v.dtype)
            made.append((weights @ v[:, :, seen]).reshape(*part.shape[:3], -1).swapaxes(1, 2))
            logs.append((mx.log(total) + peak).reshape(*part.shape[:3], 1))
        # Laid out as the model goes on with it, so that it is kept once.
        out = mx.contiguous(mx.concatenate(made, axis=1)).swapaxes(1, 2)
        return [out, mx.concatenate(logs, axis=2)]

    def backward(self, primals: Any, cotangents: Any, outputs: Any) -> list[mx.array]:
        """The gradients of all that came in."""
        q, k, v, *sinks = primals
        out, logs = outputs
        means = (cotangents[0].astype(mx.float32) * out).sum(axis=-1, keepdims=True)
        parts: list[mx.array] = []
        of_keys, of_values = (mx.zeros(array.shape) for array in (k, v))
        for rows, seen in self.parts:
            part, given = q[:, :, rows], cotangents[0][:, :, rows]
            if parts:
                part, given = mx.depends([part, given], [parts[-1], of_keys, of_values])
            scores = self._scores(part, k, rows, seen)
            weights = _shared(_exp(scores - logs[:, :, rows].reshape(*scores.shape[:-1], 1)), k)
            given = _shared(given, k)
            of_values = _added(of_values, seen, weights.astype(v.dtype).swapaxes(-1, -2) @ given)
            change = given @ v[:, :, seen].swapaxes(-1, -2) - _shared(means[:, :, rows], k)
            change = (weights * change).astype(k.dtype)
            parts.append((change @ k[:, :, seen]).reshape(part.shape) * self.scale)
            of_keys = _added(of_keys, seen, change.swapaxes(-1, -2) @ _shared(part * self.scale, k))
        first = [-(_exp(sink[:, None, None] - logs) * means).sum(axis=(0, 2, 3)) for sink in sinks]
        made = [mx.concatenate(parts, axis=2), of_keys, of_values, *first]
        return [new.astype(old.dtype) for new, old in zip(made, primals, strict=True)]

    def _scores(self, part: mx.array, k: mx.array, rows: slice, seen: slice) -> mx.array:
        """(B, G, H / G, L, S) float32 of some queries and the keys that they may see."""
        asked = mx.unflatten(part * self.scale, 1, (k.shape[1], -1))
        keys = k[:, :, None, seen].swapaxes(-1, -2)
        mask = self.mask
        if mask is None:
            return (asked @ keys).astype(mx.float32)
        if isinstance(mask, str):
            places = mx.arange(seen.stop - (rows.stop - rows.start), seen.stop)
            mask = places[:, None] >= mx.arange(seen.start, seen.stop)
        else:
            mask = mask[..., rows, seen]
            mask = mask if mask.ndim == 2 else mask[:, :, None]
        hidden = mx.where(mask, mx.array(0, k.dtype), mx.array(mx.finfo(k.dtype).min, k.dtype))
        return mx.addmm(hidden, asked, keys).astype(mx.float32)


def _shared(array: mx.array, k: mx.array) -> mx.array:
    """The queries of heads that share keys below each other: (B, G, H / G * L, ...)."""
    return array.reshape(*k.shape[:2], -1, array.shape[-1])


def _added(total: mx.array, seen: slice, more: mx.array) -> mx.array:
    """What `more` adds to the gradients of some keys."""
    parts = [total[:, :, : seen.start], total[:, :, seen] + more, total[:, :, seen.stop :]]
    return mx.concatenate([part for part in parts if part.size], axis=2)


def _exp(x: mx.array) -> mx.array:
    """See `cpu`."""
    return mx.power(mx.array(math.e), x) if backend.on_cpu() else mx.exp(x)
