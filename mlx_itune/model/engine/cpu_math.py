"""Elementwise functions and reductions that MLX computes fast on a Linux CPU.

MLX computes `exp` one element at a time there, with a function call for every fused multiply-add:
20 to 30 ns each, more than all matrix products of a small model together. `power` is the C
library's `powf`, four times faster; a sum along rows is fastest as a matrix product, a maximum by
halves. float32 only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx

LOG2_E = math.log2(math.e)
# Below so many numbers an operation's overhead counts more than its work.
_SMALL = 1 << 16


def exp2(x: mx.array) -> mx.array:
    """2**x, elementwise."""
    return mx.power(mx.array(2.0, x.dtype), x)


def exp(x: mx.array) -> mx.array:
    """e**x, elementwise; within 3e-8 |x|, relatively, as e is rounded."""
    return mx.power(mx.array(math.e, x.dtype), x)


def exp_minus(x: mx.array) -> mx.array:
    """e**-x, elementwise; as exact as `exp`."""
    return mx.power(mx.array(1 / math.e, x.dtype), x)


def row_max(x: mx.array) -> mx.array:
    """The maximum along the last axis, which is kept with length 1."""
    while x.size > _SMALL and x.shape[-1] > 64:
        half = (x.shape[-1] + 1) // 2
        x = mx.maximum(x[..., :half], x[..., -half:])
    return x.max(axis=-1, keepdims=True)


def row_sum(x: mx.array) -> mx.array:
    """The sum along the last axis, which is kept with length 1."""
    return x @ mx.ones((x.shape[-1], 1), x.dtype)


def on_one_stream(forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
    """A function with a gradient of its own, which runs on the stream that the function ran on.

    MLX runs a custom gradient on whatever stream is the default when it is asked for. backward
    gets (primals, cotangents, outputs), as `mx.custom_function` has it.
    """

    def call(*arguments: mx.array) -> Any:
        stream = mx.default_stream(mx.default_device())

        def there(primals: Any, cotangents: Any, outputs: Any) -> Any:
            with mx.stream(stream):
                return backward(primals, cotangents, outputs)

        operation: Any = mx.custom_function(forward)
        operation.vjp(there)
        return operation(*arguments)

    return call
