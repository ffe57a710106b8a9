"""The few shapes that a run's micro-batches are padded to, so that a GPU traces each only once.

A compiled step is traced anew for every shape of its inputs, and GPU libraries plan their kernels
by shape. The order of a run's rows is known when it begins: shapes that cost little together become
one, until few are left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

MOST_SHAPES = 24
# A learned row costs its way through the head: about so much of a position's through the blocks.
_LEARNED_COST = 0.25


@dataclass(frozen=True)
class Shape:
    """rows x width positions, of which `learned` meet the head; `kind`: what padding cannot change
    (packed or not, the prefix)."""

    rows: int
    width: int
    learned: int
    kind: tuple[int, ...] = ()

    @property
    def cost(self) -> float:
        """In positions."""
        return self.rows * self.width + _LEARNED_COST * self.learned

    def holds(self, other: Shape) -> bool:
        """Whether the other can be padded to this one."""
        sides = (self.rows, self.width, self.learned), (other.rows, other.width, other.learned)
        return self.kind == other.kind and all(a >= b for a, b in zip(*sides, strict=True))


@dataclass(frozen=True)
class ShapePlan:
    """The shapes of a run."""

    shapes: tuple[Shape, ...] = ()

    @classmethod
    def of(cls, needed: Iterable[Shape], most: int = MOST_SHAPES) -> ShapePlan:
        """At most `most` shapes, or one for each kind, that hold all that are needed."""
        counts = Counter(needed)
        shapes = sorted(counts, key=lambda shape: (shape.kind, shape.rows, shape.width))
        sides = np.array([(s.rows, s.width, s.learned) for s in shapes], np.int64).reshape(-1, 3)
        times = np.array([counts[shape] for shape in shapes], np.float64)
        kinds = [shape.kind for shape in shapes]
        alive = list(range(len(shapes)))
        waste = np.full((len(shapes), len(shapes)), np.inf)
        for place in alive:
            waste[place] = waste[:, place] = _wasted(place, alive, sides, times, kinds)
        while len(alive) > most and np.isfinite(waste.min()):
            one, other = divmod(int(waste.argmin()), len(shapes))
            sides[one], times[one] = np.maximum(sides[one], sides[other]), times[one] + times[other]
            alive.remove(other)
            waste[other] = waste[:, other] = np.inf
            waste[one] = waste[:, one] = _wasted(one, alive, sides, times, kinds)
        sizes = [(int(rows), int(width), int(learned)) for rows, width, learned in sides]
        return cls(tuple(Shape(*sizes[place], kinds[place]) for place in alive))

    def fit(self, shape: Shape) -> Shape:
        """The cheapest planned shape that holds this one; itself where none does."""
        return min((s for s in self.shapes if s.holds(shape)), key=lambda s: s.cost, default=shape)


def _wasted(
    place: int, alive: list[int], sides: np.ndarray, times: np.ndarray, kinds: list[tuple[int, ...]]
) -> np.ndarray:
    """What becoming one with `place` would cost each shape of its kind, in positions."""
    found = np.full(len(sides), np.inf)
    others = [other for other in alive if other != place and kinds[other] == kinds[place]]
    if others:
        both = _costs(np.maximum(sides[others], sides[place]))
        found[others] = times[others] * (both - _costs(sides[others]))
        found[others] += times[place] * (both - _costs(sides[[place]]))
    return found


def _costs(sides: np.ndarray) -> np.ndarray:
    costs: np.ndarray = sides[:, 0] * sides[:, 1] + _LEARNED_COST * sides[:, 2]
    return costs
