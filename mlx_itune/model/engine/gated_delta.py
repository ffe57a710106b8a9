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
    before = {name: vars(gated_delta)[name] for name in names if name in vars(gated_delta)}
    vars(gated_delta).update(dict.fromkeys(before, chunked))
    try:
        yield
    finally:
        vars(gated_delta).update(before)


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
    # Parts by `split`: the gradient of a slice is as large as what it is of.
    cuts, ys = list(range(group, tokens, group)), []
    for part in zip(*(mx.split(a, cuts, axis=1) for a in (q, k, v, decay, beta)), strict=True):
        y, state = run(*part, state)
        ys.append(y)
    return mx.concatenate(ys, axis=1), state


def _group(chunk: int, *arrays: mx.array) -> list[mx.array]:
    """`chunked` of a few chunks, with the logarithm of the decay."""
    q, k, v, decay, beta = (_cut(array, chunk, arrays[2].shape[2]) for array in arrays[:5])
    decay = decay if arrays[3].ndim == 4 else decay[..., :1]
    qk, kk = _products(q, k, decay)
    inverse = _inverse(beta * kk) * beta.swapaxes(-1, -2)
    since = _since(decay)
    own, seen = inverse @ v, inverse @ (since * k)
    behind, last = _until(decay) * k, since[..., -1:, :]
    state, states, moves = arrays[5].astype(mx.float32)[:, :, None], [], []
    each = (mx.split(array, q.shape[2], axis=2) for array in (own, seen, behind, last))
    for own, seen, behind, last in zip(*each, strict=True):
        states.append(state.swapaxes(-1, -2))
        moves.append(own - seen @ states[-1])
        state = last * state + moves[-1].swapaxes(-1, -2) @ behind
    y = (since * q) @ mx.concatenate(states, axis=2) + qk @ mx.concatenate(moves, axis=2)
    rows, heads, chunks, _, width = y.shape
    y = y.transpose(0, 2, 3, 1, 4).reshape(rows, chunks * chunk, heads, width)
    return [y[:, : arrays[0].shape[1]].astype(arrays[0].dtype), state[:, :, 0]]


def _cut(array: mx.array, chunk: int, heads: int) -> mx.array:
    """(B, T, H, D) or (B, T, H) as (B, heads, chunks, chunk, D) in float32, filled up by zeros."""
    array = (array if array.ndim == 4 else array[..., None]).astype(mx.float32)
    rows, tokens, own, width = array.shape
    if fill := -tokens % chunk:
        array = mx.pad(array, [(0, 0), (0, fill), (0, 0), (0, 0)])
    array = mx.contiguous(array.reshape(rows, -1, chunk, own, width).transpose(0, 3, 1, 2, 4))
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
    for width in _widths(size):
        (_, later), (k0, k1), (d0, d1) = (_halves(array, width) for array in (q, k, decay))
        keys, since = (_until(d0) * k0).swapaxes(-1, -2), _since(d1)
        qk, kk = _joined(qk, (since * later) @ keys), _joined(kk, (since * k1) @ keys)
    return qk[..., 0, :, :], kk[..., 0, :, :]


def _since(decay: mx.array) -> mx.array:
    """What is left of what was before the first token, at each."""
    return mx.exp(mx.cumsum(decay, axis=-2))


def _until(decay: mx.array) -> mx.array:
    """What is left of each token after the last."""
    return mx.exp(mx.cumsum(decay, axis=-2, reverse=True, inclusive=False))


def _widths(size: int) -> list[int]:
    """1, 2, 4, ... below a power of two."""
    return [1 << n for n in range(size.bit_length() - 1)]


def _halves(array: mx.array, width: int) -> tuple[mx.array, mx.array]:
    """Every other block of so many tokens, and those between."""
    blocks = mx.unflatten(array, -2, (-1, 2, width))
    return blocks[..., 0, :, :], blocks[..., 1, :, :]


def _joined(blocks: mx.array, below: mx.array) -> mx.array:
    """Lower triangular blocks (..., 2 n, w, w), two by two, with what is below: (..., n, w, w)."""
    first, second = blocks[..., ::2, :, :], blocks[..., 1::2, :, :]
    upper = mx.concatenate([first, mx.zeros_like(first)], axis=-1)
    return mx.concatenate([upper, mx.concatenate([below, second], axis=-1)], axis=-2)


def _inverted(lower: mx.array) -> mx.array:
    """(I + lower)^-1 of a strictly lower triangular (..., C, C), from blocks twice as large each
    time: no power of `lower`, which could be huge."""
    inverse = mx.ones((*lower.shape[:-1], 1, 1))
    for width in _widths(lower.shape[-1]):
        tiles = mx.unflatten(mx.unflatten(lower, -1, (-1, 2 * width)), -3, (-1, 2 * width))
        below = mx.moveaxis(mx.diagonal(tiles, 0, -4, -2), -1, -3)[..., width:, :width]
        below = inverse[..., 1::2, :, :] @ below @ inverse[..., ::2, :, :]
        inverse = _joined(inverse, -below)
    return inverse[..., 0, :, :]


def _inverse_gradient(_: Any, cotangent: mx.array, inverse: mx.array) -> mx.array:
    back = inverse.swapaxes(-1, -2)
    return mx.tril(-(back @ cotangent @ back), -1)


_inverse = on_one_stream(_inverted, _inverse_gradient)
