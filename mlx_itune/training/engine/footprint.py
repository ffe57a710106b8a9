"""What a run holds in memory and how long its epoch takes, from sizes alone.

peak = base + adapter + optimizer + the larger of two moments of a step:
  computing  gradients of the micro-batches that are done
             + what all blocks keep of a micro-batch for their backward pass
             + the larger of one block's work space and the logits of one chunk
  updating   gradients and new moments, a few times the adapter

Steps are cut into micro-batches as training cuts them. The constants say how often an array stands
in memory; they were fitted to measured peaks, and `benchmarks/plan.py` prints both.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlx_itune.dataset.batching import batches
from mlx_itune.kit.errors import DataError
from mlx_itune.model.engine import attention, backward, compute, cpu, loss, memory
from mlx_itune.model.engine.shapes import Matrix, Shapes, chosen
from mlx_itune.training.engine.microbatch import Example, MicroBatch, Rectangle, arrange
from mlx_itune.training.engine.step_ways import (
    ROOM_SHARE,
    device_here,
    kept_tokens,
    micro_batch_tokens,
    recomputed_blocks,
)
from mlx_itune.training.settings import TrainSettings

# Work space of a block's backward pass, times the width of its widest layer, in and out; what is
# outside of blocks, times the hidden size.
WORK, OUTSIDE = 5.8, 2.0
# Logits of a chunk with what their gradient is made of.
LOGITS = 6.5
# Of an adapted DoRA layer's output, what is kept before its lengths are set.
DORA_KEPT = 0.75
# The update, in sizes of the adapter; float copies of a matrix that is made again in each product.
UPDATE, WEIGHT_COPIES = 12.0, 3.0
# Float vectors of the adapter's size that an optimizer keeps; two unless named.
MOMENTS = {
    **dict.fromkeys(("lion", "sgd", "rmsprop", "adagrad", "muon"), 1.0),
    "adafactor": 0.1,
}
# What a block of a graph costs at least.
_BLOCK_OVERHEAD_S = 2.5e-3
# Steps that are looked at for the peak: with the longest rows, and with the most tokens.
_HEAVIEST = 12
# Rows whose steps are looked at.
_MOST_ROWS = 200_000


@dataclass(frozen=True)
class Row:
    """What has to be known of an example."""

    input_ids: NDArray[np.int32]
    weights: NDArray[np.float32]


@dataclass(frozen=True)
class Workload:
    """A run before it is made: how training would compute it, and what that takes."""

    settings: TrainSettings
    shapes: Shapes
    machine: memory.Machine
    rows: Sequence[Example]

    def otherwise(self, rows: Sequence[Example] | None = None, **settings: object) -> Workload:
        """The same with other rows or settings."""
        changed = dataclasses.replace(self.settings, **settings)  # type: ignore[arg-type]
        return dataclasses.replace(self, settings=changed, rows=rows or self.rows)

    @functools.cached_property
    def breakdown(self) -> dict[str, int]:
        """Bytes at the run's peak by part. Raises DataError where there is nothing to learn."""
        found = [self._step(batches) for batches in self._heaviest if batches]
        if not found:
            raise DataError("no row has anything to learn")
        return max(found, key=lambda parts: sum(parts.values()))

    @property
    def peak_bytes(self) -> int:
        """Of all parts."""
        return sum(self.breakdown.values())

    @property
    def fits(self) -> bool:
        """Whether the machine has that much."""
        return self.peak_bytes <= self.machine.limit_bytes

    @functools.cached_property
    def parameters(self) -> int:
        """Numbers that the adapter learns."""
        s, norms = self.settings, 0
        if s.adapter == "grid" and not s.keys:
            first = 0 if s.num_layers == -1 else self.shapes.layers - s.num_layers
            norms = sum(size for block, size in self.shapes.norms.items() if block >= first)
        return norms + sum(map(self._learned, self._adapted.values()))

    @property
    def dense(self) -> bool:
        """Whether quantized weights are computed as floats."""
        how = self.settings.compute
        return self.shapes.quantized and (how == "dequantized" or (how == "auto" and self._on_cpu))

    @functools.cached_property
    def resident(self) -> bool:
        """Whether they stand in memory as floats."""
        floats = self._float_bytes * sum(m.numbers for m in self.shapes.matrices if m.bits)
        free = min(self.machine.available_bytes, self.settings.memory_bytes or 1 << 62)
        return self.dense and floats <= compute.RESIDENT_SHARE * free

    @functools.cached_property
    def micro_batch_tokens(self) -> int:
        """Tokens computed at once."""
        sizes = self._token_bytes, self._base_bytes
        return micro_batch_tokens(self.settings, self._room_tokens, *sizes)

    @functools.cached_property
    def checkpoints(self) -> bool:
        """Whether any micro-batch of the heaviest steps has blocks that keep their inputs only."""
        made = (part for step in self._heaviest for batch in step for part in _parts(batch))
        return any(self._recomputed(*part) for part in made)

    def epoch_seconds(self, flops_per_s: float) -> float:
        """Of a sample of an epoch's steps, scaled up."""
        seconds = tokens = 0.0
        for step in self._steps[:: max(1, len(self._steps) // 16)]:
            parts = [part for batch in self._cut(step) for part in _parts(batch)]
            seconds += sum(self._flops(part, shared) for part, shared in parts) / flops_per_s
            seconds += _BLOCK_OVERHEAD_S * self.shapes.layers * len(parts) / self._lanes
            tokens += sum(len(row.input_ids) for row in step)
        return seconds * sum(len(row.input_ids) for row in self.rows) / max(1.0, tokens)

    def _step(self, batches: Sequence[MicroBatch]) -> dict[str, int]:
        adapter = 4 * self.parameters
        kept, logits = max(map(self._computing, batches), key=sum)
        # The sum so far, and what is added to it.
        gradients = adapter * min(2, len(batches))
        if UPDATE * adapter > gradients + kept + logits:
            gradients, kept, logits = int(UPDATE * adapter), 0, 0
        return {
            "weights": self._base_bytes,
            "adapter": adapter,
            "optimizer": int(MOMENTS.get(self.settings.optimizer, 2.0) * adapter),
            "gradients": gradients,
            "activations": int(kept),
            "logits": int(logits),
        }

    def _computing(self, batch: MicroBatch) -> tuple[float, float]:
        """Bytes of one micro-batch: (activations, what logits take above the work space)."""
        kept, work, logits = self._held_bytes + self._made_again_bytes, 0.0, 0.0
        for part, shared in _parts(batch):
            learned = int(np.count_nonzero(part.weights[:, 1:]))
            more, once = self._part(part, shared)
            # The hidden states that meet the head, and their gradient.
            kept += more + 2 * self._item * learned * self.shapes.hidden
            work += once
            chunk = min(learned, loss.chunk_rows(self.shapes.vocabulary, self.shapes.hidden))
            logits += LOGITS * 4 * chunk * self.shapes.vocabulary
        return kept + work, max(0.0, logits - work)

    def _part(self, part: Rectangle, shared: int) -> tuple[float, float]:
        """Bytes that a rectangle keeps until its backward pass, and those of its work space."""
        shapes, item, positions = self.shapes, self._item, part.tokens
        kept_weights, passing = self._attention(part, shared)
        block = self._block_bytes + item * shapes.heads * kept_weights
        count = self._recomputed(part, shared)
        last = block * (shapes.layers - count)
        # What a block made again keeps, above what the last ones, gone by then, kept.
        again = max(0.0, block - last) if count else 0.0
        kept = last + item * (count + OUTSIDE) * shapes.hidden
        widest = max(shapes.times(m) * (m.rows + m.columns) for m in self._in_blocks)
        work = item * (WORK * widest + shapes.heads * passing) + again
        return kept * positions, work * positions

    def _recomputed(self, part: Rectangle, shared: int) -> int:
        keys = self._token_bytes / (4 * self.shapes.layers * self.shapes.heads)
        tokens = part.tokens * (1 + self._attention(part, shared)[0] / keys)
        return recomputed_blocks(self.shapes.layers, tokens, self._kept_tokens / self._lanes)

    def _attention(self, part: Rectangle, shared: int) -> tuple[float, float]:
        """Weights of a query and head: what is kept of them, and what passes."""
        queries = part.input_ids.shape[1] - 1
        keys, kind = shared + queries, self.shapes.kind
        return attention.weights_kept(queries, keys, kind, self._on_cpu)

    @functools.cached_property
    def _block_bytes(self) -> float:
        """Per position, what a block keeps besides attention weights, on average."""
        kind, item, total = self.settings.adapter, self._item, 0.0
        for m in self._in_blocks:
            each: float = item * m.rows
            if m.path in self._adapted:
                each += item * (m.columns + (DORA_KEPT * m.rows if kind == "dora" else 0))
                # Each low-rank product keeps its input once more, in float32, and what is between.
                casts = self.settings.rank + (m.columns if item < 4 else 0)
                each += 4 * casts if kind != "grid" else 0
            total += self.shapes.times(m) * each
        return total / self.shapes.layers

    def _flops(self, part: Rectangle, shared: int) -> float:
        """Of forward and backward, the weights themselves not learned."""
        shapes, positions = self.shapes, part.tokens
        again = self._recomputed(part, shared) / shapes.layers
        active = sum(m.rows * m.columns * shapes.times(m) for m in self._in_blocks)
        own = sum(self._learned(m) / m.experts for m in self._adapted.values())
        scores = 12.0 * shapes.layers * shapes.query * (shared + part.input_ids.shape[1] - 1)
        learned = np.count_nonzero(part.weights[:, 1:])
        each = 4 * (1 + 0.5 * again) * active + 6.0 * own + scores
        return float(each * positions + 4.0 * shapes.hidden * shapes.vocabulary * learned)

    @functools.cached_property
    def _adapted(self) -> dict[str, Matrix]:
        """The matrices that get an adapter, by path."""
        s = self.settings
        found = chosen(self.shapes, s.keys, s.num_layers, experts=s.adapter != "dora")
        return {m.path: m for m in found if m.bits or s.adapter not in ("grid", "qalora")}

    def _learned(self, m: Matrix) -> int:
        """Numbers that the adapter of one matrix learns."""
        kind, rank = self.settings.adapter, self.settings.rank
        groups = m.columns // m.group_size if m.group_size else 0
        if kind == "grid":
            return 2 * rank * (groups + m.rows) * m.experts
        if kind == "qalora":
            return rank * (groups + (m.columns if m.is_table else m.rows)) * m.experts
        lengths = m.rows if kind == "dora" else 0
        return (rank * (m.rows + m.columns) + lengths) * m.experts

    @functools.cached_property
    def _base_bytes(self) -> int:
        """Of the base in memory, as model/compute leaves it and adapters keep it."""
        shapes = self.shapes
        total = shapes.other_bytes + (shapes.other_half_bytes if self._on_cpu else 0)
        for m in shapes.matrices:
            kind = self.settings.adapter if m.path in self._adapted else None
            wide = 2 if self._on_cpu and m.half else 1
            codes, as_floats = m.stored_bytes - m.grid_bytes, self._float_bytes * m.numbers
            floats = self.dense and (self.resident or m.is_table or m.experts > 1)
            if m.bits is None:
                total += m.stored_bytes * wide
            elif kind == "grid":
                # Codes of a byte take the place of floats, and the grid stays in its own type.
                total += (m.numbers if floats else codes) + m.grid_bytes
            else:
                total += as_floats if floats else codes + m.grid_bytes * wide
                total += m.grid_bytes if kind == "qalora" else 0
        return total

    @functools.cached_property
    def _held_bytes(self) -> float:
        """What a grid adapter makes once per step: the tuned grid and its gradient, and the tuned
        weights where they are floats."""
        if self.settings.adapter != "grid":
            return 0.0
        one = [m for m in self._adapted.values() if m.experts == 1]
        floats = (m.numbers for m in one if self.resident or m.block is None)
        grids = 2.0 * sum(m.grid_bytes for m in one)
        return grids + (self._float_bytes * sum(floats) if self.dense else 0.0)

    @functools.cached_property
    def _made_again_bytes(self) -> float:
        """Of weights that are made for one product and go after it."""
        own = self._adapted if self.settings.adapter == "grid" else {}
        quantized = (m for m in self._in_blocks if m.bits)
        made = [m.numbers for m in quantized if m.path in own or not self.resident]
        if self.dense:
            return WEIGHT_COPIES * self._float_bytes * max(made, default=0)
        if self._on_cpu or self.settings.compute != "auto":
            return 0.0
        # A GPU may go back through a copy of one layer's weight.
        most = backward.COPY_SHARE * (self.settings.memory_bytes or memory.default_budget_bytes())
        copies = [self._item * m.numbers for m in self.shapes.matrices if m.bits]
        return max((copy for copy in copies if copy <= most), default=0)

    @functools.cached_property
    def _in_blocks(self) -> list[Matrix]:
        return [m for m in self.shapes.matrices if m.block is not None]

    @property
    def _on_cpu(self) -> bool:
        """Whether activations are float32, and attention computed in blocks."""
        return self.machine.device == "cpu"

    @property
    def _item(self) -> int:
        return 2 if self.shapes.half and not self._on_cpu else 4

    @property
    def _float_bytes(self) -> int:
        return 4 if self._on_cpu else 2

    @functools.cached_property
    def _lanes(self) -> int:
        """Rectangles that are computed side by side."""
        return len(cpu.streams()) if self._on_cpu else 1

    @functools.cached_property
    def _kept_tokens(self) -> float:
        sizes = self._token_bytes, self._base_bytes
        return kept_tokens(self.settings, self._room_tokens, *sizes)

    @functools.cached_property
    def _room_tokens(self) -> float:
        """Positions that may keep all their activations, by training's own rough estimate."""
        budget = self.settings.memory_bytes or memory.default_budget_bytes()
        logits = memory.logits_of(self.shapes.vocabulary, self.shapes.hidden)
        fixed = self._base_bytes + 4 * 6 * self.parameters + self._lanes * logits
        return ROOM_SHARE * max(0.0, budget - fixed) / self._token_bytes

    @property
    def _token_bytes(self) -> int:
        return memory.kept_bytes(sum(m.rows + m.columns for m in self._in_blocks), 4)

    @functools.cached_property
    def _steps(self) -> list[list[Example]]:
        """The rows of each step of the run, or of its first epochs where it is very long."""
        s = self.settings
        few = max(1, _MOST_ROWS // s.rows_per_step)
        steps = few if s.steps is None else min(few, s.steps)
        planned = batches(
            len(self.rows),
            s.rows_per_step,
            seed=s.seed,
            epochs=s.planned_epochs,
            steps=steps,
            lengths=s.lengths_of(self.rows),
        )
        return [[self.rows[index] for index in batch.rows] for batch in planned]

    @functools.cached_property
    def _heaviest(self) -> list[list[MicroBatch]]:
        """Steps that may set the peak, cut into micro-batches."""
        lengths = [[len(row.input_ids) for row in step] for step in self._steps]
        places = range(len(lengths))
        by_tokens = sorted(places, key=lambda at: -sum(lengths[at]))[:_HEAVIEST]
        by_longest = sorted(places, key=lambda at: -max(lengths[at]))[:_HEAVIEST]
        return [self._cut(self._steps[at]) for at in dict.fromkeys([*by_tokens, *by_longest])]

    def _cut(self, rows: Sequence[Example]) -> list[MicroBatch]:
        """A step's micro-batches, as training arranges them where every fast way is exact."""
        return arrange(
            rows,
            self.micro_batch_tokens,
            device_here(self._lanes),
            packing=self.settings.packing != "off",
            sharing=self.settings.prefix_sharing != "off",
        )


def cpus() -> int:
    """Cores that this process may use."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return own or 1


def shortened(rows: Sequence[Example], length: int) -> list[Example]:
    """The rows in pieces of at most `length` tokens, as --too-long split makes them, about."""
    return [
        Row(row.input_ids[start : start + length], row.weights[start : start + length])
        for row in rows
        for start in range(0, len(row.input_ids), length)
        if row.weights[start + 1 : start + length].any()
    ]


def _parts(batch: MicroBatch) -> list[tuple[Rectangle, int]]:
    """The rectangles of a micro-batch, its prefix among them, each with the tokens before it."""
    shared = batch.prefix.tokens if batch.prefix else 0
    before = [(batch.prefix, 0)] if batch.prefix else []
    return [*before, *((part, shared) for part in batch.parts)]
