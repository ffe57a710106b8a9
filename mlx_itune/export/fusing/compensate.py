"""Rounding a weight to its grid so that the layer's output changes least, not the weight. GPTQ
(Frantar et al., 2210.17323, section 3.3) rounds one input column after the other and lets the
columns still to come make up for each error, as the inputs' second moments H say they can."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mlx_itune.dataset.rendering.render import TokenizedExample
from mlx_itune.model.adapters.grid import GridNorm
from mlx_itune.model.adapters.lowrank import matrix_shape

Numbers = NDArray[np.float32]

# What the moments of all layers of one pass may take; more layers, more passes.
BUDGET_BYTES = 2 << 30
# Rows are taken until they hold so many tokens.
ENOUGH_TOKENS = 1 << 14
# Added to H's diagonal, as a share of its mean: directions that hardly an input has stay free. The
# fewer the inputs for a matrix of that width, the less is concluded from them.
_DAMPING, _DAMPING_PER_WIDTH = 0.01, 0.1
_PACKED_ROWS = 512


def compensated(
    weight: Any, factor: Numbers, *, group_size: int, bits: int, dtype: Any
) -> dict[str, Any]:
    """Round ``weight`` (out, in) float32 for inputs whose moments have this :func:`factor`. As MLX
    stores it: weight (out, words) uint32, scales and biases (out, groups) of ``dtype``."""

    def sayable(numbers: Any) -> Numbers:
        return np.array(numbers[:, 0].astype(dtype).astype(mx.float32))

    left: Numbers = np.array(weight, dtype=np.float32).T.copy()
    codes = np.empty_like(left)
    scales, biases = [], []
    for start in range(0, len(left), group_size):
        stop = start + group_size
        group = left[start:stop]
        _, s, b = mx.quantize(mx.array(np.ascontiguousarray(group.T)), group_size, bits)
        scale, bias = sayable(s), sayable(b)
        divisor = np.where(scale == 0, np.float32(1), scale)
        errors = np.empty_like(group)
        for k, column in enumerate(group):
            j = start + k
            codes[j] = np.clip(np.rint((column - bias) / divisor), 0, 2**bits - 1)
            errors[k] = (column - (scale * codes[j] + bias)) / factor[j, j]
            group[k + 1 :] -= factor[j, j + 1 : stop, None] * errors[k]
        left[stop:] -= factor[start:stop, stop:].T @ errors
        scales.append(scale)
        biases.append(bias)
    return {
        "weight": pack(codes.T, bits),
        "scales": mx.array(np.stack(scales, axis=1)).astype(dtype),
        "biases": mx.array(np.stack(biases, axis=1)).astype(dtype),
    }


def factor(moments: Numbers, count: int) -> Numbers:
    """U, upper triangular, of H^-1 = U^T U: row j says how column j's error is made up for. H is
    ``moments`` (in, in), the sum of x x^T over ``count`` inputs x, with something on its diagonal;
    a column that never had an input gets the mean, and is rounded by itself."""
    diagonal = np.diag(moments)
    mean = float(diagonal.mean()) or 1.0
    share = max(_DAMPING, _DAMPING_PER_WIDTH * len(moments) / max(count, 1))
    damped = moments.astype(np.float64)
    damped[np.diag_indices_from(damped)] += mean * np.where(diagonal > 0, share, 1)
    lower = np.linalg.cholesky(np.linalg.inv(damped))
    return np.asarray(lower.T, dtype=np.float32)


def pack(codes: NDArray[Any], bits: int) -> Any:
    """Codes (out, in) packed as MLX does: little-endian strings of bits, (out, words) uint32."""
    parts = []
    for start in range(0, len(codes), _PACKED_ROWS):
        rows = np.ascontiguousarray(codes[start : start + _PACKED_ROWS], dtype=np.uint8)
        strings = np.unpackbits(rows[..., None], axis=-1, bitorder="little")[..., :bits]
        packed = np.packbits(strings.reshape(len(rows), -1), axis=-1, bitorder="little")
        parts.append(packed.view(np.uint32))
    return mx.array(np.concatenate(parts))


@dataclass
class Moments:
    """The sum of x x^T over the inputs x of a layer, and how many there were. total (in, in) and
    count (1,) of a linear layer; (experts, in, in), (experts,) of experts."""

    total: Any
    count: Any
    _factor: Numbers | None = None

    def factor(self, expert: int | None = None) -> Numbers:
        """What ``compensated`` rounds by: (in, in) float32; of a linear layer computed once."""
        if expert is not None:
            return factor(self.total[expert], int(self.count[expert]))
        if self._factor is None:
            self._factor = factor(np.array(self.total), int(self.count[0]))
            # The sum itself is not needed again.
            self.total = mx.zeros((1, 1))
        return self._factor


class Calibration:
    """The moments of an adapted model's layers on ``rows``, path by path. Token tables have none;
    nor has a layer whose moments alone are beyond ``budget_bytes``."""

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        rows: Sequence[TokenizedExample],
        *,
        budget_bytes: int = BUDGET_BYTES,
    ) -> None:
        self._model = model
        ends = np.cumsum([len(row.input_ids) for row in rows])
        self.rows = rows[: int(np.searchsorted(ends, ENOUGH_TOKENS)) + 1]
        self._batches = _batches(layers, budget_bytes)
        self._kept: list[tuple[str, Moments]] | None = None

    def moments(self) -> Iterator[tuple[str, Moments]]:
        """Takes as many passes over the rows as memory asks for; one pass is made only once."""
        if len(self._batches) == 1:
            if self._kept is None:
                self._kept = list(self._watch(self._batches[0]))
            yield from self._kept
            return
        for batch in self._batches:
            yield from self._watch(batch)

    def _watch(self, batch: Mapping[str, nn.Module]) -> Iterator[tuple[str, Moments]]:
        seen = _Pass()
        with _watched(batch, seen):
            for row in self.rows:
                seen.last = "", ()
                # Its logits are never computed: nothing asks for them.
                self._model(mx.array(row.input_ids[None]))
                mx.eval([m.total for m in seen.found.values() if isinstance(m.total, mx.array)])
        for path in batch:
            source = seen.shared.get(path, path)
            if source in seen.found:
                yield path, seen.found[source]


def _batches(layers: Mapping[str, nn.Module], budget_bytes: int) -> list[dict[str, nn.Module]]:
    batches: list[dict[str, nn.Module]] = []
    filled_bytes = 0
    for path, layer in layers.items():
        if hasattr(layer, "as_linear") or isinstance(layer, GridNorm):
            continue
        base = layer.get("linear", layer)
        needed_bytes = 4 * getattr(base, "num_experts", 1) * matrix_shape(base)[1] ** 2
        if needed_bytes > budget_bytes:
            continue
        if not batches or filled_bytes + needed_bytes > budget_bytes:
            batches.append({})
            filled_bytes = 0
        batches[-1][path] = layer
        filled_bytes += needed_bytes
    return batches


@dataclass
class _Pass:
    """Layers that are watched together; those that are given the very same arrays share."""

    found: dict[str, Moments] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    last: tuple[str, tuple[Any, ...]] = "", ()

    def saw(self, path: str, given: tuple[Any, ...], layer: nn.Module) -> None:
        """Add the inputs of one call; of experts, which of them gets which is given too."""
        name, before = self.last
        if len(given) == len(before) and all(map(operator.is_, given, before)):
            self.shared[path] = name
            return
        self.last = (path, given)
        self.shared.pop(path, None)
        if len(given) == 1:
            x = given[0].reshape(-1, given[0].shape[-1]).astype(mx.float32)
            kept = self.found.setdefault(path, Moments(mx.array(0.0), mx.array([0])))
            kept.total, kept.count = kept.total + x.T @ x, kept.count + x.shape[0]
        else:
            self._saw_experts(path, *given, experts=layer.num_experts)

    def _saw_experts(self, path: str, x: Any, indices: Any, *, experts: int) -> None:
        width = x.shape[-1]
        batch = np.broadcast_shapes(x.shape[:-2], indices.shape)
        flat = mx.broadcast_to(x, (*batch, *x.shape[-2:])).astype(mx.float32)
        inputs = np.array(flat).reshape(-1, x.shape[-2], width)
        chosen = np.broadcast_to(np.array(indices), batch).reshape(-1)
        if path not in self.found:
            empty = np.zeros((experts, width, width), np.float32), np.zeros(experts, np.int64)
            self.found[path] = Moments(*empty)
        kept = self.found[path]
        for expert in np.unique(chosen):
            rows = inputs[chosen == expert].reshape(-1, width)
            kept.total[expert] += rows.T @ rows
            kept.count[expert] += len(rows)


@contextmanager
def _watched(layers: Mapping[str, nn.Module], seen: _Pass) -> Iterator[None]:
    """Let these instances, and no others of their classes, record what they are called with."""

    def recording(path: str, kind: type) -> type:
        def recorded(self: nn.Module, *given: Any, **options: Any) -> Any:
            seen.saw(path, given[:2], self)
            return kind.__call__(self, *given, **options)

        return type(kind.__name__, (kind,), {"__call__": recorded, "__module__": kind.__module__})

    kinds = {path: type(layer) for path, layer in layers.items()}
    try:
        for path, layer in layers.items():
            layer.__class__ = recording(path, kinds[path])
        yield
    finally:
        for path, layer in layers.items():
            layer.__class__ = kinds[path]
