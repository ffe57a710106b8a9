"""A model's weights as floats, a piece of a tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_itune.export.stored import stored_tensors
from mlx_itune.kit.errors import ModelError
from mlx_itune.model.loading import base

# A piece of a matrix in float32; MLX holds two or three of them at once.
_PIECE_BYTES = 8 << 20


class FloatSource:
    """The parameters of a model directory, dequantized and merged as they are read.

    shapes: of each parameter by mlx-lm's name, unpacked. dtype: the type that most floats have.
    scaled: whether any layer scales its rotary positions, as some modules of mlx-lm ignore what
    config.json says. What `deltas[path]` makes, (..., out, in) float32, is added to the weight of
    the layer at `path`; it is made when that is read. What `release` was told of is out of memory
    again.
    """

    def __init__(self, path: Path, deltas: Mapping[str, Callable[[], Any]] | None = None) -> None:
        model, self.config = base.read(path)
        self.path = path
        self.settings: dict[str, Any] = dict(vars(model.args))
        self.scaled = _scaled(model)
        self.dtype = _float_type(model)
        self._stored = stored_tensors(model)
        self._deltas = {f"{name}.weight": delta for name, delta in (deltas or {}).items()}
        self._delta: tuple[str, Any] = ("", None)
        if any(name.endswith(".global_scale") for name in self._stored):
            raise ModelError("weights with a global scale cannot be exported", where=str(path))
        self.shapes = {name: stored.shape for name, stored in self._stored.items()}
        lost = sorted(self._deltas.keys() - self.shapes.keys())
        if lost:
            raise ModelError(f"the model has no layer {lost[0][:-7]}", where=str(path))

    def pieces(self, name: str, expert: int | None = None) -> Iterator[Any]:
        """A parameter, or one expert of it, as float32 NumPy arrays, some rows at a time.

        Raises ModelError for NaN or infinity.
        """
        shape = self.shapes[name] if expert is None else self.shapes[name][1:]
        for rows in _rows(shape):
            piece = np.asarray(self._float(name, expert, rows))
            # NumPy's is some thirty times as fast as MLX's on a CPU.
            if not np.isfinite(piece).all():
                raise ModelError(f"{name} holds NaN or infinity", where=str(self.path))
            yield piece

    def release(self, name: str) -> None:
        """Let a parameter's memory go; it cannot be read again."""
        self._stored.pop(name)
        self._deltas.pop(name, None)
        self._delta = ("", None)

    def _float(self, name: str, expert: int | None, rows: slice) -> Any:
        stored = self._stored[name]
        if expert is not None:
            stored = stored.rows(expert)
        piece = stored.rows(rows).floats()
        if name not in self._deltas:
            return piece
        if self._delta[0] != name:
            self._delta = (name, self._deltas[name]())
        delta = self._delta[1] if expert is None else self._delta[1][expert]
        return piece + delta[rows]


def _float_type(model: nn.Module) -> str:
    """The float type most of the weights have, or that their scales have."""
    sizes: dict[str, int] = {}
    for _, tensor in tree_flatten(model.parameters()):
        if mx.issubdtype(tensor.dtype, mx.floating):
            kind = str(tensor.dtype).rpartition(".")[2]
            sizes[kind] = sizes.get(kind, 0) + tensor.size
    # The scales of mxfp4 and nvfp4 are bytes; their products are bfloat16.
    return max(sizes, key=lambda kind: sizes[kind]) if sizes else "bfloat16"


def _scaled(model: nn.Module) -> bool:
    rotary = [m for _, m in model.named_modules() if "rope" in type(m).__name__.lower()]
    return any(type(m) is not nn.RoPE or m.scale != 1 for m in rotary)


def _rows(shape: tuple[int, ...]) -> list[slice]:
    """Slices over the first axis, of a bounded size each."""
    count = shape[0] if shape else 1
    step = max(1, _PIECE_BYTES // max(4 * math.prod(shape[1:]), 1))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]
