"""A run before it is made: which steps are the heaviest, and how training would compute them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlx_itune.dataset.batching import batches
from mlx_itune.kit.errors import DataError
from mlx_itune.model.engine import activations, loss, memory
from mlx_itune.model.engine.shapes import Matrix, Shapes, chosen
from mlx_itune.model.loading import backend
from mlx_itune.training.engine.microbatch import (
    Example,
    MicroBatch,
    Packing,
    Prefix,
    arrange,
    by_prefix,
)
from mlx_itune.training.engine.step_ways import (
    CPU_KEPT_TOKENS,
    CPU_TOKENS,
    FEWEST_TOKENS,
    GPU_TOKENS,
    at_once_tokens,
    overhead_tokens,
)
from mlx_itune.training.plan import footprint
from mlx_itune.training.plan.footprint import Footprint
from mlx_itune.training.plan.step_shape import Group, How, Rectangle
from mlx_itune.training.run.identity import cpus
from mlx_itune.training.settings import TrainSettings

# As model/compute has it: of the memory available, what resident float copies may take.
RESIDENT_SHARE = 0.4
# What a block of a graph costs at least.
BLOCK_OVERHEAD_S = 2.5e-3
# Steps that are looked at for the peak: with the longest rows, and with the most tokens.
_HEAVIEST = 12
# Rows whose steps are looked at.
_MOST_ROWS = 200_000
_MAX_LANES = 8


@dataclass(frozen=True)
class Row:
    """What a plan needs to know of an example."""

    input_ids: NDArray[np.int32]
    weights: NDArray[np.float32]


class Work:
    """A run as settings, sizes and a machine."""

    def __init__(self, settings: TrainSettings, shapes: Shapes, machine: memory.Machine) -> None:
        self.settings, self.shapes, self.machine = settings, shapes, machine

    def adapted(self, settings: TrainSettings) -> list[Matrix]:
        """The matrices that get an adapter."""
        kind = settings.adapter
        found = chosen(self.shapes, settings.keys, settings.num_layers, experts=kind != "dora")
        on_the_grid = kind in ("grid", "qalora")
        return [matrix for matrix in found if matrix.bits or not on_the_grid]

    def _norm_parameters(self, settings: TrainSettings) -> int:
        """Numbers that a grid adapter learns of its blocks' norms."""
        if settings.adapter != "grid" or settings.keys:
            return 0
        first = 0 if settings.num_layers == -1 else self.shapes.layers - settings.num_layers
        blocks = (norms for number, norms in self.shapes.norms.items() if number >= first)
        return sum(size for norms in blocks for name, size in norms.items() if "norm" in name)

    def how(self, settings: TrainSettings, rows: Sequence[Example]) -> How:
        """How a run with these settings computes a step here; as training/paths chooses."""
        on_cpu = self.machine.device == "cpu"
        quantized = [matrix for matrix in self.shapes.matrices if matrix.bits]
        dense = bool(quantized) and (
            settings.compute == "dequantized" or (settings.compute == "auto" and on_cpu)
        )
        floats = (4 if on_cpu else 2) * sum(matrix.numbers for matrix in quantized)
        available = self.machine.available_bytes
        if settings.memory_gb is not None:
            available = min(available, int(settings.memory_gb * 1e9))
        how = How(
            adapter=settings.adapter,
            rank=settings.rank,
            optimizer=settings.optimizer,
            on_cpu=on_cpu,
            dense=dense,
            resident=dense
            and floats <= RESIDENT_SHARE * available
            and not mostly_long(rows, self.shapes.hidden),
            lanes=lanes() if on_cpu else 1,
            kept_tokens=float("inf"),
            at_once_tokens=at_once_tokens(self.shapes.hidden)
            if on_cpu and settings.gradient_checkpointing == "auto"
            else float("inf"),
            chunk_rows=loss.chunk_rows(self.shapes.vocabulary, self.shapes.hidden),
            micro_batch_tokens=settings.micro_batch_tokens or 1,
            norm_parameters=self._norm_parameters(settings),
        )
        room = self._room_tokens(settings, how)
        auto = min(room, CPU_KEPT_TOKENS) if on_cpu else room
        kept = {"on": 0.0, "off": float("inf")}.get(settings.gradient_checkpointing, auto)
        default = CPU_TOKENS if on_cpu else GPU_TOKENS
        tokens = settings.micro_batch_tokens or min(default, max(FEWEST_TOKENS, int(room)))
        return dataclasses.replace(how, kept_tokens=kept, micro_batch_tokens=tokens)

    def _room_tokens(self, settings: TrainSettings, how: How) -> float:
        """Positions that may keep all their activations, by training/paths' rough estimate."""
        limit = settings.memory_gb
        budget = activations.default_budget_bytes() if limit is None else limit * 1e9
        adapted = self.adapted(settings)
        learned = sum(footprint.adapter_parameters(matrix, how) for matrix in adapted)
        chunk = activations._LOGITS_COPIES * 4 * how.chunk_rows * self.shapes.vocabulary
        fixed = footprint.weights_bytes(self.shapes, adapted, how) + 4 * 6 * learned
        numbers = sum(m.rows + m.columns for block in self.shapes.blocks() for m in block)
        room = max(0.0, (budget - fixed - how.lanes * chunk) / how.lanes)
        return room / (activations._KEPT * 4 * numbers)

    def fitting(
        self, rows: Sequence[Example], settings: TrainSettings | None = None
    ) -> tuple[Footprint, How]:
        """The peak of the run, or of one with other settings, and how it is computed."""
        settings = settings or self.settings
        how = self.how(settings, rows)
        return self.peak(rows, settings, how), how

    def peak(self, rows: Sequence[Example], settings: TrainSettings, how: How) -> Footprint:
        """The largest footprint among the heaviest steps."""
        adapted = self.adapted(settings)
        candidates = [
            footprint.step_footprint(self.shapes, adapted, how, groups)
            for step in _heaviest(rows, settings)
            if (groups := _cut(step, settings, how, self.shapes.window))
        ]
        if not candidates:
            raise DataError("no row has anything to learn")
        return max(candidates, key=lambda found: found.peak_bytes)

    def checkpoints(self, rows: Sequence[Example], how: How) -> bool:
        """Whether any micro-batch of the heaviest steps has blocks that keep their inputs only."""
        return any(
            rectangle.positions > min(how.kept_tokens, how.at_once_tokens)
            for step in _heaviest(rows, self.settings)
            for group in _cut(step, self.settings, how, self.shapes.window)
            for rectangle in group.rectangles
        )

    def epoch_seconds(self, rows: Sequence[Example], how: How, flops_per_s: float) -> float:
        """Of a sample of an epoch's steps, scaled up."""
        adapted, steps = self.adapted(self.settings), _steps(rows, self.settings)
        sample = steps[:: max(1, len(steps) // 16)]
        seconds = tokens = 0.0
        for step in sample:
            groups = _cut(step, self.settings, how, self.shapes.window)
            rectangles = [
                r for g in groups for r in (*g.rectangles, *([g.prefix] if g.prefix else ()))
            ]
            flops = sum(footprint.step_flops(self.shapes, adapted, how, r) for r in rectangles)
            seconds += flops / flops_per_s
            seconds += BLOCK_OVERHEAD_S * self.shapes.layers * len(rectangles) / how.lanes
            tokens += sum(len(row.input_ids) for row in step)
        return seconds * sum(len(row.input_ids) for row in rows) / max(1.0, tokens)


def mostly_long(rows: Sequence[Example], hidden: int) -> bool:
    """Whether most tokens are in rows that are computed alone: float copies gain little there."""
    lengths = [len(row.input_ids) for row in rows]
    limit = at_once_tokens(hidden)
    return 2 * sum(n for n in lengths if n > limit) > sum(lengths)


def lanes() -> int:
    """Micro-batches that are computed side by side on this CPU (training/step.Lanes)."""
    parallel = backend.prepare().blas is not None
    return min(cpus(), _MAX_LANES) if parallel else 1


def _steps(rows: Sequence[Example], settings: TrainSettings) -> list[list[Example]]:
    """The rows of each step of the run, or of its first epochs where it is very long."""
    few = max(1, _MOST_ROWS // settings.batch_size)
    steps = few if settings.steps is None else min(few, settings.steps)
    found = batches(
        len(rows),
        settings.batch_size,
        seed=settings.seed,
        epochs=settings.planned_epochs,
        steps=steps,
    )
    return [[rows[index] for index in batch.rows] for batch in found]


def _heaviest(rows: Sequence[Example], settings: TrainSettings) -> list[list[Example]]:
    """Steps that may set the peak."""
    steps = _steps(rows, settings)
    by_tokens = sorted(steps, key=lambda step: -sum(len(row.input_ids) for row in step))
    by_longest = sorted(steps, key=lambda step: -max(len(row.input_ids) for row in step))
    return [*by_tokens[:_HEAVIEST], *by_longest[:_HEAVIEST]]


def _cut(
    rows: Sequence[Example], settings: TrainSettings, how: How, window: int | None
) -> list[Group]:
    """A step's micro-batches, as training/step arranges them where every fast way is exact."""
    packing: Packing = "off" if settings.packing == "off" else "row" if how.on_cpu else "bins"
    made = arrange(
        rows,
        how.micro_batch_tokens,
        how.lanes,
        packing=packing,
        sharing=settings.prefix_sharing != "off",
        overhead_tokens=overhead_tokens(),
    )
    groups = []
    for batches_of_one in by_prefix(made):
        prefix = batches_of_one[0].prefix
        shared = prefix.tokens if prefix else 0
        groups.append(
            Group(
                _rectangle(prefix, 0, how, window) if prefix else None,
                [_rectangle(batch, shared, how, window) for batch in batches_of_one],
            )
        )
    return groups


def _rectangle(part: MicroBatch | Prefix, shared: int, how: How, window: int | None) -> Rectangle:
    count, width = part.input_ids.shape
    lengths = getattr(part, "lengths", None) or [(width - 1,)]
    seen = [footprint.seen_keys(row, shared, how.on_cpu, window) for row in lengths]
    learned = int(np.count_nonzero(part.weights[:, 1:]))
    return Rectangle(count, width - 1, learned, sum(seen) / len(seen))


def shortened(rows: Sequence[Example], length: int) -> list[Example]:
    """The rows in pieces of at most `length` tokens, as --too-long split makes them, about."""
    return [
        Row(row.input_ids[start : start + length], row.weights[start : start + length])
        for row in rows
        for start in range(0, len(row.input_ids), length)
        if row.weights[start + 1 : start + length].any()
    ]
