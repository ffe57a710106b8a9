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
# A row shorter than this share of the rectangle's width opens one of its own.
_FILL = 0.7


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


def split(examples: Sequence[Example], budget_tokens: int) -> list[MicroBatch]:
    """The examples as rectangles of at most `budget_tokens`, the longest rows first.

    A single row above the budget gets a rectangle of its own: no row is left out or cut.
    """
    order = sorted(examples, key=lambda example: -len(example.input_ids))
    groups: list[list[Example]] = []
    width = 0
    for example in order:
        length = len(example.input_ids)
        fits = groups and (len(groups[-1]) + 1) * width <= budget_tokens and length >= _FILL * width
        if fits:
            groups[-1].append(example)
        else:
            groups.append([example])
            width = _padded(length)
    return [_rectangle(group) for group in groups]


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
