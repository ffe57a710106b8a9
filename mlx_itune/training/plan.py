"""What a run will take, before any weight is loaded: memory, time, and what to change.

Sizes come from config.json and the headers of the weights, lengths from the tokenized rows; the
steps that will be the heaviest are cut into micro-batches as training cuts them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_itune.dataset.batching import batches
from mlx_itune.kit.errors import DataError, ResourceError
from mlx_itune.model import activations, backend, loss, memory
from mlx_itune.model.base import resolve
from mlx_itune.model.shapes import Matrix, Shapes, chosen, read_shapes
from mlx_itune.training import footprint
from mlx_itune.training.footprint import Footprint, Group, How, Rectangle
from mlx_itune.training.microbatch import Example, MicroBatch, Packing, Prefix, arrange, by_prefix
from mlx_itune.training.settings import TrainSettings

# As model/compute has it: of the memory available, what resident float copies may take.
RESIDENT_SHARE = 0.4
# Of the rate of a large product, what a step reaches; and what a block of a graph costs at least.
EFFICIENCY = {"cpu": 0.25, "gpu": 0.35}
BLOCK_OVERHEAD_S = 2.5e-3
# Steps that are looked at for the peak: with the longest rows, and with the most tokens.
_HEAVIEST = 12
# Rows whose steps are looked at.
_MOST_ROWS = 200_000
_MAX_LANES = 8
# As training/paths has them: tokens of a micro-batch that nobody set.
CPU_TOKENS, GPU_TOKENS, FEWEST_TOKENS = 512, 4096, 64


@dataclass(frozen=True)
class Suggestion:
    """A change of one flag, and what the run would then take."""

    change: str
    peak_memory_bytes: int
    fits: bool


@dataclass(frozen=True)
class Plan:
    """The keys of `plan --json`.

    time_from says where the seconds come from. breakdown: bytes by part, which sum to the peak.
    cache_bytes: of freed buffers that MLX may keep besides and gives back when memory is short.
    """

    peak_memory_bytes: int
    limit_bytes: int
    fits: bool
    breakdown: Mapping[str, int]
    cache_bytes: int
    time_per_epoch_s: float
    time_from: str
    steps_per_epoch: int
    tokens_per_epoch: int
    longest_tokens: int
    trainable_parameters: int
    compute: str
    gradient_checkpointing: bool
    limit_from: str
    suggestions: tuple[Suggestion, ...]


@dataclass(frozen=True)
class Row:
    """What a plan needs to know of an example."""

    input_ids: NDArray[np.int32]
    weights: NDArray[np.float32]


def make_plan(
    settings: TrainSettings,
    path: Path,
    config: Mapping[str, Any],
    examples: Sequence[Example],
    *,
    rate: Callable[[], float] | None = None,
) -> Plan:
    """The plan of a run over `examples`. rate: FLOP/s of this machine, measured unless given.

    Raises ModelError, StorageError.
    """
    work = Work(settings, read_shapes(path, config), memory.machine(settings.memory_gb))
    rows = [Row(example.input_ids, example.weights) for example in examples]
    found, how = work.fitting(rows)
    fits = found.peak_bytes <= work.machine.limit_bytes
    steps = -(-len(rows) // settings.batch_size)
    flops = (rate or measured_rate)() * EFFICIENCY[work.machine.device]
    return Plan(
        peak_memory_bytes=found.peak_bytes,
        limit_bytes=work.machine.limit_bytes,
        fits=fits,
        breakdown=footprint.parts(found),
        cache_bytes=memory.cache_limit_bytes(work.machine.limit_bytes),
        time_per_epoch_s=work.epoch_seconds(rows, how, flops),
        time_from="the run's floating-point operations over this machine's measured product rate",
        steps_per_epoch=steps,
        tokens_per_epoch=sum(len(row.input_ids) for row in rows),
        longest_tokens=max((len(row.input_ids) for row in rows), default=0),
        trainable_parameters=sum(
            footprint.adapter_parameters(m, how) for m in work.adapted(settings)
        ),
        compute=_compute_name(work.shapes, how),
        gradient_checkpointing=work.checkpoints(rows, how),
        limit_from=work.machine.source,
        suggestions=() if fits else work.suggestions(rows),
    )


def require_fit(
    settings: TrainSettings, config: Mapping[str, Any], examples: Sequence[Example]
) -> None:
    """Raise ResourceError, with what to change, where a run over `examples` cannot fit.

    Cheap: headers are read, a few steps are cut; nothing is tokenized, loaded or measured.
    """
    path = resolve(settings.model, offline=True)
    work = Work(settings, read_shapes(path, config), memory.machine(settings.memory_gb))
    rows = [Row(example.input_ids, example.weights) for example in examples]
    found, _ = work.fitting(rows)
    if found.peak_bytes > work.machine.limit_bytes:
        raise refusal(found.peak_bytes, work.machine, work.suggestions(rows))


def refusal(
    peak_bytes: int, machine: memory.Machine, suggestions: Sequence[Suggestion]
) -> ResourceError:
    """The one line that says that a run does not fit."""
    ways = [s for s in suggestions if s.fits]
    listed = [f"{s.change} ({_gigabytes(s.peak_memory_bytes)})" for s in ways or suggestions]
    if ways:
        hint = f"try {' or '.join(listed[:3])}"
    else:
        hint = f"nothing alone is enough: {', '.join(listed[-3:])}"
    needed, limit = _gigabytes(peak_bytes), _gigabytes(machine.limit_bytes)
    return ResourceError(
        f"needs {needed} of memory at its peak and may take {limit} ({machine.source})", hint=hint
    )


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

    def how(self, settings: TrainSettings) -> How:
        """How a run with these settings computes a step here; as training/paths chooses."""
        on_cpu = self.machine.device == "cpu"
        quantized = [matrix for matrix in self.shapes.matrices if matrix.bits]
        dense = bool(quantized) and (
            settings.compute == "dequantized" or (settings.compute == "auto" and on_cpu)
        )
        floats = (4 if on_cpu else 2) * sum(matrix.numbers for matrix in quantized)
        how = How(
            adapter=settings.adapter,
            rank=settings.rank,
            optimizer=settings.optimizer,
            on_cpu=on_cpu,
            dense=dense,
            resident=dense and floats <= RESIDENT_SHARE * self.machine.available_bytes,
            lanes=lanes() if on_cpu else 1,
            kept_tokens=float("inf"),
            chunk_rows=loss.chunk_rows(self.shapes.vocabulary),
            micro_batch_tokens=settings.micro_batch_tokens or 1,
        )
        room = self._room_tokens(settings, how)
        kept = {"on": 0.0, "off": float("inf")}.get(settings.gradient_checkpointing, room)
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
        how = self.how(settings)
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
        """Whether any micro-batch of the heaviest steps keeps its blocks' inputs only."""
        return any(
            rectangle.positions > how.kept_tokens
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

    def suggestions(self, rows: Sequence[Example]) -> tuple[Suggestion, ...]:
        """What would make the run smaller, each with its peak; those that fit come first."""
        found = []
        now = self.fitting(rows)[0].peak_bytes
        for change, settings, cut in self._changes(rows):
            peak = self.fitting(cut, settings)[0].peak_bytes
            if peak < now:
                found.append(Suggestion(change, peak, peak <= self.machine.limit_bytes))
        if not self.shapes.quantized:
            smaller = self._quantized_peak(rows)
            if smaller < now:
                fits = smaller <= self.machine.limit_bytes
                found.append(Suggestion("a base in 4 bits", smaller, fits))
        found.sort(key=lambda suggestion: not suggestion.fits)
        if not any(suggestion.fits for suggestion in found):
            found.append(self._least(rows))
        return tuple(found)

    def _changes(
        self, rows: Sequence[Example]
    ) -> list[tuple[str, TrainSettings, Sequence[Example]]]:
        s = self.settings
        longest = max(len(row.input_ids) for row in rows)
        found: list[tuple[str, TrainSettings, Sequence[Example]]] = []
        if s.gradient_checkpointing != "on":
            on = dataclasses.replace(s, gradient_checkpointing="on")
            found.append(("--gradient-checkpointing on", on, rows))
        # Less than the longest row is as much as it: a row is never cut for it.
        now = self.how(s).micro_batch_tokens
        for tokens in sorted({now // 2, now // 4, min(longest, now)}, reverse=True):
            if longest <= tokens < now:
                less = dataclasses.replace(s, micro_batch_tokens=tokens)
                found.append((f"--micro-batch-tokens {tokens}", less, rows))
        length = 1 << max(7, (longest - 1).bit_length() - 1)
        while 128 <= length < longest:
            less = dataclasses.replace(s, max_length=length, micro_batch_tokens=min(now, length))
            change = f"--max-length {length} --micro-batch-tokens {less.micro_batch_tokens}"
            found.append((change, less, _shortened(rows, length)))
            length //= 2
        for rank in (s.rank // 2, s.rank // 4):
            if rank >= 1 and s.alpha is None:
                found.append((f"--rank {rank}", dataclasses.replace(s, rank=rank), rows))
        if self.how(s).resident and s.compute != "quantized":
            packed = dataclasses.replace(s, compute="quantized")
            found.append(("--compute quantized", packed, rows))
        return found

    def _quantized_peak(self, rows: Sequence[Example]) -> int:
        """The peak with a base of 4 bits in groups of 64, never as floats."""
        matrices = tuple(
            dataclasses.replace(
                m,
                bits=4,
                group_size=64,
                stored_bytes=m.numbers // 2 + m.numbers // 16,
                grid_bytes=m.numbers // 16,
            )
            for m in self.shapes.matrices
        )
        small = Work(
            dataclasses.replace(self.settings, compute="quantized"),
            dataclasses.replace(self.shapes, matrices=matrices),
            self.machine,
        )
        return small.fitting(rows)[0].peak_bytes

    def _least(self, rows: Sequence[Example]) -> Suggestion:
        """All changes together; where even that is too much, a smaller model is the answer."""
        settings = dataclasses.replace(
            self.settings,
            gradient_checkpointing="on",
            micro_batch_tokens=128,
            max_length=128,
            compute="quantized" if self.shapes.quantized else self.settings.compute,
        )
        peak = self.fitting(_shortened(rows, 128), settings)[0].peak_bytes
        if peak <= self.machine.limit_bytes:
            flags = "--max-length 128 --micro-batch-tokens 128 --gradient-checkpointing on"
            if self.shapes.quantized:
                flags += " --compute quantized"
            return Suggestion(flags, peak, True)
        kind = "a smaller base" if self.shapes.quantized else "a smaller or quantized base"
        return Suggestion(kind, peak, False)


def lanes() -> int:
    """Micro-batches that are computed side by side on this CPU (training/step.Lanes)."""
    from mlx_itune.training.identity import machine_facts

    parallel = backend.prepare().blas is not None
    return min(int(machine_facts()["cpus"]), _MAX_LANES) if parallel else 1


def measured_rate() -> float:
    """FLOP/s of a product of this machine: float32 on a CPU, bfloat16 on a GPU. Some 0.1 s."""
    dtype = mx.float32 if backend.on_cpu() else mx.bfloat16
    x, weight = mx.ones((512, 1024), dtype), mx.ones((1024, 1024), dtype)
    mx.eval(x @ weight)
    best_s = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        mx.eval([(x + n) @ weight for n in range(4)])
        best_s = min(best_s, time.perf_counter() - started)
    return 4 * 2 * 512 * 1024 * 1024 / best_s


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


def _shortened(rows: Sequence[Example], length: int) -> list[Example]:
    """The rows where none is longer, as --too-long split and truncate make them."""
    return [Row(row.input_ids[:length], row.weights[:length]) for row in rows]


def _compute_name(shapes: Shapes, how: How) -> str:
    if not shapes.quantized:
        return "float"
    return "dequantized" if how.dense else "quantized"


def _gigabytes(count_bytes: int) -> str:
    return f"{count_bytes / 1e9:.2f} GB"
