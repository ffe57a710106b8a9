"""A long row's blocks computed at once, each before the next is built; NumPy and BLAS on all cores.

MLX runs what is between two matrix products on one core of a CPU, and an exponential there takes
as long as ten do in NumPy. A graph of MLX's cannot call NumPy, but a row of thousands of tokens can
afford to wait for every block: within `at_once`, what `host_attention` and `host_layers` stand in
for is computed when it is called, not when it is needed.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_itune.model.loading import backend

Floats = npt.NDArray[np.float32]
Arrays = list[mx.array]


@dataclass
class Kept:
    """What a block's attention made, so that the block made again need not make it again."""

    outputs: list[Arrays] = field(default_factory=list)


@dataclass
class Pass:
    """What is computed at once now; again: what was kept, where a block is made again."""

    kept: Kept
    again: Iterator[Arrays] | None


# Rows that one core takes at once: what a function after the other reads stays in its cache.
_ROWS = 32
_local = threading.local()
_pass: ContextVar[Pass | None] = ContextVar("host_pass", default=None)


@contextmanager
def at_once(kept: Kept | None = None, *, again: bool = False) -> Iterator[None]:
    """Compute at once within it. again: take attention's outputs from `kept`, put there before."""
    kept = kept or Kept()
    token = _pass.set(Pass(kept, iter(kept.outputs) if again else None))
    try:
        yield
    finally:
        _pass.reset(token)


def current() -> Pass | None:
    """What goes on, within `at_once`."""
    return _pass.get()


def active() -> bool:
    """Whether this is within `at_once`."""
    return _pass.get() is not None


def empty(shape: Sequence[int]) -> tuple[mx.array, Floats]:
    """An array of zeros that nothing has seen yet, and its memory to be written to."""
    array = mx.zeros(shape)
    mx.eval(array)
    return array, np.asarray(array)


def untraced(arrays: Sequence[mx.array]) -> Arrays:
    """The numbers alone: MLX keeps all that an array it traces was made of."""
    mx.eval(arrays)
    return [mx.array(np.asarray(array)) for array in arrays]


def seen(array: mx.array) -> Floats:
    """An array's memory, computed first."""
    mx.eval(array)
    return np.asarray(array)


def by_rows(make: Callable[[slice], mx.array], rows: int) -> Floats:
    """A float32 matrix of `rows` rows, of which `make` makes any slice; on all cores."""
    cores = _pool()[1]
    parts: dict[int, Floats] = {}

    def part(index: int) -> None:
        cut = slice(rows * index // cores, rows * (index + 1) // cores)
        if cut.start < cut.stop:
            parts[index] = seen(make(cut).astype(mx.float32))

    on_all_cores(part, range(cores))
    return np.concatenate([parts[index] for index in sorted(parts)])


def pieces(rows: int, size: int = _ROWS) -> list[slice]:
    """Slices of so many rows."""
    return [slice(at, min(at + size, rows)) for at in range(0, rows, size)]


def on_all_cores(work: Callable[[Any], None], items: Sequence[Any]) -> None:
    """`work` on every item, an item a core; products inside of it use one."""
    pool, _ = _pool()

    def alone(item: Any) -> None:
        # What a thread asks of MLX runs on a stream of its own.
        if not hasattr(_local, "stream"):
            _local.stream = mx.new_stream(mx.default_device())
        # Overflow shows in the loss, which is looked at there.
        with mx.stream(_local.stream), np.errstate(all="ignore"):
            work(item)

    before = backend.blas_threads(1)
    try:
        for _ in pool.map(alone, items):
            pass
    finally:
        backend.blas_threads(before)


@cache
def _pool() -> tuple[ThreadPoolExecutor, int]:
    count = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    return ThreadPoolExecutor(count), count
