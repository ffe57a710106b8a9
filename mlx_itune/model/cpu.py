"""Faster attention and SwiGLU for MLX on Linux CPUs; the same functions.

MLX computes `exp` one element at a time there, with a function call for every fused multiply-add:
30 ns each, more than all matrix products of a small model together. `power` is the C library's
`powf`, four times faster; and of a causal score matrix only the lower half is computed here.
"""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.activations import swiglu
from mlx_lm.models.base import scaled_dot_product_attention

from mlx_itune.model import backend

_LOG2_E = math.log2(math.e)
# Queries per block of a causal attention: small enough to skip most of the upper half.
_BLOCK_TOKENS = 96
# Added to a score that the mask hides: exp2 of it is exactly 0, and nothing overflows.
_HIDDEN = -1e30


def is_faster() -> bool:
    """Whether MLX computes here as this file assumes: on a Linux CPU."""
    return sys.platform == "linux" and backend.on_cpu()


# First query, past the last, keys they may see, additive mask in log2 units.
_Block = tuple[int, int, int, "mx.array | None"]


def exp2(x: mx.array) -> mx.array:
    """2**x, elementwise."""
    return mx.power(mx.array(2.0, x.dtype), x)


def specialize(model: nn.Module) -> None:
    """Let this model's layers, and no other's, call the functions of this file.

    A layer gets a subclass whose `__call__` is the library's own code, reading other globals;
    the library's classes and modules stay as they are.
    """
    faster = {
        "scaled_dot_product_attention": (scaled_dot_product_attention, attention),
        "swiglu": (swiglu, fast_swiglu),
    }
    subclasses: dict[type, type | None] = {}
    for _, module in model.named_modules():
        kind = type(module)
        if kind not in subclasses:
            subclasses[kind] = _subclass(kind, faster)
        if (subclass := subclasses[kind]) is not None:
            module.__class__ = subclass


def _subclass(kind: type, faster: dict[str, tuple[Any, Any]]) -> type | None:
    call = vars(kind).get("__call__")
    if not isinstance(call, types.FunctionType):
        return None
    own = {
        name: function
        for name, (original, function) in faster.items()
        if name in call.__code__.co_names and call.__globals__.get(name) is original
    }
    if not own:
        return None
    rebound = types.FunctionType(
        call.__code__,
        {**call.__globals__, **own},
        call.__name__,
        call.__defaults__,
        call.__closure__,
    )
    rebound.__kwdefaults__ = call.__kwdefaults__
    return type(kind.__name__, (kind,), {"__call__": rebound, "__module__": kind.__module__})


def attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    cache: Any,
    scale: float,
    mask: mx.array | str | None,
    sinks: mx.array | None = None,
) -> mx.array:
    """softmax(scale * Q K^T + mask) V over (B, heads, tokens, dim); as mlx-lm's function."""
    tokens, seen = queries.shape[2], keys.shape[2]
    known = mask is None or isinstance(mask, mx.array) or mask == "causal"
    if (
        not known
        or sinks is not None
        or hasattr(cache, "bits")
        or tokens == 1
        or queries.dtype != mx.float32
    ):
        whole: mx.array = scaled_dot_product_attention(
            queries, keys, values, cache, scale, mask, sinks
        )
        return whole
    return _attention(scale, _block_biases(mask, tokens, seen))(queries, keys, values)


def _block_biases(mask: mx.array | str | None, tokens: int, seen: int) -> list[_Block]:
    """The queries in blocks; only a causal mask makes more than one."""
    if isinstance(mask, str):
        offset = seen - tokens
        blocks: list[_Block] = []
        for start in range(0, tokens, _BLOCK_TOKENS):
            stop = min(start + _BLOCK_TOKENS, tokens)
            allowed = mx.arange(start, stop)[:, None] + offset >= mx.arange(stop + offset)
            blocks.append((start, stop, stop + offset, mx.where(allowed, 0.0, -math.inf)))
        return blocks
    if mask is None:
        return [(0, tokens, seen, None)]
    if mask.dtype == mx.bool_:
        return [(0, tokens, seen, mx.where(mask, 0.0, _HIDDEN))]
    return [(0, tokens, seen, mx.maximum(mask.astype(mx.float32) * _LOG2_E, _HIDDEN))]


def _attention(
    scale: float, blocks: list[_Block]
) -> Callable[[mx.array, mx.array, mx.array], mx.array]:
    def forward(queries: mx.array, keys: mx.array, values: mx.array) -> list[mx.array]:
        batch, heads, tokens, _ = queries.shape
        shared = keys.shape[1]
        # (B, kv heads, queries per kv head, tokens, dim): keys are broadcast, never repeated.
        q = (queries * (scale * _LOG2_E)).reshape(batch, shared, heads // shared, tokens, -1)
        k, v = keys[:, :, None].swapaxes(-1, -2), values[:, :, None]
        outputs, kept = [], []
        for start, stop, seen, bias in blocks:
            scores = q[..., start:stop, :] @ k[..., :seen]
            if bias is not None:
                scores = scores + _fold(bias, shared)
            weights = exp2(scores - scores.max(axis=-1, keepdims=True))
            inverse = 1 / weights.sum(axis=-1, keepdims=True)
            outputs.append((weights @ v[..., :seen, :]) * inverse)
            kept += [weights, inverse]
        out = mx.concatenate(outputs, axis=-2).reshape(batch, heads, tokens, -1)
        return [out, *kept]

    def backward(
        primals: list[mx.array], cotangents: list[mx.array], outputs: list[mx.array]
    ) -> list[mx.array]:
        queries, keys, values = primals
        batch, heads, tokens, _ = queries.shape
        shared = keys.shape[1]
        split = (batch, shared, heads // shared, tokens, -1)
        q, d_out, out = (a.reshape(split) for a in (queries * scale, cotangents[0], outputs[0]))
        k, v = keys[:, :, None], values[:, :, None]
        # rowsum(dO * O) equals rowsum(dP * P) (FlashAttention, 2205.14135, appendix B.2).
        delta = (d_out * out).sum(axis=-1, keepdims=True)
        d_queries, d_keys, d_values = [], mx.zeros_like(keys), mx.zeros_like(values)
        for index, (start, stop, seen, _) in enumerate(blocks):
            weights, inverse = outputs[1 + 2 * index : 3 + 2 * index]
            rows = (Ellipsis, slice(start, stop), slice(None))
            d_rows = d_out[rows] * inverse
            d_weights = d_rows @ v[..., :seen, :].swapaxes(-1, -2)
            d_scores = weights * (d_weights - delta[rows] * inverse)
            d_queries.append((d_scores @ k[..., :seen, :]) * scale)
            d_keys = _add_first(d_keys, (d_scores.swapaxes(-1, -2) @ q[rows]).sum(axis=2))
            d_values = _add_first(d_values, (weights.swapaxes(-1, -2) @ d_rows).sum(axis=2))
        d_all = mx.concatenate(d_queries, axis=-2).reshape(queries.shape)
        return [d_all, d_keys, d_values]

    operation: Any = mx.custom_function(forward)
    operation.vjp(backward)
    return lambda queries, keys, values: operation(queries, keys, values)[0]


def _fold(bias: mx.array, shared: int) -> mx.array:
    """A mask (..., heads or 1, tokens, keys), shaped for (B, kv heads, per kv head, ...)."""
    if bias.ndim < 3:
        return bias
    if bias.shape[-3] == 1:
        return mx.expand_dims(bias, -3)
    return mx.unflatten(bias, -3, (shared, -1))


def _add_first(total: mx.array, part: mx.array) -> mx.array:
    """`total` (B, heads, S, D) plus `part` (B, heads, s <= S, D) in its first s places."""
    missing = total.shape[2] - part.shape[2]
    return total + (mx.pad(part, [(0, 0), (0, 0), (0, missing), (0, 0)]) if missing else part)


def fast_swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """silu(gate) * x, elementwise."""
    y: Any = _swiglu(gate, x) if gate.dtype == mx.float32 else [swiglu(gate, x)]
    product: mx.array = y[0]
    return product


@mx.custom_function
def _swiglu(gate: mx.array, x: mx.array) -> list[mx.array]:
    sigmoid = 1 / (1 + exp2(gate * -_LOG2_E))
    return [gate * sigmoid * x, sigmoid]


@_swiglu.vjp
def _swiglu_vjp(
    primals: list[mx.array], cotangents: list[mx.array], outputs: list[mx.array]
) -> list[mx.array]:
    (gate, x), sigmoid, cotangent = primals, outputs[1], cotangents[0]
    silu = gate * sigmoid
    return [cotangent * x * (sigmoid + silu * (1 - sigmoid)), cotangent * silu]


@mx.custom_function
def _nll_sum(logits: mx.array, targets: mx.array, weights: mx.array) -> list[mx.array]:
    peak = logits.max(axis=-1, keepdims=True)
    powers = exp2((logits - peak) * _LOG2_E)
    total = powers.sum(axis=-1)
    chosen = mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    nll = mx.log(total) + peak[:, 0] - chosen
    return [(nll * weights).sum(), powers, total]


@_nll_sum.vjp
def _nll_sum_vjp(
    primals: list[mx.array], cotangents: list[mx.array], outputs: list[mx.array]
) -> list[mx.array]:
    (logits, targets, weights), (_, powers, total) = primals, outputs
    factor = cotangents[0] * weights
    gradient = powers * (factor / total)[:, None]
    rows = mx.arange(logits.shape[0])
    gradient = gradient.at[rows, targets].subtract(factor)
    return [gradient, mx.zeros_like(targets), mx.zeros_like(weights)]


def nll_sum(logits: mx.array, targets: mx.array, weights: mx.array) -> mx.array:
    """Sum of weights * -log softmax(logits)[target]; (N, V), (N,), (N,), all but targets float32.

    The probabilities are kept for the gradient, which is for the logits alone.
    """
    outputs: Any = _nll_sum(logits, targets, weights)
    total: mx.array = outputs[0]
    return total
