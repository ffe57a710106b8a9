"""Which rows each optimizer step learns: pure functions of (seed, epoch), with no generator state.
A hash gives the order, so it is the same on every platform and library version, and a run resumed
at step s needs nothing but s."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlx_itune.kit.errors import UsageError

# Batches whose rows are put in order of length together: enough for little padding, few enough for
# a random order.
WINDOW_BATCHES = 16


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


def planned_steps(
    n_rows: int, batch_size: int, *, epochs: float | None = None, steps: int | None = None
) -> int:
    """How many steps `batches` of the same arguments makes."""
    ends = [] if steps is None else [steps]
    if epochs is not None:
        # Rounded first, so that 0.1 * 30 means 3 steps and not 4.
        ends.append(math.ceil(round(epochs * -(-n_rows // batch_size), 6)))
    if not ends:
        raise UsageError("give epochs or steps")
    return min(ends)


def batches(
    n_rows: int,
    batch_size: int,
    *,
    seed: int,
    epochs: float | None = None,
    steps: int | None = None,
    lengths: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Shuffled epochs cut into batches; the last batch of an epoch may be short, none is left out.
    `steps` alone runs through as many epochs as it takes; with `epochs` the shorter of both ends
    it. A fractional epoch stops after that share of its steps, rounded up. lengths: of the rows, in
    tokens; those of like length then come together, within windows of the shuffled order."""
    if n_rows < 1 or batch_size < 1:
        raise UsageError(f"cannot batch {n_rows} rows by {batch_size}")
    last = planned_steps(n_rows, batch_size, epochs=epochs, steps=steps)

    def run() -> Iterator[Batch]:
        step = 0
        for epoch in count():
            order = epoch_order(n_rows, seed, epoch)
            if lengths is None:
                cut = [order[at : at + batch_size] for at in range(0, n_rows, batch_size)]
            else:
                cut = _grouped(order, np.asarray(lengths), batch_size)
            for rows in cut:
                if step >= last:
                    return
                step += 1
                yield Batch(step, epoch, tuple(rows.tolist()))

    return run()


def _grouped(
    order: NDArray[np.int64], lengths: NDArray[Any], batch_size: int
) -> list[NDArray[np.int64]]:
    """Batches of rows of like length. In a window their order is that of their first rows in the
    epoch's, so that short rows come no earlier than long ones."""
    made = []
    for start in range(0, len(order), WINDOW_BATCHES * batch_size):
        window = order[start : start + WINDOW_BATCHES * batch_size]
        places = np.argsort(lengths[window], kind="stable")
        cut = [places[at : at + batch_size] for at in range(0, len(places), batch_size)]
        made += [window[np.sort(part)] for part in sorted(cut, key=lambda part: int(part.min()))]
    return made
