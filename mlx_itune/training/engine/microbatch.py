"""How the rows of a step are computed: rectangles of tokens, and what is shared between them.

This changes speed and memory only. Rows are padded on the right: under a causal mask no token sees
what follows it, and a pad is never a target, so padding needs no mask of its own. Nor do tokens
after a row's last target need to be computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mlx_itune.training.engine.prefixes import WORTH_TOKENS, shared_starts

# A prefix is cut into chunks of no fewer tokens.
_CHUNK_TOKENS = 96
# Ways of cutting that are compared, per lane.
_CUTS = 24


class Example(Protocol):
    """input_ids (T,) int32 and weights (T,) float32: how much each token is learned."""

    @property
    def input_ids(self) -> NDArray[np.int32]: ...
    @property
    def weights(self) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Device:
    """What a device likes. lanes: rectangles computed side by side; multiple: of what widths are;
    bucketed: few sizes, so that few shapes are traced; overhead_tokens: what a rectangle costs
    besides its positions."""

    lanes: int = 1
    multiple: int = 16
    bucketed: bool = False
    overhead_tokens: int = 32

    def rounded(self, size: int, multiple: int | None = None) -> int:
        """`size` rounded up: to a multiple, in buckets from some size on to 16 a doubling."""
        step = multiple or self.multiple
        while self.bucketed and step * 16 < size:
            step *= 2
        return -(-size // step) * step


@dataclass(frozen=True, eq=False)
class Rectangle:
    """input_ids (B, T + 1) int32 and weights (B, T + 1) float32; pads have id 0 and weight 0.

    segments (B, T) int32: which of its row's sequences a token belongs to; None where a row is one.
    """

    input_ids: NDArray[np.int32]
    weights: NDArray[np.float32]
    segments: NDArray[np.int32] | None = None

    @property
    def tokens(self) -> int:
        """Positions computed, pads included."""
        rows, width = self.input_ids.shape
        return int(rows * (width - 1))


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """What is computed at once: rectangles, and what comes before each of their rows.

    prefix (1, S + 1): S tokens that are run once, and the one they predict last, which each of the
    rows has again as its first. Its weights are the sums of the rows'. Several may have one.
    """

    parts: tuple[Rectangle, ...]
    prefix: Rectangle | None = None

    @property
    def tokens(self) -> int:
        """Positions computed, pads included."""
        return sum(part.tokens for part in (*self.parts, *([self.prefix] if self.prefix else [])))


def arrange(
    examples: Sequence[Example],
    budget_tokens: int,
    device: Device,
    *,
    packing: bool = False,
    sharing: bool = False,
    gap_tokens: int = 0,
) -> list[MicroBatch]:
    """The examples in micro-batches of at most `budget_tokens`, or of one row that is longer.

    packing: several rows side by side where that saves padding, so many pads between them; sharing:
    common first tokens once.
    """
    rows = [trimmed for example in examples if (trimmed := _trimmed(example)) is not None]
    groups = [(list(range(len(rows))), 0)]
    if sharing:
        # A prefix is a pass of its own, and one back through it.
        worth = max(WORTH_TOKENS, 2 * device.overhead_tokens)
        groups = shared_starts([row.input_ids for row in rows], device.multiple, worth)
    made: list[MicroBatch] = []
    for members, shared in groups:
        chosen = [rows[index] for index in members]
        prefix = _prefix(chosen, shared) if shared else None
        if shared:
            chosen = [
                _Row(row.input_ids[shared:], _without_first(row.weights[shared:]))
                for row in chosen
                if len(row.input_ids) > shared + 1
            ]
        gap = gap_tokens if packing and not shared else None
        made += _laid_out(chosen, prefix, budget_tokens, device, gap)
    return made


def cut(prefix: Rectangle, parts: int) -> list[Rectangle]:
    """A prefix in so many chunks, none too short to be worth it; each has the next one's first
    token as its last target."""
    count = min(parts, 1 + prefix.tokens // _CHUNK_TOKENS)
    ends = [prefix.tokens * part // count for part in range(count + 1)]
    return [
        Rectangle(prefix.input_ids[:, start : stop + 1], prefix.weights[:, start : stop + 1])
        for start, stop in pairwise(ends)
    ]


def padded(part: Rectangle, rows: int, width: int) -> Rectangle:
    """The same in at least so many rows, at least so wide."""
    have, wide = part.input_ids.shape
    fill = ((0, max(0, rows - have)), (0, max(0, width + 1 - wide)))
    if not any(map(any, fill)):
        return part
    segments = None if part.segments is None else np.pad(part.segments, fill)
    return Rectangle(np.pad(part.input_ids, fill), np.pad(part.weights, fill), segments)


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


def _prefix(rows: Sequence[_Row], tokens: int) -> Rectangle:
    weights = np.stack([row.weights[: tokens + 1] for row in rows]).sum(axis=0, dtype=np.float64)
    weights[0] = 0.0
    return Rectangle(rows[0].input_ids[None, : tokens + 1], weights[None].astype(np.float32))


def _laid_out(
    rows: list[_Row],
    prefix: Rectangle | None,
    budget_tokens: int,
    device: Device,
    gap: int | None,
) -> list[MicroBatch]:
    """gap: pads between packed rows; None packs none."""
    if not rows:
        # Every row is its prefix, with the token after it: a row like any other.
        return [MicroBatch((prefix,))] if prefix else []
    rows = sorted(rows, key=lambda row: -len(row.input_ids))
    parts = _padded(rows, budget_tokens, device)
    if gap is not None:
        packed = _binned(rows, budget_tokens, device, gap)
        # What a mask hides is computed all the same; a little padding is cheaper.
        if sum(p.tokens for p in parts) > 1.1 * sum(p.tokens for p in packed):
            parts = packed
    together: list[list[Rectangle]] = []
    for part in parts:
        filled = sum(p.tokens for p in together[-1]) if together else budget_tokens
        if filled + part.tokens > budget_tokens:
            together.append([])
        together[-1].append(part)
    return [MicroBatch(tuple(members), prefix) for members in together]


def by_prefix(batches: Sequence[MicroBatch]) -> list[list[MicroBatch]]:
    """Those behind one prefix together, and each that has none."""
    groups: dict[int, list[MicroBatch]] = {}
    for batch in batches:
        groups.setdefault(id(batch.prefix or batch), []).append(batch)
    return list(groups.values())


def _padded(rows: Sequence[_Row], budget_tokens: int, device: Device) -> list[Rectangle]:
    """Rectangles of the rows, longest first, cut where lanes side by side are done soonest.

    Few rectangles pad more, many cost more. A single row above the budget gets one of its own: no
    row is left out or cut.
    """
    widths = [device.rounded(len(row.input_ids) - 1) for row in rows]
    limit = budget_tokens // device.lanes
    share = sum(widths) / device.lanes
    limits = {limit, *(min(limit, int(4 * share / n)) for n in range(3, _CUTS))}
    ways = [_cut(widths, tokens) for tokens in sorted(limits, reverse=True)]
    cuts = min(ways, key=lambda way: _makespan(widths, way, device))
    return [_rectangle([[row] for row in rows[start:stop]], widths[start]) for start, stop in cuts]


def _binned(rows: Sequence[_Row], budget_tokens: int, device: Device, gap: int) -> list[Rectangle]:
    """Rectangles whose rows hold one or more sequences: the first row that has room takes one."""
    width = device.rounded(len(rows[0].input_ids) - 1)
    bins: list[list[_Row]] = []
    room: list[int] = []
    for row in rows:
        size = len(row.input_ids)
        # A row's last token is a target only, so it may stick out.
        place = next((i for i, free in enumerate(room) if free >= size - 1), None)
        if place is None:
            bins.append([])
            room.append(width)
            place = len(bins) - 1
        bins[place].append(row)
        room[place] -= size + gap
    each = max(1, min(budget_tokens // device.lanes // width, -(-len(bins) // device.lanes)))
    return [
        _rectangle(bins[start : start + each], width, gap) for start in range(0, len(bins), each)
    ]


def _rectangle(bins: Sequence[Sequence[_Row]], width: int, gap: int | None = None) -> Rectangle:
    """A row for each bin, its sequences side by side; each one's first token is no target."""
    shape = (len(bins), width + 1)
    ids, weights = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    segments = np.zeros((len(bins), width), np.int32)
    for place, rows in enumerate(bins):
        at = 0
        for number, row in enumerate(rows, 1):
            end = at + len(row.input_ids)
            ids[place, at:end] = row.input_ids
            weights[place, at + 1 : end] = row.weights[1:]
            segments[place, at:end] = number
            at = end + (gap or 0)
    return Rectangle(ids, weights, None if gap is None else segments)


def _cut(widths: Sequence[int], limit_tokens: int) -> list[tuple[int, int]]:
    """Ranges [start, stop) of rows, each filled up to the limit."""
    starts = [0]
    for index in range(1, len(widths)):
        if (index + 1 - starts[-1]) * widths[starts[-1]] > limit_tokens:
            starts.append(index)
    return list(zip(starts, [*starts[1:], len(widths)], strict=True))


def _makespan(widths: Sequence[int], cuts: Sequence[tuple[int, int]], device: Device) -> int:
    """When the last lane is done, each taking the next rectangle as soon as it is free."""
    busy = [0] * device.lanes
    for start, stop in cuts:
        lane = busy.index(min(busy))
        busy[lane] += (stop - start) * widths[start] + device.overhead_tokens
    return max(busy)
