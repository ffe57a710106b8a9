"""One optimizer step: loss = sum of weighted NLL / sum of weights, over all of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

from mlx_itune.kit.errors import DivergedError
from mlx_itune.model.adapters import lora
from mlx_itune.model.engine.loss import Nll
from mlx_itune.model.engine.probe import probe
from mlx_itune.training.engine import step_ways as paths
from mlx_itune.training.engine.gradients import Work, recorded_prefix
from mlx_itune.training.engine.lanes import Lanes
from mlx_itune.training.engine.microbatch import (
    Example,
    MicroBatch,
    arrange,
    by_prefix,
    prefixes_of,
)
from mlx_itune.training.engine.optimizers import Updater
from mlx_itune.training.engine.rank_choice import Ranks
from mlx_itune.training.settings import TrainSettings

__all__ = ["Lanes", "Learner", "StepMetrics"]

_SKIPS_ALLOWED = 5


@dataclass(frozen=True)
class StepMetrics:
    """What one step did. `loss` is NaN and `skipped` true when the update was not made."""

    loss: float
    weight: float
    supervised_tokens: int
    tokens: int
    gradient_norm: float
    skipped: bool


class Learner:
    """An adapted model with its optimizer, as the settings say.

    nll overrides how the head is computed. ranks: processes that each compute a part of every
    step. Raises UsageError.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TrainSettings,
        *,
        lanes: Lanes | None = None,
        nll: Nll | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.model = model
        self.ranks = ranks or Ranks()
        self.optimizer = Updater(model.trainable_parameters(), settings)
        self.lanes = lanes or Lanes()
        self._paths = paths.choose(model, probe(model), settings, self.lanes.count, nll)
        self._clip_norm = settings.clip_norm
        self._skipped_in_a_row = 0

    def paths(self) -> dict[str, str]:
        """How steps are computed, in words, with the reason where a faster way is not exact."""
        return dict(self._paths.words)

    def step(
        self, examples: Sequence[Example], learning_rate: float, *, dropout_key: Any = None
    ) -> StepMetrics:
        """Learn from all `examples` at once. Raises DivergedError after 5 skipped in a row."""
        self.model.train()
        weight = sum(float(example.weights[1:].sum(dtype=np.float64)) for example in examples)
        if dropout_key is not None and self.ranks.size > 1:
            dropout_key = mx.random.split(dropout_key, self.ranks.size)[self.ranks.index]
        loss, _, gradients = self.gradients(
            self.arranged(self._own(examples)), dropout_key=dropout_key, weight=weight
        )
        vectors = self.ranks.total(self.optimizer.gather(gradients))
        (loss,) = self.ranks.numbers(loss)
        norm = _number(self.optimizer.norm(vectors))
        good = bool(np.isfinite(loss) and np.isfinite(norm))
        if good:
            clipped = self._clip_norm and norm > self._clip_norm
            factor = self._clip_norm / norm if clipped else 1.0
            self.optimizer.apply(self.model, vectors, learning_rate, factor=factor)
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
        self,
        batches: Sequence[MicroBatch],
        *,
        dropout_key: Any = None,
        weight: float | None = None,
    ) -> tuple[float, float, dict[str, Any]]:
        """Loss, sum of weights and the gradient of the loss over all batches together.

        weight: what to divide by where the batches are not all of a step's.
        """
        self.model.train()
        parts: list[Any] = [*batches, *prefixes_of(batches)]
        if weight is None:
            weight = float(sum(part.weights[:, 1:].sum(dtype=np.float64) for part in parts))
        parameters = self.model.trainable_parameters()
        keys: dict[int, Any] = {}
        if dropout_key is not None:
            split_keys = [*mx.random.split(dropout_key, len(parts))]
            # Here and now: a lane's thread cannot evaluate what waits on this one's stream.
            mx.eval(split_keys)
            keys = {id(part): key for part, key in zip(parts, split_keys, strict=True)}
        work = Work(self.model, self._paths, self.lanes, parameters, weight, keys)
        loss, gradient = 0.0, None
        try:
            with lora.held_weights(self.model):
                for value, more in work.results(batches):
                    loss += _number(value)
                    gradient = more if gradient is None else tree_map(mx.add, gradient, more)
                    # At once: a lazy sum would keep every part.
                    mx.eval(gradient)
        finally:
            # Differentiating leaves the traced arrays in the model's place of its parameters.
            self.model.update(parameters)
            if keys:
                lora.set_dropout_key(self.model, None)
        if gradient is None:
            # Another process may have all there is to learn.
            return 0.0 if weight else float("nan"), weight, tree_map(mx.zeros_like, parameters)
        return loss, weight, gradient

    def evaluate(self, examples: Sequence[Example]) -> float:
        """The loss on all examples; no dropout, nothing learned."""
        self.model.eval()
        batches = self.arranged(self._own(examples))
        total = weight = 0.0
        for group in by_prefix(batches):
            shared: Any = None
            if (prefix := group[0].prefix) is not None:
                nll, learned, shared = recorded_prefix(self.model, self._paths, self.lanes, prefix)
                total, weight = total + nll, weight + learned
            with_prefix = partial(self._sums, kept=shared)
            for together in self._paths.rounds(group):
                for sums in self.lanes.each(with_prefix, together):
                    total, weight = total + _number(sums[0]), weight + _number(sums[1])
        total, weight = self.ranks.numbers(total, weight)
        return total / weight if weight else float("nan")

    def _own(self, examples: Sequence[Example]) -> list[Example]:
        return self.ranks.share(examples, [len(example.input_ids) for example in examples])

    def _sums(self, batch: MicroBatch, kept: Any) -> Any:
        return self._paths.sums(self.model, batch, kept)

    def arranged(self, examples: Sequence[Example]) -> list[MicroBatch]:
        """The examples as this learner computes them."""
        how = self._paths
        return arrange(
            examples,
            how.micro_batch_tokens,
            self.lanes.count,
            packing=how.packing,
            sharing=how.sharing,
            packed_sharing=how.packed_sharing,
            overhead_tokens=how.overhead_tokens,
        )


def _number(scalar: Any) -> float:
    return float(scalar.item())
