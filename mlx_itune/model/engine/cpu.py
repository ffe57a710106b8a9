"""What MLX does slowly on a Linux CPU, and how it is done here instead; the same functions.

MLX computes `exp` one element at a time there, 20 to 30 ns each: of the logits of a large
vocabulary that would be most of a step. `power` is the C library's `powf`, four times faster; a sum
along rows is fastest as a matrix product, a maximum by halves. And it runs what is between two
matrix products on one core: only several streams use several.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlx_itune.model.loading import backend

# Below so many numbers an operation's overhead counts more than its work.
_SMALL = 1 << 16
_MAX_STREAMS = 8


# A stream is its thread's.
_own = threading.local()


def streams(count: int | None = None) -> tuple[Any, ...]:
    """Streams for parts of a step that are computed side by side: one per core, one on a GPU; in a
    thread the same ones each time."""
    if count is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        count = min(cores, _MAX_STREAMS) if backend.prepare().blas else 1
    device, made = mx.default_device(), vars(_own)
    if str(count) not in made:
        more = (mx.new_stream(device) for _ in range(count - 1))
        made[str(count)] = (mx.default_stream(device), *more)
    found: tuple[Any, ...] = made[str(count)]
    return found


def lane() -> int:
    """Which of the streams things are computed on now."""
    now = mx.default_stream(mx.default_device())
    return next((number for number, stream in enumerate(streams()) if stream == now), 0)


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


def nll(logits: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
    """-log softmax(logits)[target], and the rows' sums of exponentials: (N, V), (N,) to (N,) both.

    Mind the gradient: a row's is divided by nothing and multiplied by no cotangent. Who asks for
    it scales it by cotangent / sum further down, where rows are short.
    """
    outputs: Any = _nll(logits, targets)
    return outputs[0], outputs[2][:, 0]


def _forward(logits: mx.array, targets: mx.array) -> list[mx.array]:
    chosen = mx.take_along_axis(logits, targets[:, None], axis=-1)
    peak = _row_max(logits)
    # Within 3e-8 |x|, relatively, as e is rounded.
    powers = mx.power(mx.array(math.e, logits.dtype), logits - peak)
    total = powers @ mx.ones((powers.shape[-1], 1), powers.dtype)
    # The gradient takes the place of the powers, which nothing else needs: one copy less.
    gradient = powers.at[mx.arange(logits.shape[0]), targets].subtract(total[:, 0])
    return [(mx.log(total) + peak - chosen)[:, 0], gradient, total]


def _backward(
    primals: list[mx.array], _: list[mx.array], outputs: list[mx.array]
) -> list[mx.array]:
    return [outputs[1], mx.zeros_like(primals[1])]


_nll = on_one_stream(_forward, _backward)


def _row_max(x: mx.array) -> mx.array:
    """The maximum along the last axis, which is kept with length 1."""
    while x.size > _SMALL and x.shape[-1] > 64:
        half = (x.shape[-1] + 1) // 2
        x = mx.maximum(x[..., :half], x[..., -half:])
    return x.max(axis=-1, keepdims=True)
