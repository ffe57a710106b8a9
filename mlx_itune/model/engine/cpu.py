"""Faster attention, SwiGLU and cross-entropy for MLX on Linux CPUs; the same functions."""

from __future__ import annotations

import sys
import types
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.activations import swiglu
from mlx_lm.models.base import scaled_dot_product_attention

from mlx_itune.model.engine import cpu_attention, host, host_attention, host_layers
from mlx_itune.model.engine.cpu_math import exp, exp_minus, on_one_stream, row_max, row_sum
from mlx_itune.model.engine.training_caches import TrainingCache
from mlx_itune.model.loading import backend


def is_faster() -> bool:
    """Whether MLX computes here as this file assumes: on a Linux CPU."""
    return sys.platform == "linux" and backend.on_cpu()


def specialize(model: nn.Module) -> None:
    """Let this model's layers, and no other's, call the functions of this file.

    A layer gets a subclass whose `__call__` is the library's own code, reading other globals;
    the library's classes and modules stay as they are.
    """
    faster = {
        "scaled_dot_product_attention": (scaled_dot_product_attention, attention),
        "swiglu": (swiglu, fast_swiglu),
    }
    subclasses: dict[type, type | None] = {nn.RMSNorm: host_layers.RMSNorm}
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
    block = host_attention.BLOCK_TOKENS if host.active() else cpu_attention.BLOCK_TOKENS
    plan = cache.plan(mask, block) if isinstance(cache, TrainingCache) else None
    if plan is None:
        known = mask is None or isinstance(mask, mx.array) or mask == "causal"
        if not known or hasattr(cache, "bits") or tokens == 1:
            plan = None
        elif isinstance(mask, str):
            plan = cpu_attention.causal_plan([tokens], seen - tokens, None, block)
        else:
            plan = cpu_attention.dense_plan(tokens, seen, mask)
    floats = {queries.dtype, keys.dtype, values.dtype} == {mx.float32}
    if plan is None or sinks is not None or not floats:
        whole: mx.array = scaled_dot_product_attention(
            queries, keys, values, cache, scale, mask, sinks
        )
        return whole
    if host.active() and host_attention.fits(plan):
        return host_attention.attend(queries, keys, values, scale, plan)
    return cpu_attention.attend(queries, keys, values, scale, plan)


def fast_swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """silu(gate) * x, elementwise."""
    if gate.dtype == x.dtype == mx.float32 and gate.shape == x.shape and host.active():
        return host_layers.swiglu(gate, x)
    y: mx.array = _swiglu(gate, x) if gate.dtype == mx.float32 else swiglu(gate, x)
    return y


def _swiglu_forward(gate: mx.array, x: mx.array) -> mx.array:
    return gate * (1 / (1 + exp_minus(gate))) * x


def _swiglu_backward(primals: list[mx.array], cotangent: mx.array, _: mx.array) -> list[mx.array]:
    gate, x = primals
    # Made again: kept, it would be an eighth of all that a block keeps.
    sigmoid = 1 / (1 + exp_minus(gate))
    silu = gate * sigmoid
    return [cotangent * x * (sigmoid + silu * (1 - sigmoid)), cotangent * silu]


_swiglu = on_one_stream(_swiglu_forward, _swiglu_backward)


def nll(logits: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
    """-log softmax(logits)[target], and the rows' sums of exponentials: (N, V), (N,) to (N,) both.

    Mind the gradient: a row's is divided by nothing and multiplied by no cotangent. Who asks for
    it scales it by cotangent / sum further down, where rows are short.
    """
    if host.active():
        return host_layers.nll(logits, targets)
    outputs: Any = _nll(logits, targets)
    return outputs[0], outputs[2][:, 0]


def _nll_forward(logits: mx.array, targets: mx.array) -> list[mx.array]:
    chosen = mx.take_along_axis(logits, targets[:, None], axis=-1)
    peak = row_max(logits)
    powers = exp(logits - peak)
    total = row_sum(powers)
    # The gradient takes the place of the powers, which nothing else needs: one copy less.
    gradient = powers.at[mx.arange(logits.shape[0]), targets].subtract(total[:, 0])
    return [(mx.log(total) + peak - chosen)[:, 0], gradient, total]


def _nll_backward(
    primals: list[mx.array], _: list[mx.array], outputs: list[mx.array]
) -> list[mx.array]:
    return [outputs[1], mx.zeros_like(primals[1])]


_nll = on_one_stream(_nll_forward, _nll_backward)
