"""How the rows of a step are computed: padded rectangles of rows of like length.

This changes speed and memory only. Rows are padded on the right: under a causal mask no token sees
what follows it, and a pad is never a target, so padding needs no mask of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# Widths are rounded up to this, which bounds how many shapes an allocator has to serve.
_WIDTH_TOKENS = 16
# What a rectangle costs besides its positions, in positions: building its graph takes as long.
_OVERHEAD_TOKENS = 128
# Ways of cutting that are compared, per lane.
_CUTS = 24


class Example(Protocol):
    """input_ids (T,) int32 and weights (T,) float32: how much each token is learned."""

    @property
    def input_ids(self) -> NDArray[np.int32]: ...
    @property
    def weights(self) -> NDArray[np.float32]: ...


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """input_ids (B, T) int32 and weights (B, T) float32; pads have id 0 and weight 0."""

    input_ids: NDArray[np.int32]
    weights: NDArray[np.float32]

    @property
    def tokens(self) -> int:
        """Positions computed, pads included."""
        return int(self.input_ids.size)


def split(examples: Sequence[Example], budget_tokens: int, lanes: int = 1) -> list[MicroBatch]:
    """The examples as rectangles of at most `budget_tokens`, the longest rows first.

    Rows are sorted by length and cut where `lanes` workers side by side are done soonest: few
    rectangles pad more, many cost more. A single row above the budget gets a rectangle of its
    own: no row is left out or cut.
    """
    rows = sorted(examples, key=lambda example: -len(example.input_ids))
    widths = [_padded(len(row.input_ids)) for row in rows]
    share = sum(widths) / lanes
    limits = {budget_tokens, *(min(budget_tokens, int(4 * share / n)) for n in range(3, _CUTS))}
    ways = [_cut(widths, limit) for limit in sorted(limits, reverse=True)]
    cuts = min(ways, key=lambda way: _makespan(widths, way, lanes))
    return [_rectangle(rows[start:stop]) for start, stop in cuts]


def _cut(widths: Sequence[int], limit_tokens: int) -> list[tuple[int, int]]:
    """Ranges [start, stop) of rows, each filled up to the limit."""
    starts = [0]
    for index in range(1, len(widths)):
        if (index + 1 - starts[-1]) * widths[starts[-1]] > limit_tokens:
            starts.append(index)
    return list(zip(starts, [*starts[1:], len(widths)], strict=True))


def _makespan(widths: Sequence[int], cuts: Sequence[tuple[int, int]], lanes: int) -> int:
    """When the last lane is done, each taking the next rectangle as soon as it is free."""
    busy = [0] * lanes
    for start, stop in cuts:
        lane = busy.index(min(busy))
        busy[lane] += (stop - start) * widths[start] + _OVERHEAD_TOKENS
    return max(busy)


def _padded(length: int) -> int:
    return -(-length // _WIDTH_TOKENS) * _WIDTH_TOKENS


def _rectangle(rows: Sequence[Example]) -> MicroBatch:
    # One more than the multiple: the last token is a target only, so T - 1 are computed.
    shape = (len(rows), _padded(len(rows[0].input_ids) - 1) + 1)
    ids, weights = np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.float32)
    for index, row in enumerate(rows):
        ids[index, : len(row.input_ids)] = row.input_ids
        weights[index, : len(row.weights)] = row.weights
    return MicroBatch(ids, weights)
