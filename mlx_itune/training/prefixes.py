"""Which rows of a step share which first tokens.

Tokens that several rows start with are computed once for all of them. Rows are sorted, so that
those with a long common start stand side by side, and cut into groups where most is saved: either
all rows below a common start form a group, or those below its branches do, whichever is more.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

# A prefix is a pass of its own; what it saves must be worth it. In tokens.
_WORTH_TOKENS = 128

Ids = NDArray[np.int32]


def shared_starts(rows: Sequence[Ids], multiple: int = 1) -> list[tuple[list[int], int]]:
    """Groups of rows (by index), and how many first tokens each runs once; every row in one group.

    0 tokens where nothing is shared. A group's rows have one token more in common than it runs:
    the one that the last of these predicts. multiple: of what such a number is, to bound shapes.
    """
    order = sorted(range(len(rows)), key=lambda index: rows[index].astype(">i4").tobytes())
    common = [_common(rows[one], rows[other]) for one, other in pairwise(order)]
    groups: list[tuple[list[int], int]] = []
    alone: list[int] = []
    for start, stop, tokens in _best(common, 0, len(rows), multiple)[1]:
        if tokens:
            groups.append((order[start:stop], tokens))
        else:
            alone += order[start:stop]
    return [*groups, (alone, 0)] if alone else groups


def _common(one: Ids, other: Ids) -> int:
    shortest = min(len(one), len(other))
    differ = np.flatnonzero(one[:shortest] != other[:shortest])
    return int(differ[0]) if differ.size else shortest


Cut = tuple[int, int, int]


def _best(common: Sequence[int], start: int, stop: int, multiple: int) -> tuple[int, list[Cut]]:
    """The most that groups of rows [start, stop) save, in tokens; these groups in sorted order."""
    if stop - start < 2:
        return 0, [(start, stop, 0)]
    between = common[start : stop - 1]
    least = min(between)
    tokens = max(least - 1, 0) // multiple * multiple
    together = tokens * (stop - start - 1)
    # Rows that differ from their neighbours at this depth begin branches of their own.
    cuts = [start + 1 + i for i, length in enumerate(between) if length == least]
    apart, parts = 0, []
    for first, last in zip([start, *cuts], [*cuts, stop], strict=True):
        saved, inside = _best(common, first, last, multiple)
        apart += saved
        parts += inside
    if together >= _WORTH_TOKENS and together >= apart:
        return together, [(start, stop, tokens)]
    return apart, parts
