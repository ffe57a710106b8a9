"""Which rows of a step share which first tokens.

Tokens that several rows start with are computed once for all of them. Rows are sorted, so that
those with a long common start stand side by side; of a common start's branches, those that save
more among themselves form groups of their own, and the others one that shares this start.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

# A prefix is a pass of its own; what it saves must be worth it. In tokens.
WORTH_TOKENS = 64
# Rows that are looked at together; in an evaluation there may be any number.
_WINDOW_ROWS = 256

Ids = NDArray[np.int32]


def shared_starts(
    rows: Sequence[Ids], multiple: int = 1, worth_tokens: int = WORTH_TOKENS
) -> list[tuple[list[int], int]]:
    """Groups of rows (by index), and how many first tokens each runs once; every row in one group.

    0 tokens where nothing is shared. A group's rows have one token more in common than it runs:
    the one that the last of these predicts. multiple: of what such a number is, to bound shapes;
    worth_tokens: what a group has to save.
    """
    order = sorted(range(len(rows)), key=lambda index: rows[index].astype(">i4").tobytes())
    common = [_common(rows[one], rows[other]) for one, other in pairwise(order)]
    groups, alone = [], []
    for start in range(0, len(rows), _WINDOW_ROWS):
        stop = min(start + _WINDOW_ROWS, len(rows))
        for places, tokens in _best(common, start, stop, multiple, worth_tokens)[1]:
            members = [order[place] for place in places]
            if tokens:
                groups.append((members, tokens))
            else:
                alone += members
    return [*groups, (alone, 0)] if alone else groups


def _common(one: Ids, other: Ids) -> int:
    shortest = min(len(one), len(other))
    differ = np.flatnonzero(one[:shortest] != other[:shortest])
    return int(differ[0]) if differ.size else shortest


Group = tuple[list[int], int]


def _best(
    common: Sequence[int], start: int, stop: int, multiple: int, worth_tokens: int
) -> tuple[int, list[Group]]:
    """The most that groups of the sorted rows [start, stop) save, in tokens, and these groups.

    common: of each row and the next.
    """
    if stop - start < 2:
        return 0, [(list(range(start, stop)), 0)]
    between = common[start : stop - 1]
    least = min(between)
    tokens = max(least - 1, 0) // multiple * multiple
    # Rows that differ from their neighbours at this depth begin branches of their own.
    cuts = [start + 1 + i for i, length in enumerate(between) if length == least]
    branches = [
        (list(range(first, last)), *_best(common, first, last, multiple, worth_tokens))
        for first, last in zip([start, *cuts], [*cuts, stop], strict=True)
    ]
    # Those that save more among themselves go their own way; the others share what all start with.
    own = [(saved, groups) for members, saved, groups in branches if saved > tokens * len(members)]
    together = [
        place
        for members, saved, _ in branches
        if saved <= tokens * len(members)
        for place in members
    ]
    saved_here = tokens * (len(together) - 1)
    if saved_here < worth_tokens:
        saved = sum(saved for _, saved, _ in branches)
        return saved, [group for _, _, groups in branches for group in groups]
    return (
        saved_here + sum(saved for saved, _ in own),
        [(together, tokens), *(group for _, groups in own for group in groups)],
    )
