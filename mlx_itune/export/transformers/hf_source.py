"""A model's weights as floats, a piece of a tensor at a time."""

from __future__ import annotations

import math
from collections import Counter
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
    """The parameters of a model directory, dequantized and merged as they are read, each once.

    config: as on disk. settings: mlx-lm's, defaults filled in. shapes: of each parameter by
    mlx-lm's name, unpacked. dtype: the type that most floats have. scaled: whether any layer scales
    its rotary positions, as some modules of mlx-lm ignore what config.json says. What
    `deltas[path]` makes, (..., out, in) float32, is added to the weight of the layer at `path`.
    """

    def __init__(self, path: Path, deltas: Mapping[str, Callable[[], Any]] | None = None) -> None:
        model, _ = base.read(path)
        self.path = path
        self.config = base.vet(path)
        self.settings: dict[str, Any] = dict(vars(model.args))
        rotary = [m for _, m in model.named_modules() if "rope" in type(m).__name__.lower()]
        self.scaled = any(type(m) is not nn.RoPE or m.scale != 1 for m in rotary)
        self.dtype = _float_type(model)
        self._stored = stored_tensors(model)
        self._deltas = {f"{name}.weight": delta for name, delta in (deltas or {}).items()}
        self._made: dict[str, Any] = {}
        if any(name.endswith(".global_scale") for name in self._stored):
            raise ModelError("weights with a global scale cannot be exported", where=str(path))
        self.shapes = {name: stored.shape for name, stored in self._stored.items()}
        lost = sorted(self._deltas.keys() - self.shapes.keys())
        if lost:
            raise ModelError(f"the model has no layer {lost[0][:-7]}", where=str(path))

    def pieces(self, name: str, expert: int | None = None) -> Iterator[Any]:
        """A parameter, or one expert of it, as float32 NumPy arrays, some rows at a time.

        After it, or its last expert, the parameter's memory is free again. Raises ModelError for
        NaN or infinity.
        """
        stored = self._stored[name]
        if name in self._deltas and name not in self._made:
            self._made[name] = self._deltas[name]()
        delta = self._made.get(name)
        if expert is not None:
            stored, delta = stored.rows(expert), None if delta is None else delta[expert]
        count, *rest = stored.shape or (1,)
        step = max(1, _PIECE_BYTES // max(4 * math.prod(rest), 1))
        for start in range(0, count, step):
            rows = slice(start, min(start + step, count))
            floats = stored.rows(rows).floats()
            piece = np.asarray(floats if delta is None else floats + delta[rows])
            # NumPy's is some thirty times as fast as MLX's on a CPU.
            if not np.isfinite(piece).all():
                raise ModelError(f"{name} holds NaN or infinity", where=str(self.path))
            yield piece
        if expert is None or expert == self.shapes[name][0] - 1:
            self._stored.pop(name)
            self._made.pop(name, None)


def _float_type(model: nn.Module) -> str:
    """The float type most of the weights have, or that their scales have."""
    sizes: Counter[str] = Counter()
    for _, tensor in tree_flatten(model.parameters()):
        if mx.issubdtype(tensor.dtype, mx.floating):
            sizes[str(tensor.dtype).rpartition(".")[2]] += tensor.size
    # The scales of mxfp4 and nvfp4 are bytes; their products are bfloat16.
    return sizes.most_common(1)[0][0] if sizes else "bfloat16"
