"""How the rows of a step are computed: rectangles of tokens, and what is shared between them.

This changes speed and memory only. Rows are padded on the right: under a causal mask no token sees
what follows it, and a pad is never a target, so padding needs no mask of its own. Nor do tokens
after a row's last target need to be computed.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mlx_itune.training.engine.prefixes import WORTH_TOKENS, shared_starts

# Widths are rounded up to this, which bounds how many shapes an allocator has to serve.
_WIDTH_TOKENS = 16
# What a rectangle costs besides its positions, in positions: building its graph takes as long.
OVERHEAD_TOKENS = 32
# Ways of cutting that are compared, per lane.
_CUTS = 24
# A token that sees so many others costs twice as much as one that sees none.
_ATTENTION_TOKENS = 1000

# off: a row is one sequence. row: all sequences side by side in one row, without any padding.
# bins: as many in a row as go into the longest one's width.
Packing = Literal["off", "row", "bins"]


class Example(Protocol):
    """input_ids (T,) int32 and weights (T,) float32: how much each token is learned."""

    @property
    def input_ids(self) -> NDArray[np.int32]: ...
    @property
    def weights(self) -> NDArray[np.float32]: ...


@dataclass(frozen=True, eq=False)
class Prefix:
    """Tokens that rows of one or more micro-batches start with, and that are run once for them.

    input_ids and weights (1, S + 1): the S tokens, and the one they predict last, which each of
    the rows has again as its first. The weights are the sums of the rows'.
    """

    input_ids: NDArray[np.int32]
    weights: NDArray[np.float32]

    @property
    def tokens(self) -> int:
        """S: how many are run."""
        return int(self.input_ids.shape[1]) - 1


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """input_ids (B, T) int32 and weights (B, T) float32; pads have id 0 and weight 0.

    lengths: of the sequences in each row, one as long as the row if None. prefix: what comes
    before each sequence; micro-batches may have it in common.
    """

    input_ids: NDArray[np.int32]
    weights: NDArray[np.float32]
    lengths: tuple[tuple[int, ...], ...] | None = None
    prefix: Prefix | None = None

    @property
    def tokens(self) -> int:
        """Positions computed, pads included."""
        return int(self.input_ids.size)


def arrange(
    examples: Sequence[Example],
    budget_tokens: int,
    lanes: int = 1,
    *,
    packing: Packing = "off",
    sharing: bool = False,
    packed_sharing: bool = True,
    multiple: int = _WIDTH_TOKENS,
    overhead_tokens: int = OVERHEAD_TOKENS,
) -> list[MicroBatch]:
    """The examples in micro-batches of at most `budget_tokens`, or of one row that is longer.

    sharing: run common first tokens once; packed_sharing: rows behind them may be packed. multiple:
    of what widths are, where they are padded. overhead_tokens: what a micro-batch costs besides
    its tokens. Micro-batches of one prefix stand side by side.
    """
    rows = [trimmed for example in examples if (trimmed := _trimmed(example)) is not None]
    groups = [(list(range(len(rows))), 0)]
    if sharing:
        groups = shared_starts(
            [row.input_ids for row in rows],
            1 if packing == "row" else multiple,
            # A prefix is a pass of its own, and one back through it.
            max(WORTH_TOKENS, 2 * overhead_tokens),
        )
    made: list[MicroBatch] = []
    for members, shared in groups:
        chosen = [rows[index] for index in members]
        prefix = None
        if shared:
            prefix = _prefix(chosen, shared)
            chosen = [
                _Row(row.input_ids[shared:], _without_first(row.weights[shared:]))
                for row in chosen
                if len(row.input_ids) > shared + 1
            ]
        how = packing if not shared or packed_sharing else "off"
        made += _laid_out(chosen, budget_tokens, lanes, how, prefix, multiple, overhead_tokens)
    return made


def split(
    examples: Sequence[Example],
    budget_tokens: int,
    lanes: int = 1,
    multiple: int = _WIDTH_TOKENS,
    overhead_tokens: int = OVERHEAD_TOKENS,
) -> list[MicroBatch]:
    """The examples as rectangles of at most `budget_tokens`, the longest rows first.

    Rows are sorted by length and cut where `lanes` workers side by side are done soonest: few
    rectangles pad more, many cost more. A single row above the budget gets a rectangle of its
    own: no row is left out or cut.
    """
    rows = sorted(examples, key=lambda example: -len(example.input_ids))
    widths = [_padded(len(row.input_ids), multiple) for row in rows]
    share = sum(widths) / lanes
    limits = {budget_tokens, *(min(budget_tokens, int(4 * share / n)) for n in range(3, _CUTS))}
    ways = [_cut(widths, limit) for limit in sorted(limits, reverse=True)]
    cuts = min(ways, key=lambda way: _makespan(widths, way, lanes, overhead_tokens))
    return [_rectangle(rows[start:stop], multiple) for start, stop in cuts]


def by_prefix(batches: Sequence[MicroBatch]) -> list[list[MicroBatch]]:
    """Micro-batches that have a prefix in common together, in the order of their first."""
    groups: dict[int, list[MicroBatch]] = {}
    for batch in batches:
        groups.setdefault(id(batch.prefix), []).append(batch)
    return list(groups.values())


def prefixes_of(batches: Sequence[MicroBatch]) -> list[Prefix]:
    """The prefixes that micro-batches have, each once."""
    return [group[0].prefix for group in by_prefix(batches) if group[0].prefix is not None]


@dataclass(frozen=True, eq=False)
class _Row:
    input_ids: NDArray[np.int32]
    weights: NDArray[np.float32]


def _trimmed(example: Example) -> _Row | None:
    """A row up to its last target; None without one."""
    learned = np.flatnonzero(example.weights[1:])
    if not learned.size:
        return None
    stop = int(learned[-1]) + 2
    return _Row(example.input_ids[:stop], example.weights[:stop])


def _without_first(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([np.zeros(1, np.float32), weights[1:]])


def _prefix(rows: Sequence[_Row], tokens: int) -> Prefix:
    stacked = np.stack([row.weights[: tokens + 1] for row in rows])
    weights = stacked.sum(axis=0, dtype=np.float64)
    weights[0] = 0.0
    return Prefix(rows[0].input_ids[None, : tokens + 1], weights[None].astype(np.float32))


def _laid_out(
    rows: list[_Row],
    budget_tokens: int,
    lanes: int,
    packing: Packing,
    prefix: Prefix | None,
    multiple: int,
    overhead_tokens: int,
) -> list[MicroBatch]:
    if not rows:
        # Every row is its prefix, with the token after it: a row like any other.
        return [MicroBatch(prefix.input_ids, prefix.weights)] if prefix else []
    shared = prefix.tokens if prefix else 0
    if packing == "row":
        parts = [_packed([part], None) for part in _balanced(rows, budget_tokens, lanes, shared)]
    elif packing == "bins":
        parts = _binned(rows, budget_tokens, lanes, multiple, overhead_tokens)
    else:
        parts = split(rows, budget_tokens, lanes, multiple, overhead_tokens)
    return [MicroBatch(p.input_ids, p.weights, p.lengths, prefix) for p in parts]


def _balanced(
    rows: Sequence[_Row], budget_tokens: int, lanes: int, shared: int
) -> list[list[_Row]]:
    """Parts of at most the budget that `lanes` workers are done with at about the same time."""
    order = sorted(rows, key=lambda row: -len(row.input_ids))
    sizes = [len(row.input_ids) for row in order]
    costs = [size * (1 + (shared + size / 2) / _ATTENTION_TOKENS) for size in sizes]
    least = -(-sum(sizes) // budget_tokens)
    if least > 1 or sum(costs) * (1 - 1 / lanes) > lanes * OVERHEAD_TOKENS:
        least = -(-least // lanes) * lanes
    count = min(least, len(order))
    while True:
        parts: list[list[_Row]] = [[] for _ in range(count)]
        filled = [0] * count
        # The longest first, each to where least has to be done (Graham, 1969).
        loads = [(0.0, part) for part in range(count)]
        for row, size, cost in zip(order, sizes, costs, strict=True):
            load, part = loads[0]
            heapq.heapreplace(loads, (load + cost, part))
            parts[part].append(row)
            filled[part] += size
        if all(f <= budget_tokens or len(p) == 1 for f, p in zip(filled, parts, strict=True)):
            return [parts[part] for _, part in sorted(loads, reverse=True)]
        count = min(len(order), max(count + 1, count + count // 16))


def _binned(
    rows: Sequence[_Row], budget_tokens: int, lanes: int, multiple: int, overhead_tokens: int
) -> list[MicroBatch]:
    """Rectangles whose rows hold one or more sequences: the first row that has room takes one."""
    order = sorted(rows, key=lambda row: -len(row.input_ids))
    width = _padded(len(order[0].input_ids) - 1, multiple) + 1
    bins: list[list[_Row]] = []
    room: list[int] = []
    for row in order:
        size = len(row.input_ids)
        place = next((i for i, free in enumerate(room) if free >= size), None)
        if place is None:
            bins.append([])
            room.append(width)
            place = len(bins) - 1
        bins[place].append(row)
        room[place] -= size
    per_part = max(1, min(budget_tokens // width, -(-len(bins) // lanes)))
    parts = [bins[i : i + per_part] for i in range(0, len(bins), per_part)]
    padded = split(rows, budget_tokens, lanes, multiple, overhead_tokens)
    # Blocks of a mask that hide each other are computed all the same; padding may be cheaper.
    if sum(p.tokens for p in padded) <= 1.1 * width * len(bins):
        return padded
    return [_packed(part, width) for part in parts]


def _packed(bins: Sequence[Sequence[_Row]], width: int | None) -> MicroBatch:
    """A row for each bin, its sequences side by side; each one's first token is no target."""
    lengths = tuple(tuple(len(row.input_ids) for row in rows) for rows in bins)
    shape = (len(bins), width or sum(lengths[0]))
    ids, weights = np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.float32)
    for place, rows in enumerate(bins):
        at = 0
        for row in rows:
            end = at + len(row.input_ids)
            ids[place, at:end] = row.input_ids
            weights[place, at + 1 : end] = row.weights[1:]
            at = end
    return MicroBatch(ids, weights, lengths)


def _cut(widths: Sequence[int], limit_tokens: int) -> list[tuple[int, int]]:
    """Ranges [start, stop) of rows, each filled up to the limit."""
    starts = [0]
    for index in range(1, len(widths)):
        if (index + 1 - starts[-1]) * widths[starts[-1]] > limit_tokens:
            starts.append(index)
    return list(zip(starts, [*starts[1:], len(widths)], strict=True))


def _makespan(
    widths: Sequence[int], cuts: Sequence[tuple[int, int]], lanes: int, overhead_tokens: int
) -> int:
    """When the last lane is done, each taking the next rectangle as soon as it is free."""
    busy = [0] * lanes
    for start, stop in cuts:
        lane = busy.index(min(busy))
        busy[lane] += (stop - start) * widths[start] + overhead_tokens
    return max(busy)


def _padded(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _rectangle(rows: Sequence[Example], multiple: int) -> MicroBatch:
    # One more than the multiple: the last token is a target only, so T - 1 are computed.
    shape = (len(rows), _padded(len(rows[0].input_ids) - 1, multiple) + 1)
    ids, weights = np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.float32)
    for index, row in enumerate(rows):
        ids[index, : len(row.input_ids)] = row.input_ids
        weights[index, : len(row.weights)] = row.weights
    return MicroBatch(ids, weights)
