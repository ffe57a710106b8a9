"""Which rows each optimizer step learns: pure functions of (seed, epoch), with no generator state.

A hash gives the order, so it is the same on every platform and library version, and a run resumed
at step s needs nothing but s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlx_itune.kit.errors import UsageError


@dataclass(frozen=True)
class Batch:
    """The rows of one optimizer step (numbered from 1) of one epoch (numbered from 0)."""

    step: int
    epoch: int
    rows: tuple[int, ...]


def epoch_order(n_rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """(N,) int64: the rows, in the order an epoch visits them."""
    key = hashlib.blake2b(f"{seed} {epoch}".encode(), digest_size=32).digest()
    ranks = [
        int.from_bytes(hashlib.blake2b(f"0 {row}".encode(), digest_size=8, key=key).digest(), "big")
        for row in range(n_rows)
    ]
    return np.argsort(np.array(ranks, dtype=np.uint64), kind="stable").astype(np.int64)


def batches(
    n_rows: int,
    batch_size: int,
    *,
    seed: int,
    epochs: float | None = None,
    steps: int | None = None,
) -> Iterator[Batch]:
    """Shuffled epochs cut into batches; the last batch of an epoch may be short, none is left out.

    `steps` alone runs through as many epochs as it takes; with `epochs` the shorter of both ends
    it. A fractional epoch stops after that share of its steps, rounded up.
    """
    if n_rows < 1 or batch_size < 1:
        raise UsageError(f"cannot batch {n_rows} rows by {batch_size}")
    if epochs is None and steps is None:
        raise UsageError("give epochs or steps")
    per_epoch = -(-n_rows // batch_size)
    last = steps
    if epochs is not None:
        # Rounded first, so that 0.1 * 30 means 3 steps and not 4.
        in_epochs = int(np.ceil(round(epochs * per_epoch, 6)))
        last = in_epochs if steps is None else min(steps, in_epochs)
    return _run(n_rows, batch_size, seed, last or 0)


def _run(n_rows: int, batch_size: int, seed: int, last: int) -> Iterator[Batch]:
    step, epoch = 0, 0
    while step < last:
        order = epoch_order(n_rows, seed, epoch)
        for start in range(0, n_rows, batch_size):
            if step == last:
                return
            step += 1
            yield Batch(step, epoch, tuple(order[start : start + batch_size].tolist()))
        epoch += 1
