"""One optimizer step: loss = sum of weighted NLL / sum of weights, over all of its rows."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.optimizers import AdamW
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from mlx_itune.kit.errors import DivergedError
from mlx_itune.model import backend, lora
from mlx_itune.model.loss import Nll, choose_nll
from mlx_itune.training.microbatch import Example, MicroBatch, split

_SKIPS_ALLOWED = 5
_MAX_LANES = 8
T = TypeVar("T")


@dataclass(frozen=True)
class StepMetrics:
    """What one step did. `loss` is NaN and `skipped` true when the update was not made."""

    loss: float
    weight: float
    supervised_tokens: int
    tokens: int
    gradient_norm: float
    skipped: bool


class Lanes:
    """Micro-batches side by side: one CPU core each, or one after the other on a GPU.

    MLX runs a CPU stream's elementwise work on one core; only several streams use several.
    """

    def __init__(self, count: int | None = None) -> None:
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        parallel = backend.prepare().blas is not None
        self.count = count or (min(cpus, _MAX_LANES) if parallel else 1)
        self._lock = threading.Lock()
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(self.count) if self.count > 1 else None
        # Once, not around each call: OpenBLAS threads that have had work spin for a while.
        if self._pool is not None:
            backend.blas_threads(1)

    def map(self, build: Callable[[MicroBatch], T], batches: Sequence[MicroBatch]) -> list[T]:
        """`build` a graph for each batch and evaluate it; results in the batches' order.

        Graphs are built one at a time, as building touches the model; they are evaluated at once.
        """
        if self._pool is None or len(batches) == 1:
            return [_evaluated(build(batch)) for batch in batches]
        return list(self._pool.map(lambda batch: self._run(build, batch), batches))

    def close(self) -> None:
        """End the threads, and let BLAS use its own again."""
        if self._pool is not None:
            self._pool.shutdown()
            backend.blas_threads(self.count)

    def _run(self, build: Callable[[MicroBatch], T], batch: MicroBatch) -> T:
        if not hasattr(self._local, "stream"):
            self._local.stream = mx.new_stream(mx.default_device())
        with mx.stream(self._local.stream):
            with self._lock:
                result = build(batch)
            return _evaluated(result)


class Learner:
    """An adapted model with its optimizer."""

    def __init__(
        self,
        model: nn.Module,
        *,
        weight_decay: float = 0.0,
        clip_norm: float = 1.0,
        micro_batch_tokens: int = 4096,
        lanes: Lanes | None = None,
        nll: Nll | None = None,
    ) -> None:
        self.model = model
        self.optimizer = AdamW(learning_rate=0.0, weight_decay=weight_decay, bias_correction=True)
        self.optimizer.init(model.trainable_parameters())
        self.nll = nll or choose_nll(model)
        self.lanes = lanes or Lanes()
        self._clip_norm = clip_norm
        self._micro_batch_tokens = micro_batch_tokens
        self._skipped_in_a_row = 0

    def step(
        self, examples: Sequence[Example], learning_rate: float, *, dropout_key: Any = None
    ) -> StepMetrics:
        """Learn from all `examples` at once. Raises DivergedError after 5 skipped in a row."""
        self.model.train()
        batches = self._split(examples)
        loss, weight, gradients = self.gradients(batches, dropout_key=dropout_key)
        squares = mx.stack([mx.square(g).sum() for _, g in tree_flatten(gradients)])
        norm = _number(mx.sqrt(squares.sum()))
        good = bool(np.isfinite(loss) and np.isfinite(norm))
        if good:
            self._update(gradients, norm, learning_rate)
        self._skipped_in_a_row = 0 if good else self._skipped_in_a_row + 1
        if self._skipped_in_a_row == _SKIPS_ALLOWED:
            raise DivergedError(
                f"loss or gradient was not finite in {_SKIPS_ALLOWED} steps in a row",
                hint="lower --learning-rate; the last checkpoint is good",
            )
        supervised = sum(int(np.count_nonzero(example.weights[1:])) for example in examples)
        tokens = sum(len(example.input_ids) for example in examples)
        return StepMetrics(loss, weight, supervised, tokens, norm, not good)

    def gradients(
        self, batches: Sequence[MicroBatch], *, dropout_key: Any = None
    ) -> tuple[float, float, dict[str, Any]]:
        """Loss, sum of weights and the gradient of the loss over all batches together."""
        weight = float(sum(batch.weights[:, 1:].sum(dtype=np.float64) for batch in batches))
        parameters = self.model.trainable_parameters()
        keys: dict[int, Any] = {}
        if dropout_key is not None:
            split_keys = mx.random.split(dropout_key, len(batches))
            keys = {id(batch): split_keys[index] for index, batch in enumerate(batches)}

        def loss_and_gradient(batch: MicroBatch) -> tuple[Any, Any]:
            def loss(values: dict[str, Any]) -> Any:
                self.model.update(values)
                return self.nll(self.model, batch.input_ids, batch.weights)[0] / weight

            lora.set_dropout_key(self.model, keys.get(id(batch)))
            return mx.value_and_grad(loss)(parameters)

        try:
            results = self.lanes.map(loss_and_gradient, batches)
        finally:
            # Differentiating leaves the traced arrays in the model's place of its parameters.
            self.model.update(parameters)
            lora.set_dropout_key(self.model, None)
        gradient = results[0][1]
        for _, more in results[1:]:
            gradient = tree_map(mx.add, gradient, more)
        return sum(_number(value) for value, _ in results), weight, gradient

    def evaluate(self, examples: Sequence[Example]) -> float:
        """The loss on all examples; no dropout, nothing learned."""
        self.model.eval()
        batches = self._split(examples)
        sums = self.lanes.map(
            lambda batch: self.nll(self.model, batch.input_ids, batch.weights), batches
        )
        total = sum(_number(nll) for nll, _ in sums)
        weight = sum(_number(weights) for _, weights in sums)
        return total / weight if weight else float("nan")

    def _split(self, examples: Sequence[Example]) -> list[MicroBatch]:
        return split(examples, self._micro_batch_tokens, self.lanes.count)

    def _update(self, gradients: dict[str, Any], norm: float, learning_rate: float) -> None:
        if self._clip_norm and norm > self._clip_norm:
            factor = self._clip_norm / norm
            gradients = tree_map(lambda gradient: gradient * factor, gradients)
        self.optimizer.learning_rate = learning_rate
        self.optimizer.update(self.model, gradients)
        mx.eval(self.model.trainable_parameters(), self.optimizer.state)


def optimizer_arrays(optimizer: AdamW) -> dict[str, Any]:
    """The optimizer's state by name."""
    return dict(tree_flatten(optimizer.state))


def restore_optimizer(optimizer: AdamW, arrays: dict[str, Any]) -> None:
    """Put back what `optimizer_arrays` gave."""
    optimizer.state = tree_unflatten(list(arrays.items()))


def _number(scalar: Any) -> float:
    return float(scalar.item())


def _evaluated(result: T) -> T:
    mx.eval(result)
    return result
