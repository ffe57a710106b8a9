"""The gated delta rule in chunks of tokens: the same function as mlx-lm's loop over tokens.

A state S (values x keys) goes along a row. Every token lets it decay by g, a number or one per key
channel, and moves what S answers to its key k towards its value v:

    S' = g S,  u = beta (v - S' k),  S = S' + u k^T,  y = S q

Within a chunk the u of all tokens solve one triangular system (the WY form; Yang et al.,
2412.06464), so that a chunk is a few matrix products and only S goes from chunk to chunk. Of a
decay from one token to a later one the logarithm is summed between these two alone: exact whatever
was before, and never above 1. Nothing but S is kept between groups of chunks for the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx_lm.models import gated_delta

from mlx_itune.model.engine.cpu import on_one_stream
from mlx_itune.model.loading import backend

_CHUNK = 64
# Chunks that are computed at once: on a CPU as many as its cache holds.
_CPU_GROUP, _GPU_GROUP = 4, 16
# A decay below this is this; and the logarithm of one that forgets everything.
_LEAST, _FORGOTTEN = 1e-37, -1e10


@contextmanager
def in_chunks() -> Iterator[None]:
    """Within it mlx-lm's layers compute the gated delta rule as `chunked` does."""
    names = "gated_delta_ops", "gated_delta_kernel"
    before = [getattr(gated_delta, name) for name in names]
    for name in names:
        setattr(gated_delta, name, chunked)
    try:
        yield
    finally:
        for name, function in zip(names, before, strict=True):
            setattr(gated_delta, name, function)


def chunked(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    g: mx.array,
    beta: mx.array,
    state: mx.array | None = None,
    mask: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """y (B, T, Hv, Dv) and the last state: as mlx-lm's `gated_delta_ops`, for any T.

    q, k (B, T, Hk, Dk); v (B, T, Hv, Dv); g (B, T, Hv) or (B, T, Hv, Dk); beta (B, T, Hv); state
    (B, Hv, Dv, Dk). mask (B, T): a token of 0 leaves the state alone, and one above 1 meets none.
    """
    rows, tokens, heads, width = v.shape
    if state is None:
        state = mx.zeros((rows, heads, width, k.shape[-1]))
    decay = mx.log(mx.maximum(g.astype(mx.float32), _LEAST))
    if mask is not None:
        flags = mask.astype(mx.float32).reshape(rows, tokens, *[1] * (g.ndim - 2))
        decay = mx.where(flags > 1, _FORGOTTEN, mx.where(flags > 0, decay, 0.0))
        beta = beta * (mask > 0)[..., None]
    chunk = min(_CHUNK, 1 << (tokens - 1).bit_length())
    group = chunk * (_CPU_GROUP if backend.on_cpu() else _GPU_GROUP)
    run = on_one_stream(
        lambda *arrays: _group(chunk, *arrays),
        lambda arrays, cotangents, _: mx.vjp(
            lambda *again: _group(chunk, *again), mx.depends(arrays, cotangents), cotangents
        )[1],
    )
    parts = []
    for start in range(0, tokens, group):
        part = slice(start, start + group)
        y, state = run(*(array[:, part] for array in (q, k, v, decay, beta)), state)
        parts.append(y)
    return mx.concatenate(parts, axis=1), state


def _group(chunk: int, *arrays: mx.array) -> list[mx.array]:
    """`chunked` of a few chunks, with the logarithm of the decay."""
    q, k, v, decay, beta = (_cut(array, chunk, arrays[2].shape[2]) for array in arrays[:5])
    decay = decay if arrays[3].ndim == 4 else decay[..., :1]
    state = arrays[5].astype(mx.float32)
    qk, kk = _products(q, k, decay)
    inverse = _inverse(beta * kk) * beta.swapaxes(-1, -2)
    since = mx.exp(mx.cumsum(decay, axis=-2))
    until = mx.exp(mx.cumsum(decay, axis=-2, reverse=True, inclusive=False))
    own, seen = inverse @ v, inverse @ (since * k)
    behind, last = until * k, since[..., -1:, :]
    states, moves = [], []
    for n in range(q.shape[2]):
        states.append(state)
        moves.append(own[:, :, n] - seen[:, :, n] @ state.swapaxes(-1, -2))
        state = last[:, :, n] * state + moves[-1].swapaxes(-1, -2) @ behind[:, :, n]
    met = mx.stack(states, axis=2).swapaxes(-1, -2)
    y = (since * q) @ met + qk @ mx.stack(moves, axis=2)
    rows, heads, chunks, _, width = y.shape
    y = y.transpose(0, 2, 3, 1, 4).reshape(rows, chunks * chunk, heads, width)
    return [y[:, : arrays[0].shape[1]].astype(arrays[0].dtype), state]


def _cut(array: mx.array, chunk: int, heads: int) -> mx.array:
    """(B, T, H, D) or (B, T, H) as (B, heads, chunks, chunk, D) in float32, filled up by zeros."""
    array = (array if array.ndim == 4 else array[..., None]).astype(mx.float32)
    rows, tokens, own, width = array.shape
    if fill := -tokens % chunk:
        array = mx.pad(array, [(0, 0), (0, fill), (0, 0), (0, 0)])
    array = array.reshape(rows, -1, chunk, own, width).transpose(0, 3, 1, 2, 4)
    return mx.repeat(array, heads // own, axis=1) if heads > own else array


def _products(q: mx.array, k: mx.array, decay: mx.array) -> tuple[mx.array, mx.array]:
    """Of a later token's q and k with an earlier one's k, decayed between: (..., C, C) both; the
    first also of a token with itself."""
    size = q.shape[-2]
    if decay.shape[-1] == 1:
        steps = mx.tril(mx.broadcast_to(decay, (*decay.shape[:-1], size)), -1)
        between = mx.tril(mx.exp(mx.cumsum(steps, axis=-2)))
        keys = k.swapaxes(-1, -2)
        return between * (q @ keys), mx.tril(between * (k @ keys), -1)
    # A decay per channel is no factor of a product: it is parted where two blocks meet.
    qk, kk = mx.sum(q * k, axis=-1)[..., None, None], mx.zeros((*q.shape[:-1], 1, 1))
    width = 1
    while width < size:
        first, second = (
            (_halves(array, width) for array in (k, decay)),
            (_halves(array, width) for array in (q, k, decay)),
        )
        (k0, d0), (q1, k1, d1) = [pair[0] for pair in first], [pair[1] for pair in second]
        until = k0 * mx.exp(mx.cumsum(d0, axis=-2, reverse=True, inclusive=False))
        since = mx.exp(mx.cumsum(d1, axis=-2))
        until = until.swapaxes(-1, -2)
        qk, kk = _joined(qk, (since * q1) @ until), _joined(kk, (since * k1) @ until)
        width *= 2
    return qk[..., 0, :, :], kk[..., 0, :, :]


def _halves(array: mx.array, width: int) -> tuple[mx.array, mx.array]:
    """Every other block of so many tokens, and those between."""
    blocks = mx.unflatten(array, -2, (-1, 2, width))
    return blocks[..., 0, :, :], blocks[..., 1, :, :]


def _joined(blocks: mx.array, below: mx.array) -> mx.array:
    """Lower triangular blocks (..., 2 n, w, w), two by two, with what is below: (..., n, w, w)."""
    pairs = mx.unflatten(blocks, -3, (-1, 2))
    first, second = pairs[..., 0, :, :], pairs[..., 1, :, :]
    upper = mx.concatenate([first, mx.zeros_like(first)], axis=-1)
    return mx.concatenate([upper, mx.concatenate([below, second], axis=-1)], axis=-2)


def _inverted(lower: mx.array) -> mx.array:
    """(I + lower)^-1 of a strictly lower triangular (..., C, C), from blocks twice as large each
    time: no power of `lower`, which could be huge."""
    size, width = lower.shape[-1], 1
    inverse = mx.ones((*lower.shape[:-1], 1, 1))
    while width < size:
        tiles = mx.unflatten(mx.unflatten(lower, -1, (-1, 2 * width)), -3, (-1, 2 * width))
        tiles = mx.moveaxis(mx.diagonal(tiles, 0, -4, -2), -1, -3)[..., width:, :width]
        pairs = mx.unflatten(inverse, -3, (-1, 2))
        inverse = _joined(inverse, -(pairs[..., 1, :, :] @ tiles @ pairs[..., 0, :, :]))
        width *= 2
    return inverse[..., 0, :, :]


def _inverse_gradient(_: Any, cotangent: mx.array, inverse: mx.array) -> mx.array:
    back = inverse.swapaxes(-1, -2)
    return mx.tril(-(back @ cotangent @ back), -1)


_inverse = on_one_stream(_inverted, _inverse_gradient)
