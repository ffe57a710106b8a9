"""One optimizer step: loss = sum of weighted NLL / sum of weights, over all of its rows.

A step is one function of what is learned, the optimizer's state and the rows as arrays: gradients
summed over micro-batches, clipping, the update, and no update where a number is not finite. A GPU
runs it compiled, over a few planned shapes, while the host prepares the next; its numbers are read
one step late. A CPU runs the same function as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map, tree_unflatten

from mlx_itune.model.adapters import lora
from mlx_itune.model.engine import cpu
from mlx_itune.model.engine.checkpointing import checkpointed_blocks
from mlx_itune.model.engine.loss import Learned, learned_nll, plain_nll
from mlx_itune.model.engine.training_caches import KeysValues, Pass, caches, recorded
from mlx_itune.model.loading import backend
from mlx_itune.training.engine.microbatch import (
    Example,
    MicroBatch,
    Rectangle,
    arrange,
    by_prefix,
    padded,
)
from mlx_itune.training.engine.optimizers import Held, Updater
from mlx_itune.training.engine.rank_choice import Ranks
from mlx_itune.training.engine.shape_plan import Shape, ShapePlan
from mlx_itune.training.engine.step_ways import Ways, ways_for
from mlx_itune.training.settings import TrainSettings

# A rectangle as inputs of a graph: ids, segments, and the four of `Learned`; None where not there.
Arrays = list[Any]


@dataclass(frozen=True)
class StepMetrics:
    """What one step did. `loss` is NaN and `skipped` true when the update was not made."""

    loss: float
    weight: float
    supervised_tokens: int
    tokens: int
    gradient_norm: float
    skipped: bool


@dataclass(frozen=True)
class _Running:
    """A step whose numbers were not read yet: numbers (2,) float32 are its loss and norm."""

    numbers: mx.array
    weight: float
    supervised_tokens: int
    tokens: int


class Learner:
    """An adapted model with its optimizer, as the settings say.

    ranks: processes that each compute a part of every step. Raises UsageError.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TrainSettings,
        *,
        lanes: int | None = None,
        ranks: Ranks | None = None,
        ways: Ways | None = None,
    ) -> None:
        self.model, self.ranks = model, ranks or Ranks()
        self.optimizer = Updater(model.trainable_parameters(), settings)
        self.streams = cpu.streams(lanes)
        self.ways = ways or ways_for(model, settings, len(self.streams))
        self.held = self.optimizer.hold(model.trainable_parameters())
        self.states = self.optimizer.start(self.held)
        mx.eval(self.held, self.states)
        self.shapes = ShapePlan()
        # What each layer would do with its factors, in one operation for all: A times the scale,
        # and for pairs that are added to the weight both in the type of the activations.
        dtype = lora.activation_type(model) if lora.is_plain(model) else mx.float32
        self._cast: dict[str, Any] = {
            **dict.fromkeys(lora.SCALED, lambda v: (settings.scale * v).astype(dtype)),
            **dict.fromkeys(lora.UNSCALED, lambda v: v.astype(dtype)),
        }
        self._clip_norm = settings.clip_norm
        self._running: _Running | None = None
        compiled: Any = (lambda f: f) if backend.on_cpu() else mx.compile
        self._whole, self._end = compiled(self._one), compiled(self._updated)
        self._alone, self._behind = compiled(self._gradient), compiled(self._gradients)
        self._ahead, self._back = compiled(self._recorded), compiled(self._carried)
        self._first, self._sum = compiled(self._evaluated_prefix), compiled(self._evaluated)

    def step(
        self, examples: Sequence[Example], learning_rate: float, *, dropout_key: Any = None
    ) -> StepMetrics | None:
        """Begin to learn from all `examples` at once; what the step before it did, if one runs."""
        self.model.train()
        weight = sum(float(example.weights[1:].sum(dtype=np.float64)) for example in examples)
        if dropout_key is not None and self.ranks.size > 1:
            dropout_key = mx.random.split(dropout_key, self.ranks.size)[self.ranks.index]
        rate, share = mx.array(learning_rate), mx.array(1 / weight if weight else float("nan"))
        batches = self.arranged(self._own(examples))
        if len(batches) == 1 and self.ranks.size == 1:
            inputs = self._inputs(batches[0])
            made = self._whole(self.held, self.states, rate, share, dropout_key, *inputs)
            self._begin(made, batches[0])
        else:
            loss, gradients = self.summed(batches, share, dropout_key)
            loss, *gradients = self.ranks.total([loss, *gradients])
            made = self._end(self.held, self.states, rate, loss, gradients)
            self._begin(made)
        self.held, self.states, numbers = made
        before, self._running = (
            self._running,
            _Running(
                numbers,
                weight,
                sum(int(np.count_nonzero(example.weights[1:])) for example in examples),
                sum(len(example.input_ids) for example in examples),
            ),
        )
        return self._read(before)

    def plan_shapes(self, steps: Iterable[Sequence[Example]]) -> None:
        """Choose the shapes that the micro-batches of these steps are padded to."""
        self.model.train()
        batches = (batch for rows in steps for batch in self.arranged(self._own(rows)))
        self.shapes = ShapePlan.of(self._shape(p, b.prefix) for b in batches for p in b.parts)

    def finish(self) -> StepMetrics | None:
        """What the step that runs did, if one does; the model has what was learned then."""
        before, self._running = self._running, None
        self.model.update(tree_unflatten([*self.optimizer.named(self.held).items()]))
        return self._read(before)

    def restore(self, moments: Mapping[str, mx.array]) -> None:
        """Go on from what the model has now and from the optimizer's state by name. Raises
        StorageError."""
        self.held = self.optimizer.hold(self.model.trainable_parameters())
        self.states = self.optimizer.restored(self.states, moments)
        mx.eval(self.held, self.states)

    def evaluate(self, examples: Sequence[Example]) -> float:
        """The loss on all examples; no dropout, nothing learned."""
        self.model.eval()
        weight = sum(float(example.weights[1:].sum(dtype=np.float64)) for example in examples)
        total = 0.0
        for group in by_prefix(self.arranged(self._own(examples))):
            kept = None
            if group[0].prefix is not None:
                nll, kept = self._first(self.held, self._arrays(group[0].prefix))
                self._begin([nll, kept])
                total += float(np.asarray(nll))
            for batch in group:
                nll = self._sum(self.held, kept, *self._inputs(batch)[1:])
                self._begin(nll, batch)
                total += float(np.asarray(nll))
        (total,) = self.ranks.numbers(total)
        return total / weight if weight else float("nan")

    def summed(
        self, batches: Sequence[MicroBatch], share: mx.array, dropout_key: Any = None
    ) -> tuple[mx.array, Held]:
        """Loss and its gradient over all batches together, as a share of the step's weight.

        Micro-batches behind one prefix give gradients with respect to its keys and values, too;
        their sum goes back through the prefix, which is computed once more for it.
        """
        parts: list[tuple[mx.array, Held]] = []
        keys = iter(_keys(dropout_key, 2 * len(batches)))

        def add(part: tuple[mx.array, Held], batch: MicroBatch | None = None) -> None:
            parts.append(part if not parts else _plus(parts.pop(), part))
            # Begun one after the other: a graph of all would hold all their activations.
            self._begin(parts, batch)

        for group in by_prefix(batches):
            if len(group) == 1:
                add(self._alone(self.held, share, next(keys), *self._inputs(group[0])), group[0])
                continue
            assert group[0].prefix is not None
            prefix, key = self._arrays(group[0].prefix), next(keys)
            kept = self._ahead(self.held, key, prefix)
            self._begin(kept)
            back: Any = None
            for batch in group:
                inputs = self._inputs(batch)[1:]
                part, carried = self._behind(self.held, kept, share, next(keys), *inputs)
                back = carried if back is None else tree_map(mx.add, back, carried)
                self._begin([part, back], batch)
                add(part)
            add(self._back(self.held, share, key, prefix, back))
        return parts[0] if parts else (mx.array(0.0), [mx.zeros_like(a) for a in self.held])

    def _begin(self, arrays: Any, batch: MicroBatch | None = None) -> None:
        """Let the device compute; a CPU does so now, its cores shared by the parts of `batch`."""
        if not backend.on_cpu():
            mx.async_eval(arrays)  # type: ignore[no-untyped-call]
            return
        cores = len(self.streams)
        if cores > 1:
            # Products that each take all cores would wait for each other.
            backend.blas_threads(max(1, cores // len(batch.parts)) if batch else cores)
        mx.eval(arrays)

    def arranged(self, examples: Sequence[Example]) -> list[MicroBatch]:
        """The examples as this learner computes them."""
        ways = self.ways
        budget = ways.micro_batch_tokens * (1 if self.model.training else 4)
        return arrange(examples, budget, ways.device, packing=ways.packing, sharing=ways.sharing)

    def _own(self, examples: Sequence[Example]) -> list[Example]:
        return self.ranks.share(examples, [len(example.input_ids) for example in examples])

    @staticmethod
    def _read(running: _Running | None) -> StepMetrics | None:
        if running is None:
            return None
        loss, norm = np.asarray(running.numbers).tolist()
        good = bool(np.isfinite(loss) and np.isfinite(norm))
        return StepMetrics(
            loss, running.weight, running.supervised_tokens, running.tokens, norm, not good
        )

    # What follows is traced: functions of arrays, without a value read or anything evaluated.

    def _one(
        self, held: Held, states: Any, rate: mx.array, share: mx.array, key: Any, *inputs: Any
    ) -> Any:
        return self._updated(held, states, rate, *self._gradient(held, share, key, *inputs))

    def _gradient(self, held: Held, share: mx.array, key: Any, *inputs: Any) -> tuple[Any, Any]:
        """A micro-batch's loss and gradient, its prefix in the same graph."""
        # The backward pass calls blocks again that were not kept, so it belongs inside, too.
        with self._traced(key):
            return mx.value_and_grad(lambda held: self._nll(held, None, *inputs) * share)(held)

    def _gradients(
        self, held: Held, kept: KeysValues, share: mx.array, key: Any, *parts: Any
    ) -> tuple[Any, Any]:
        """((loss, gradient), gradient of the keys and values that come before the rows)."""
        with self._traced(key):
            loss, gradients = mx.value_and_grad(
                lambda held, kept: self._nll(held, kept, None, *parts) * share, argnums=(0, 1)
            )(held, kept)
        return (loss, gradients[0]), gradients[1]

    def _recorded(self, held: Held, key: Any, prefix: Arrays) -> KeysValues:
        with self._traced(key):
            self._put(held)
            return self._prefix(prefix)[1]

    def _carried(
        self, held: Held, share: mx.array, key: Any, prefix: Arrays, back: KeysValues
    ) -> tuple[Any, Any]:
        """A prefix's own loss, and its gradient with what comes back from the rows behind it."""

        def loss(held: Held) -> tuple[mx.array, mx.array]:
            self._put(held)
            nll, kept = self._prefix(prefix)
            pairs = zip(_flat(kept), _flat(back), strict=True)
            carried = [(one * other).astype(mx.float32).sum() for one, other in pairs]
            return sum(carried, nll * share), nll * share

        with self._traced(key):
            (_, value), gradient = mx.value_and_grad(loss)(held)
        return value, gradient

    def _updated(
        self, held: Held, states: Any, rate: mx.array, loss: mx.array, gradients: Held
    ) -> tuple[Held, Any, mx.array]:
        squares = [mx.square(vector).sum() for vector in gradients]
        norm = mx.sqrt(sum(squares[1:], squares[0]))
        good = mx.isfinite(loss) & mx.isfinite(norm)
        if self._clip_norm:
            factor = mx.minimum(1.0, self._clip_norm / norm)
            gradients = [vector * factor for vector in gradients]
        new, after = self.optimizer.update(held, states, gradients, rate)

        def if_good(updated: mx.array, before: mx.array) -> mx.array:
            return mx.where(good, updated, before)

        kept = [if_good(one, other) for one, other in zip(new, held, strict=True)]
        return kept, tree_map(if_good, after, states), mx.stack([loss, norm])

    def _evaluated_prefix(self, held: Held, prefix: Arrays) -> tuple[mx.array, KeysValues]:
        with self._traced(None):
            self._put(held)
            return self._prefix(prefix)

    def _evaluated(self, held: Held, kept: KeysValues | None, *parts: Any) -> mx.array:
        with self._traced(None):
            return self._nll(held, kept, None, *parts)

    def _nll(self, held: Held, kept: KeysValues | None, prefix: Any, *parts: Any) -> mx.array:
        """The weighted loss of a micro-batch, behind its prefix or what is kept of one."""
        self._put(held)
        total = mx.array(0.0)
        if prefix is not None:
            total, kept = self._prefix(prefix)
        for number, part in enumerate(parts):
            with mx.stream(self.streams[number % len(self.streams)]):
                nll = self._part(part, kept)
            total = total + nll
        return total

    def _put(self, held: Held) -> None:
        """Give the model what is held."""
        self.model.update(tree_unflatten([*self.optimizer.named(held, self._cast).items()]))
        lora.hold_weights(self.model)

    @contextlib.contextmanager
    def _traced(self, key: Any) -> Iterator[None]:
        """Afterwards the model has the arrays again that it has now."""
        before = self.model.trainable_parameters()
        try:
            with lora.in_a_step(self.model, key):
                yield
        finally:
            self.model.update(before)

    def _prefix(self, arrays: Arrays) -> tuple[mx.array, KeysValues]:
        ids, _, *learned = arrays
        made = caches(self.ways.cache_count, Pass(ids.shape[1]), record=True)
        total = self._loss(ids, learned, made)
        return total, recorded(made)

    def _part(self, arrays: Arrays, shared: KeysValues | None) -> mx.array:
        ids, segments, *learned = arrays
        before = shared[0][0].shape[2] if shared else 0
        made = None
        if shared or segments is not None:
            layout = Pass(ids.shape[1], segments, before)
            made = caches(self.ways.cache_count, layout, shared)
        return self._loss(ids, learned, made, before)

    def _loss(self, ids: mx.array, learned: Arrays, made: Any, before: int = 0) -> mx.array:
        seen = before + ids.shape[1]
        recomputed = self.ways.recomputed_blocks(ids.size, seen) if self.model.training else 0
        with checkpointed_blocks(self.model, recomputed):
            if self.ways.head:
                return learned_nll(self.model, ids, Learned(*learned), made)
            whole, weights = learned[:2]
            return plain_nll(self.model, whole, weights, caches=made)[0]

    def _inputs(self, batch: MicroBatch) -> list[Arrays | None]:
        """The arrays of a prefix, or None, and of each part."""
        prefix = None if batch.prefix is None else self._arrays(batch.prefix)
        shapes = [self.shapes.fit(self._shape(part, batch.prefix)) for part in batch.parts]
        return [prefix, *map(self._arrays, batch.parts, shapes)]

    def _shape(self, part: Rectangle, prefix: Rectangle | None) -> Shape:
        rows, width = part.input_ids.shape
        kind = (part.segments is not None, prefix.tokens if prefix else 0)
        learned = max(1, int(np.count_nonzero(part.weights[:, 1:])))
        multiple = self.ways.learned_multiple
        return Shape(rows, width - 1, self.ways.device.rounded(learned, multiple), kind)

    def _arrays(self, part: Rectangle, shape: Shape | None = None) -> Arrays:
        shape = shape or self._shape(part, None)
        part = padded(part, shape.rows, shape.width)
        segments = None if part.segments is None else mx.array(part.segments)
        ids = mx.array(part.input_ids[:, :-1])
        if not self.ways.head:
            return [ids, segments, mx.array(part.input_ids), mx.array(part.weights)]
        learned = Learned.of(part.input_ids, part.weights, shape.learned)
        return [ids, segments, *map(mx.array, learned.arrays())]


def _keys(key: Any, count: int) -> list[Any]:
    """Keys of dropout; None where there is none."""
    return [None] * count if key is None else [*mx.random.split(key, count)]


def _plus(one: tuple[mx.array, Held], other: tuple[mx.array, Held]) -> tuple[mx.array, Held]:
    return one[0] + other[0], [a + b for a, b in zip(one[1], other[1], strict=True)]


def _flat(pairs: KeysValues) -> list[mx.array]:
    return [array for pair in pairs for array in pair]
