"""The gradient of a step, micro-batch by micro-batch; what they share is differentiated once.

A prefix runs first and its keys and values are set down. Each micro-batch behind it gives a
gradient with respect to these too, and the sums of those go back through the prefix's own pass,
which was kept for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_itune.model.adapters import lora
from mlx_itune.model.engine.training_caches import KeysValues
from mlx_itune.training.engine.lanes import Lanes
from mlx_itune.training.engine.microbatch import MicroBatch, Prefix, by_prefix
from mlx_itune.training.engine.step_ways import Paths

Tree = dict[str, Any]
# A share of the step's loss, and its gradient with respect to the parameters.
Result = tuple[mx.array, Tree]


def recorded_prefix(
    model: nn.Module, paths: Paths, lanes: Lanes, prefix: Prefix
) -> tuple[float, float, KeysValues]:
    """Its weighted loss, its weight, and its keys and values; nothing to differentiate."""
    nll, weight, kept = paths.prefix_sums(model, prefix, lanes.streams())
    mx.eval(kept, nll, weight)
    sums: list[Any] = [nll.item(), weight.item()]
    return float(sums[0]), float(sums[1]), kept


@dataclass(frozen=True)
class Work:
    """One step's work. weight: what the sums are divided by; keys: of dropout, by part's id."""

    model: nn.Module
    paths: Paths
    lanes: Lanes
    parameters: Tree
    weight: float
    keys: dict[int, Any]

    def results(self, batches: Sequence[MicroBatch]) -> Iterator[Result]:
        """One for each micro-batch and each prefix, in an order that is always the same."""
        for group in by_prefix(batches):
            prefix = group[0].prefix
            if prefix is None and len(group) == 1 and self._divides(group[0]):
                yield self._in_parts(group[0])
            elif prefix is None:
                for batches_of_one_round in self.paths.rounds(group):
                    yield from self.lanes.each(self._alone, batches_of_one_round)
            elif len(group) == 1:
                yield from self.lanes.each(self._together, group)
            else:
                yield from self._behind(prefix, group)

    def _alone(self, batch: MicroBatch) -> Result:
        return self._differentiated(lambda: self._loss(batch))

    def _divides(self, batch: MicroBatch) -> bool:
        return len(self._streams()) > 1 and self.paths.divides(batch)

    def _in_parts(self, batch: MicroBatch) -> Result:
        """A row that nothing can be computed beside, cut in parts that are."""
        row = Prefix(batch.input_ids, batch.weights)

        def of(values: Tree) -> tuple[mx.array, KeysValues]:
            self.model.update(values)
            return self._prefix_loss(row, self._streams())

        (value, kept), gradient = mx.value_and_grad(of)(self.parameters)
        mx.eval(kept, value)
        _evaluated_backwards(gradient)
        return value, gradient

    def _streams(self) -> Sequence[Any]:
        """For parts side by side; none with dropout, which every part would draw alike."""
        return () if self.keys else self.lanes.streams()

    def _together(self, batch: MicroBatch) -> Result:
        """A micro-batch and its prefix, in one graph."""
        prefix = batch.prefix
        assert prefix is not None

        def loss() -> mx.array:
            first, kept = self._prefix_loss(prefix)
            return first + self._loss(batch, kept)

        return self._differentiated(loss)

    def _behind(self, prefix: Prefix, batches: Sequence[MicroBatch]) -> Iterator[Result]:
        cotangents: list[mx.array] = []

        def ahead(values: Tree) -> tuple[mx.array, mx.array, KeysValues]:
            self.model.update(values)
            loss, kept = self._prefix_loss(prefix, self._streams())
            arrays = [array for pair in kept for array in pair]
            cotangents[:] = [mx.zeros(array.shape) for array in arrays]
            carried = [
                (array.astype(mx.float32) * cotangent).sum()
                for array, cotangent in zip(arrays, cotangents, strict=True)
            ]
            return loss + sum(carried, mx.array(0.0)), loss, kept

        # The graph of the backward pass is there before its cotangents are known: they are zeros
        # whose memory is written to, before anything that reads them is evaluated. So the pass is
        # made once, and of its arrays those stay that the backward pass needs.
        (_, loss, kept), gradient = mx.value_and_grad(ahead)(self.parameters)
        mx.eval(kept, loss, cotangents)
        total: list[mx.array] | None = None
        for value, (more, pairs) in self.lanes.each(lambda b: self._given(b, kept), batches):
            arrays = [array for pair in pairs for array in pair]
            total = arrays if total is None else [a + b for a, b in zip(total, arrays, strict=True)]
            mx.eval(total)
            yield value, more
        for cotangent, array in zip(cotangents, total or [], strict=True):
            np.asarray(cotangent)[...] = np.asarray(array.astype(mx.float32))
        _evaluated_backwards(gradient)
        yield loss, gradient

    def _given(self, batch: MicroBatch, kept: KeysValues) -> tuple[mx.array, Any]:
        """A micro-batch's gradients with respect to the parameters, and to keys and values."""

        def loss(values: Tree, pairs: KeysValues) -> mx.array:
            self.model.update(values)
            return self._loss(batch, pairs)

        value, gradients = mx.value_and_grad(loss, argnums=(0, 1))(self.parameters, kept)
        return value, gradients

    def _differentiated(self, loss: Any) -> Result:
        def of(values: Tree) -> mx.array:
            self.model.update(values)
            value: mx.array = loss()
            return value

        value, gradient = mx.value_and_grad(of)(self.parameters)
        return value, gradient

    def _loss(self, batch: MicroBatch, kept: KeysValues | None = None) -> mx.array:
        self._draw(batch)
        return self.paths.sums(self.model, batch, kept)[0] / self.weight

    def _prefix_loss(
        self, prefix: Prefix, streams: Sequence[Any] = ()
    ) -> tuple[mx.array, KeysValues]:
        self._draw(prefix)
        nll, _, kept = self.paths.prefix_sums(self.model, prefix, streams)
        return nll / self.weight, kept

    def _draw(self, part: MicroBatch | Prefix) -> None:
        if self.keys:
            lora.set_dropout_key(self.model, self.keys[id(part)])


def _evaluated_backwards(gradient: Tree) -> None:
    """From the last layer back, so that all parts of a row proceed side by side."""
    mx.eval([array for _, array in reversed(tree_flatten(gradient))])
