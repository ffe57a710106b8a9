"""Rotary layers for rows that hold several sequences, and faster ones for Linux CPUs.

A layer gets a subclass whose `__call__` knows `Positions`; anything else it is given goes to the
library's own code. On a CPU the sines and cosines are made once per forward pass, not per layer.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_itune.model.engine import host, host_layers
from mlx_itune.model.engine.cpu_math import on_one_stream
from mlx_itune.model.loading import backend

# Two layers whose tables agree at both places are taken to be alike.
_PROBED_AT = (37, 2901)
_TOLERANCE = 1e-5


class Positions(int):
    """Where the tokens of a pass stand in their sequences; as an int, the first one's place.

    A rotary layer that is not one of `install`'s takes it for that int: places then go on from
    one packed sequence to the next, which is the same function where only distances count.
    """

    lengths: tuple[tuple[int, ...], ...]
    tables: dict[bytes, _Table]

    def __new__(cls, lengths: Sequence[Sequence[int]], shared: int = 0) -> Positions:
        """lengths: of the sequences of each row; shared: tokens before each of them."""
        made = super().__new__(cls, shared)
        made.lengths = tuple(tuple(row) for row in lengths)
        made.tables = {}
        return made

    @property
    def packed(self) -> bool:
        """Whether a row holds more than one sequence."""
        return any(len(row) > 1 for row in self.lengths)

    @property
    def alike(self) -> bool:
        """Whether all rows have their sequences at the same places."""
        return len(set(self.lengths)) == 1

    def places(self) -> mx.array:
        """(rows, tokens) int32; one row for all where they are alike."""
        rows = self.lengths[:1] if self.alike else self.lengths
        return mx.array(
            np.stack([np.concatenate([np.arange(n, dtype=np.int32) for n in row]) for row in rows])
            + np.int32(self)
        )


def install(model: nn.Module) -> None:
    """Let every rotary layer of the model know `Positions`; what it computes stays the same."""
    subclasses: dict[type, type] = {}
    for _, module in model.named_modules():
        kind = type(module)
        if isinstance(module, _Placed) or not _is_rotary(kind):
            continue
        if kind not in subclasses:
            subclasses[kind] = type(kind.__name__, (_Placed, kind), {"__module__": kind.__module__})
        module.__class__ = subclasses[kind]
        module._signature = _signature(module) if backend.on_cpu() else None


def _is_rotary(kind: type) -> bool:
    name = kind.__name__.lower()
    return issubclass(kind, nn.Module) and ("rope" in name or "rotary" in name)


class _Placed:
    """What `install` puts before a rotary layer's own class."""

    dims: int
    _signature: bytes | None

    def __call__(self, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        own: Any = super().__call__  # type: ignore[misc]
        offset = kwargs.get("offset", args[0] if args else 0)
        simple = len(args) + len(kwargs) == 1 and ("offset" in kwargs or args)
        if not isinstance(offset, Positions) or not simple:
            return own(x, *args, **kwargs)
        if self._signature is not None and x.dtype == mx.float32 and offset.alike:
            if self._signature not in offset.tables:
                places = offset.places()[0]
                table = _table(own, self.dims, x.shape[-1], places)
                offset.tables[self._signature] = table
            return offset.tables[self._signature].turn(x)
        if not offset.packed:
            return own(x, offset=int(offset))
        # A token of its own place each, as a batch of rows of one token.
        batch, heads, tokens, dims = x.shape
        places = mx.broadcast_to(offset.places(), (batch, tokens)).reshape(-1)
        single = x.swapaxes(1, 2).reshape(batch * tokens, heads, 1, dims)
        return own(single, offset=places).reshape(batch, tokens, heads, dims).swapaxes(1, 2)


def _signature(module: Any) -> bytes | None:
    """What tells layers of different tables apart; None where a table is not what it applies."""
    own = super(_Placed, module).__call__
    width = getattr(module, "dims", None)
    if not isinstance(width, int) or width % 2:
        return None
    # Two more dimensions, which a layer has to leave alone, as one of partial rotation does.
    x = mx.random.normal((1, 1, 1, width + 2), key=mx.random.key(0))
    seen = []
    try:
        for place in _PROBED_AT:
            table = _table(own, width, width + 2, mx.array([place]))
            if not np.asarray(mx.abs(table.turn(x) - own(x, offset=place)).max()) <= _TOLERANCE:
                return None
            seen.append(np.asarray(table.cosines).tobytes() + np.asarray(table.sines).tobytes())
    # Whatever a layer of unknown make raises, its own code is there.
    except Exception:
        return None
    return b"".join(seen)


@dataclass(frozen=True)
class _Table:
    """(tokens, width) float32: what x, and x with its rotated halves swapped, are multiplied by."""

    cosines: mx.array
    sines: mx.array
    half: int

    def turn(self, x: mx.array) -> mx.array:
        """x (..., tokens, width), rotated."""
        if host.active():
            return host_layers.turn(x, self.cosines, self.sines, self.half)
        turned: mx.array = _operation(self.half)(x, self.cosines, self.sines)
        return turned


def _table(own: Any, dims: int, width: int, places: mx.array) -> _Table:
    """A layer's cosines and sines: the images of a unit vector in each plane of dimensions."""
    half = dims // 2
    unit = mx.concatenate([mx.ones((half,)), mx.zeros((width - half,))])
    image = own(mx.broadcast_to(unit, (places.size, 1, 1, width)), offset=places)[:, 0, 0]
    cosines, sines = image[:, :half], image[:, half:dims]
    rest = (places.size, width - dims)
    return _Table(
        mx.concatenate([cosines, cosines, mx.ones(rest)], axis=1),
        mx.concatenate([-sines, sines, mx.zeros(rest)], axis=1),
        half,
    )


@functools.cache
def _operation(half: int) -> Any:
    def forward(x: mx.array, cosines: mx.array, sines: mx.array) -> mx.array:
        parts = [x[..., half : 2 * half], x[..., :half], x[..., 2 * half :]]
        swapped = mx.concatenate(parts[: 2 + (x.shape[-1] > 2 * half)], axis=-1)
        return x * cosines + swapped * sines

    def backward(primals: Any, cotangent: mx.array, _: Any) -> Any:
        # The transposed rotation turns back; a scale in the tables is the same both ways.
        _, cosines, sines = primals
        back = forward(cotangent, cosines, -sines)
        return back, mx.zeros_like(cosines), mx.zeros_like(sines)

    return on_one_stream(forward, backward)
