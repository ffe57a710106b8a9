"""A model's weights as floats, a piece of a tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_itune.kit.errors import ModelError
from mlx_itune.model.loading import mlx_lm_models as stock

# A piece of a matrix in float32; MLX holds two or three of them at once.
_PIECE_BYTES = 8 << 20


class FloatSource:
    """The parameters of a model directory, dequantized and merged as they are read.

    shapes: of each parameter by mlx-lm's name, unpacked. scaled: whether any layer scales its
    rotary positions, as some modules of mlx-lm ignore what config.json says. What `deltas[path]`
    makes, (..., out, in) float32, is added to the weight of the layer at `path`; it is made when
    that is read. What `release` was told of is out of memory again.
    """

    def __init__(self, path: Path, deltas: Mapping[str, Callable[[], Any]] | None = None) -> None:
        model, self.config = stock.read(path)
        self.path = path
        self.settings: dict[str, Any] = dict(vars(model.args))
        self.scaled = _scaled(model)
        self._tensors: dict[str, Any] = dict(tree_flatten(model.parameters()))
        self._grids = {
            name: {"group_size": m.group_size, "bits": m.bits, "mode": m.mode}
            for name, m in model.named_modules()
            if hasattr(m, "bits")
        }
        self._deltas = {f"{name}.weight": delta for name, delta in (deltas or {}).items()}
        self._delta: tuple[str, Any] = ("", None)
        if any(name.endswith(".global_scale") for name in self._tensors):
            raise ModelError("weights with a global scale cannot be exported", where=str(path))
        parts = {f"{name}.{part}" for name in self._grids for part in ("scales", "biases")}
        self.shapes = {name: self._shape(name) for name in self._tensors if name not in parts}
        lost = sorted(self._deltas.keys() - self.shapes.keys())
        if lost:
            raise ModelError(f"the model has no layer {lost[0][:-7]}", where=str(path))

    @property
    def dtype(self) -> str:
        """The float type most of the weights have, or that their scales have."""
        sizes: dict[str, int] = {}
        for tensor in self._tensors.values():
            if mx.issubdtype(tensor.dtype, mx.floating):
                kind = str(tensor.dtype).rpartition(".")[2]
                sizes[kind] = sizes.get(kind, 0) + tensor.size
        # The scales of mxfp4 and nvfp4 are bytes; their products are bfloat16.
        return max(sizes, key=lambda kind: sizes[kind]) if sizes else "bfloat16"

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
        layer = name.removesuffix(".weight")
        for part in (name, f"{layer}.scales", f"{layer}.biases"):
            self._tensors.pop(part, None)
        self._deltas.pop(name, None)
        self._delta = ("", None)

    def _shape(self, name: str) -> tuple[int, ...]:
        layer, shape = name.removesuffix(".weight"), tuple(self._tensors[name].shape)
        if layer == name or layer not in self._grids:
            return shape
        groups = self._tensors[f"{layer}.scales"].shape[-1]
        return (*shape[:-1], groups * self._grids[layer]["group_size"])

    def _float(self, name: str, expert: int | None, rows: slice) -> Any:
        def part(array: Any) -> Any:
            return (array if expert is None else array[expert])[rows]

        layer = name.removesuffix(".weight")
        if layer != name and layer in self._grids:
            scales, biases = self._tensors[f"{layer}.scales"], self._tensors.get(f"{layer}.biases")
            if mx.issubdtype(scales.dtype, mx.floating):
                scales = part(scales).astype(mx.float32)
                biases = None if biases is None else part(biases).astype(mx.float32)
            else:
                scales = part(scales)
            piece = mx.dequantize(
                part(self._tensors[name]), scales, biases, **self._grids[layer]
            ).astype(mx.float32)
        else:
            piece = part(self._tensors[name]).astype(mx.float32)
        if name not in self._deltas:
            return piece
        if self._delta[0] != name:
            self._delta = (name, self._deltas[name]())
        return piece + part(self._delta[1])


def _scaled(model: nn.Module) -> bool:
    rotary = [m for _, m in model.named_modules() if "rope" in type(m).__name__.lower()]
    return any(type(m) is not nn.RoPE or m.scale != 1 for m in rotary)


def _rows(shape: tuple[int, ...]) -> list[slice]:
    """Slices over the first axis, of a bounded size each."""
    count = shape[0] if shape else 1
    row_bytes = 4
    for size in shape[1:]:
        row_bytes *= size
    step = max(1, _PIECE_BYTES // max(row_bytes, 1))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]
