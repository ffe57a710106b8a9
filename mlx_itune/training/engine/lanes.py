"""Micro-batches side by side: one CPU core each, or one after the other on a GPU.

MLX runs a CPU stream's elementwise work on one core; only several streams use several.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import mlx.core as mx

from mlx_itune.model.loading import backend

MAX_LANES = 8
T = TypeVar("T")
Item = TypeVar("Item")


class Lanes:
    """Workers, each with a stream of its own. count: one per core if None."""

    def __init__(self, count: int | None = None) -> None:
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        parallel = backend.prepare().blas is not None
        self.count = count or (min(cpus, MAX_LANES) if parallel else 1)
        self._lock = threading.Lock()
        self._local = threading.local()
        self._streams: list[Any] = []
        self._pool = ThreadPoolExecutor(self.count) if self.count > 1 else None
        if self._pool is not None:
            backend.blas_threads(1)

    def each(self, build: Callable[[Item], T], items: Sequence[Item]) -> Iterator[T]:
        """`build` a graph for each item and evaluate it; results in the items' order.

        Graphs are built one at a time, as building touches the model; they are evaluated at once.
        """
        if self._pool is None:
            yield from (_evaluated(build(item)) for item in items)
        elif len(items) == 1:
            # Nothing beside it: its products get all cores.
            backend.blas_threads(self.count)
            try:
                yield from self._pool.map(lambda item: self._run(build, item), items)
            finally:
                backend.blas_threads(1)
        else:
            yield from self._pool.map(lambda item: self._run(build, item), items)

    def streams(self) -> list[Any]:
        """A stream for each lane, for work that is evaluated at once but in parts side by side."""
        if not self._streams:
            self._streams = [mx.new_stream(mx.default_device()) for _ in range(self.count)]
        return self._streams

    def close(self) -> None:
        """End the threads, and let BLAS use its own again."""
        if self._pool is not None:
            self._pool.shutdown()
            backend.blas_threads(self.count)

    def _run(self, build: Callable[[Item], T], item: Item) -> T:
        if not hasattr(self._local, "stream"):
            self._local.stream = mx.new_stream(mx.default_device())
        with mx.stream(self._local.stream):
            with self._lock:
                result = build(item)
            return _evaluated(result)


def _evaluated(result: T) -> T:
    mx.eval(result)
    return result
