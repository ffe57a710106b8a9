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
from itertools import islice
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map, tree_unflatten

from mlx_itune.model.adapters import lora
from mlx_itune.model.engine import attention, cpu
from mlx_itune.model.engine.checkpointing import checkpointed_blocks
from mlx_itune.model.engine.gated_delta import in_chunks
from mlx_itune.model.engine.loss import Learned, learned_nll, plain_nll
from mlx_itune.model.engine.training_caches import Kept, Pass, caches, known_tokens, recorded
from mlx_itune.model.loading import backend
from mlx_itune.training.engine.microbatch import (
    Example,
    MicroBatch,
    Rectangle,
    arrange,
    by_prefix,
    cut,
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
        self._put = lora.together(model, self.optimizer.kinds)
        self._clip_norm = settings.clip_norm
        self._running: _Running | None = None
        compiled: Any = (lambda f: f) if backend.on_cpu() else mx.compile
        self._whole, self._end = compiled(self._one), compiled(self._updated)
        self._first, self._more = compiled(self._gradient), compiled(self._added)
        self._ahead, self._sum = compiled(self._evaluated_prefix), compiled(self._evaluated)

    def step(
        self, examples: Sequence[Example], learning_rate: float, *, dropout_key: Any = None
    ) -> StepMetrics | None:
        """Begin to learn from all `examples` at once; what the step before it did, if one runs."""
        self.model.train()
        weight = sum(float(example.weights[1:].sum(dtype=np.float64)) for example in examples)
        if dropout_key is not None and self.ranks.size > 1:
            dropout_key = mx.random.split(dropout_key, self.ranks.size)[self.ranks.index]
        rate, share = mx.array(learning_rate), mx.array(1 / weight if weight else float("nan"))
        groups = by_prefix(self.arranged(self._own(examples)))
        if len(groups) == 1 and self.ranks.size == 1:
            inputs = self._inputs(groups[0])
            made = self._whole(self.held, self.states, rate, share, dropout_key, *inputs)
            self._begin(made, groups[0])
        else:
            loss, gradients = self.summed(groups, share, dropout_key)
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
                nll, kept = self._ahead(self.held, self._inputs(group)[0])
                self._begin([nll, kept])
                total += float(np.asarray(nll))
            for batch in group:
                nll = self._sum(self.held, kept, self._inputs([batch])[1])
                self._begin(nll, [batch])
                total += float(np.asarray(nll))
        (total,) = self.ranks.numbers(total)
        return total / weight if weight else float("nan")

    def summed(
        self, groups: Sequence[Sequence[MicroBatch]], share: mx.array, dropout_key: Any = None
    ) -> tuple[mx.array, Held]:
        """Loss and its gradient over all groups together, as a share of the step's weight. A
        group's micro-batches are behind one prefix."""
        loss, gradients = mx.array(0.0), [mx.zeros_like(array) for array in self.held]
        for number, group in enumerate(groups):
            key = None if dropout_key is None else mx.random.split(dropout_key, number + 1)[-1]
            inputs = self._inputs(group)
            if number:
                loss, gradients = self._more(self.held, loss, gradients, share, key, *inputs)
            else:
                loss, gradients = self._first(self.held, share, key, *inputs)
            # Begun one after the other: a graph of all would hold all their activations.
            self._begin([loss, gradients], group)
        return loss, gradients

    def _begin(self, arrays: Any, group: Sequence[MicroBatch] = ()) -> None:
        """Let the device compute; a CPU does so now, its cores shared by the parts of `group`."""
        if not backend.on_cpu():
            mx.async_eval(arrays)  # type: ignore[no-untyped-call]
            return
        cores = len(self.streams)
        if cores > 1:
            # Products that each take all cores would wait for each other.
            parts = max((len(batch.parts) for batch in group), default=1)
            backend.blas_threads(max(1, cores // parts))
        mx.eval(arrays)

    def arranged(self, examples: Sequence[Example]) -> list[MicroBatch]:
        """The examples as this learner computes them."""
        ways = self.ways
        budget = ways.micro_batch_tokens * (1 if self.model.training else 4)
        return arrange(
            examples,
            budget,
            ways.device,
            packing=ways.packing,
            sharing=ways.sharing,
            gap_tokens=ways.gap_tokens,
        )

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
        """The loss and gradient of micro-batches and of the prefix that they have."""
        # The backward pass calls blocks again that were not kept, so it belongs inside, too.
        with self._traced(key):
            return mx.value_and_grad(lambda held: self._nll(held, *inputs) * share)(held)

    def _added(
        self, held: Held, loss: mx.array, sums: Held, share: mx.array, key: Any, *inputs: Any
    ) -> tuple[Any, Any]:
        more, gradients = self._gradient(held, share, key, *inputs)
        return loss + more, [one + other for one, other in zip(sums, gradients, strict=True)]

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

    def _evaluated_prefix(self, held: Held, prefix: list[Arrays]) -> tuple[mx.array, Kept]:
        with self._traced(None):
            self._put(self.optimizer.stacks(held))
            return self._prefix(prefix)

    def _evaluated(self, held: Held, kept: Kept | None, parts: Any) -> mx.array:
        with self._traced(None):
            return self._behind(held, kept, parts)

    def _nll(self, held: Held, prefix: Any, *batches: Any) -> mx.array:
        """The weighted loss of micro-batches behind one prefix, or of a single one without."""
        self._put(self.optimizer.stacks(held))
        total, kept = mx.array(0.0), None
        if prefix is not None:
            total, kept = self._prefix(prefix)
        if len(batches) == 1:
            return total + self._behind(held, kept, batches[0])
        done: list[mx.array] = []
        for parts in batches:
            done.append(self._at_once(held, kept or [], parts, done[-1:]))
        return sum(done, total)

    def _at_once(self, held: Held, kept: Kept, parts: Any, done: Held) -> mx.array:
        """`_behind`, whose gradient is made together with it: of several micro-batches only one
        has activations at a time, and what goes back to the prefix is there when all are done."""
        count = len(held)

        def loss(arrays: list[mx.array]) -> mx.array:
            rest = iter(arrays[count:])
            again = [tuple(islice(rest, len(before))) for before in kept]
            return self._behind(arrays[:count], again, parts)

        def forward(*arrays: mx.array) -> list[mx.array]:
            given = mx.depends([*arrays], done) if done else [*arrays]
            value, gradients = mx.value_and_grad(loss)(given)
            return [value, *gradients]

        def backward(_: Any, cotangents: Any, outputs: Any) -> list[mx.array]:
            return [(cotangents[0] * made).astype(made.dtype) for made in outputs[1:]]

        flat = [*held, *(array for arrays in kept for array in arrays)]
        nll: mx.array = cpu.on_one_stream(forward, backward)(*flat)[0]
        return nll

    def _behind(self, held: Held, kept: Kept | None, parts: Any) -> mx.array:
        """The weighted loss of a micro-batch's parts, side by side."""
        self._put(self.optimizer.stacks(held))
        total = mx.array(0.0)
        for number, part in enumerate(parts):
            with mx.stream(self.streams[number % len(self.streams)]):
                nll = self._part(part, kept)
            total = total + nll
        return total

    @contextlib.contextmanager
    def _traced(self, key: Any) -> Iterator[None]:
        """Afterwards the model has the arrays it has now, also where it changes its own."""
        before = self.model.parameters()
        try:
            with lora.in_a_step(self.model, key), in_chunks(), self._attention():
                yield
        finally:
            self.model.update(before)

    def _attention(self) -> contextlib.AbstractContextManager[None]:
        """By blocks, but where a GPU has one kernel for it: there is no gradient."""
        blocks = self.model.training or backend.on_cpu()
        return attention.by_blocks() if blocks else contextlib.nullcontext()

    def _prefix(self, chunks: Sequence[Arrays]) -> tuple[mx.array, Kept]:
        """A prefix's loss and what is kept of it; a later chunk's first layers are computed beside
        an earlier one's next."""
        total, kept = mx.array(0.0), None
        for number, (ids, _, *learned) in enumerate(chunks):
            start = known_tokens(self.ways.caches, kept)
            made = caches(self.ways.caches, Pass(ids.shape[1], None, start), kept, record=True)
            with mx.stream(self.streams[number % len(self.streams)]):
                total = total + self._loss(ids, learned, made, start)
                kept = recorded(made)
        return total, kept or []

    def _part(self, arrays: Arrays, shared: Kept | None) -> mx.array:
        ids, segments, *learned = arrays
        before = known_tokens(self.ways.caches, shared)
        made = None
        if shared or segments is not None:
            layout = Pass(ids.shape[1], segments, before, len(ids))
            made = caches(self.ways.caches, layout, shared)
        return self._loss(ids, learned, made, before)

    def _loss(self, ids: mx.array, learned: Arrays, made: Any, before: int = 0) -> mx.array:
        rows, queries = ids.shape
        recomputed = 0
        if self.model.training:
            recomputed = self.ways.recomputed_blocks(rows, queries, before + queries)
        with checkpointed_blocks(self.model, recomputed):
            if self.ways.head:
                return learned_nll(self.model, ids, Learned(*learned), made)
            whole, weights = learned[:2]
            return plain_nll(self.model, whole, weights, caches=made)[0]

    def _inputs(self, group: Sequence[MicroBatch]) -> list[Any]:
        """The arrays of a prefix's chunks, or None, and of each micro-batch's parts."""
        prefix = group[0].prefix
        chunks = [] if prefix is None else cut(prefix, len(self.streams))
        return [
            [self._arrays(chunk) for chunk in chunks] or None,
            *(
                [self._arrays(part, self.shapes.fit(self._shape(part, prefix))) for part in b.parts]
                for b in group
            ),
        ]

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
