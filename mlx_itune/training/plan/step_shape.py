"""How a step is computed and what shapes its micro-batches have: what its memory depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class How:
    """What decides how a step is computed.

    resident: whether quantized weights stand in memory as floats; dense: whether they are computed
    as floats at all. on_cpu: activations and norms are float32 there. kept_tokens: of micro-batches
    of more positions some blocks keep their inputs only (checkpointing). at_once_tokens: one of
    more positions is computed alone, block by block. norm_parameters: what a grid adapter
    learns of norms.
    """

    adapter: str
    rank: int
    optimizer: str
    on_cpu: bool
    dense: bool
    resident: bool
    lanes: int
    kept_tokens: float
    at_once_tokens: float
    chunk_rows: int
    micro_batch_tokens: int
    norm_parameters: int = 0


@dataclass(frozen=True)
class Rectangle:
    """A micro-batch: `rows` of `width` positions, of which `learned` in all meet the output head.

    seen: keys that a position's scores are computed for, on average; of a packed row those of its
    own sequence alone.
    """

    rows: int
    width: int
    learned: int
    seen: float

    @property
    def is_one_sequence(self) -> bool:
        """Whether it is a single row of one sequence, without a window."""
        return self.rows == 1 and 2 * self.seen >= self.width

    @property
    def positions(self) -> int:
        """All of them, pads included."""
        return self.rows * self.width


@dataclass(frozen=True)
class Group:
    """Micro-batches behind one prefix, whose pass is kept until they are done; or behind none."""

    prefix: Rectangle | None
    rectangles: Sequence[Rectangle]
