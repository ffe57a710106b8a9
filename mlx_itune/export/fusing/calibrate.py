"""What a layer's inputs look like: their second moments, on rows that nothing is measured on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mlx_itune.dataset.rendering.render import TokenizedExample
from mlx_itune.export.fusing.compensate import factor
from mlx_itune.model.adapters.grid_norm import GridNorm
from mlx_itune.model.adapters.lowrank import matrix_shape

Numbers = NDArray[np.float32]

# What the moments of all layers of one pass may take; more layers, more passes.
BUDGET_BYTES = 2 << 30
# Rows are taken until they hold so many tokens.
ENOUGH_TOKENS = 1 << 14


@dataclass
class Moments:
    """The sum of x x^T over the inputs x of a layer, and how many there were.

    total (in, in) and count (1,) of a linear layer; (experts, in, in), (experts,) of experts.
    """

    total: Any
    count: Any
    _factor: Numbers | None = None

    def factor(self, expert: int = 0) -> Numbers:
        """What ``compensate.compensated`` rounds by: (in, in) float32."""
        if self.total.ndim == 3:
            return factor(self.total[expert], int(self.count[expert]))
        if self._factor is None:
            self._factor = factor(np.array(self.total), int(self.count[0]))
            # The sum itself is not needed again.
            self.total = mx.zeros((1, 1))
        return self._factor


@dataclass
class _Pass:
    """Layers that are watched together; those that are given the very same arrays share."""

    found: dict[str, Moments] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    last: tuple[str, tuple[Any, ...]] | None = None

    def saw(self, path: str, given: tuple[Any, ...], layer: nn.Module) -> None:
        """Add the inputs of one call."""
        if self.last is not None and len(given) == len(self.last[1]):
            name, before = self.last
            if all(a is b for a, b in zip(given, before, strict=True)):
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


class Calibration:
    """The moments of an adapted model's layers on ``rows``, path by path.

    The model runs as it is; only its adapter's instances record, and none does afterwards. Token
    tables, which are looked up, have no moments; nor has a layer whose moments alone are beyond
    ``budget_bytes``.
    """

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
        self._rows = rows[: int(np.searchsorted(ends, ENOUGH_TOKENS)) + 1]
        self._layers = {
            p: layer
            for p, layer in layers.items()
            if not (hasattr(layer, "as_linear") or isinstance(layer, GridNorm))
        }
        self._batches = _batches(self._layers, budget_bytes)
        self._kept: list[tuple[str, Moments]] | None = None

    @property
    def rows(self) -> int:
        """How many rows the moments are those of."""
        return len(self._rows)

    def moments(self) -> Iterator[tuple[str, Moments]]:
        """Takes as many passes over the rows as memory asks for; one pass is made only once."""
        if len(self._batches) == 1:
            if self._kept is None:
                self._kept = list(self._watch(self._batches[0]))
            yield from self._kept
            return
        for batch in self._batches:
            yield from self._watch(batch)

    def _watch(self, batch: Sequence[str]) -> Iterator[tuple[str, Moments]]:
        seen = _Pass()
        with _watched({path: self._layers[path] for path in batch}, seen):
            for row in self._rows:
                seen.last = None
                # Its logits are never computed: nothing asks for them.
                self._model(mx.array(row.input_ids[None]))
                mx.eval([m.total for m in seen.found.values() if isinstance(m.total, mx.array)])
        for path in batch:
            source = seen.shared.get(path, path)
            if source in seen.found:
                yield path, seen.found[source]


def _batches(layers: Mapping[str, nn.Module], budget_bytes: int) -> list[list[str]]:
    """Paths whose moments fit the budget together."""
    batches: list[list[str]] = []
    filled_bytes = 0
    for path, layer in layers.items():
        base = layer.get("linear", layer)
        needed_bytes = 4 * getattr(base, "num_experts", 1) * matrix_shape(base)[1] ** 2
        if needed_bytes > budget_bytes:
            continue
        if not batches or filled_bytes + needed_bytes > budget_bytes:
            batches.append([])
            filled_bytes = 0
        batches[-1].append(path)
        filled_bytes += needed_bytes
    return batches


@contextmanager
def _watched(modules: Mapping[str, nn.Module], seen: _Pass) -> Iterator[None]:
    """Let these instances, and no others of their classes, record what they are called with."""
    kinds = {path: type(module) for path, module in modules.items()}
    try:
        for path, module in modules.items():
            module.__class__ = _recording(path, type(module), seen)
        yield
    finally:
        for path, module in modules.items():
            module.__class__ = kinds[path]


def _recording(path: str, kind: type, seen: _Pass) -> type:
    call = kind.__call__

    def recorded(self: nn.Module, *given: Any, **options: Any) -> Any:
        # Of an expert layer the second argument says which expert gets which row.
        seen.saw(path, given[:2], self)
        return call(self, *given, **options)

    return type(kind.__name__, (kind,), {"__call__": recorded, "__module__": kind.__module__})
