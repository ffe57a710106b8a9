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

from mlx_itune.kit.errors import ResourceError
from mlx_itune.model.engine import memory
from mlx_itune.model.engine.shapes import Shapes, read_shapes
from mlx_itune.model.loading import backend
from mlx_itune.model.loading.base import resolve
from mlx_itune.training.engine.microbatch import Example
from mlx_itune.training.plan import footprint
from mlx_itune.training.plan.step_shape import How
from mlx_itune.training.plan.workload import Row, Work, shortened
from mlx_itune.training.settings import TrainSettings

# Of the rate of a large product, what a step reaches.
EFFICIENCY = {"cpu": 0.25, "gpu": 0.35}


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
        trainable_parameters=footprint.parameters(work.adapted(settings), how),
        compute=_compute_name(work.shapes, how),
        gradient_checkpointing=work.checkpoints(rows, how),
        limit_from=work.machine.source,
        suggestions=() if fits else suggest(work, rows),
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
        raise refusal(found.peak_bytes, work.machine, suggest(work, rows))


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


def suggest(work: Work, rows: Sequence[Example]) -> tuple[Suggestion, ...]:
    """What would make the run smaller, each with its peak; those that fit come first."""
    found = []
    now = work.fitting(rows)[0].peak_bytes
    for change, settings, cut in _changes(work, rows):
        peak = work.fitting(cut, settings)[0].peak_bytes
        if peak < now:
            found.append(Suggestion(change, peak, peak <= work.machine.limit_bytes))
    if not work.shapes.quantized:
        smaller = _quantized_peak(work, rows)
        if smaller < now:
            fits = smaller <= work.machine.limit_bytes
            found.append(Suggestion("a base in 4 bits", smaller, fits))
    found.sort(key=lambda suggestion: not suggestion.fits)
    if not any(suggestion.fits for suggestion in found):
        found.append(_least(work, rows))
    return tuple(found)


def _changes(
    work: Work, rows: Sequence[Example]
) -> list[tuple[str, TrainSettings, Sequence[Example]]]:
    s = work.settings
    longest = max(len(row.input_ids) for row in rows)
    found: list[tuple[str, TrainSettings, Sequence[Example]]] = []
    if s.gradient_checkpointing != "on":
        on = dataclasses.replace(s, gradient_checkpointing="on")
        found.append(("--gradient-checkpointing on", on, rows))
    # Less than the longest row is as much as it: a row is never cut for it.
    now = work.how(s, rows).micro_batch_tokens
    for tokens in sorted({now // 2, now // 4, min(longest, now)}, reverse=True):
        if longest <= tokens < now:
            less = dataclasses.replace(s, micro_batch_tokens=tokens)
            found.append((f"--micro-batch-tokens {tokens}", less, rows))
    length = 1 << max(7, (longest - 1).bit_length() - 1)
    while 128 <= length < longest:
        less = dataclasses.replace(s, max_length=length, micro_batch_tokens=min(now, length))
        change = f"--max-length {length} --micro-batch-tokens {less.micro_batch_tokens}"
        found.append((change, less, shortened(rows, length)))
        length //= 2
    for rank in (s.rank // 2, s.rank // 4):
        if rank >= 1 and s.alpha is None:
            found.append((f"--rank {rank}", dataclasses.replace(s, rank=rank), rows))
    if work.how(s, rows).resident and s.compute != "quantized":
        packed = dataclasses.replace(s, compute="quantized")
        found.append(("--compute quantized", packed, rows))
    return found


def _quantized_peak(work: Work, rows: Sequence[Example]) -> int:
    """The peak with a base of 4 bits in groups of 64, never as floats."""
    matrices = tuple(
        dataclasses.replace(
            m,
            bits=4,
            group_size=64,
            stored_bytes=m.numbers // 2 + m.numbers // 16,
            grid_bytes=m.numbers // 16,
        )
        for m in work.shapes.matrices
    )
    small = Work(
        dataclasses.replace(work.settings, compute="quantized"),
        dataclasses.replace(work.shapes, matrices=matrices),
        work.machine,
    )
    return small.fitting(rows)[0].peak_bytes


def _least(work: Work, rows: Sequence[Example]) -> Suggestion:
    """All changes together; where even that is too much, a smaller model is the answer."""
    settings = dataclasses.replace(
        work.settings,
        gradient_checkpointing="on",
        micro_batch_tokens=128,
        max_length=128,
        compute="quantized" if work.shapes.quantized else work.settings.compute,
    )
    peak = work.fitting(shortened(rows, 128), settings)[0].peak_bytes
    if peak <= work.machine.limit_bytes:
        flags = "--max-length 128 --micro-batch-tokens 128 --gradient-checkpointing on"
        if work.shapes.quantized:
            flags += " --compute quantized"
        return Suggestion(flags, peak, True)
    kind = "a smaller base" if work.shapes.quantized else "a smaller or quantized base"
    return Suggestion(kind, peak, False)


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


def _compute_name(shapes: Shapes, how: How) -> str:
    if not shapes.quantized:
        return "float"
    return "dequantized" if how.dense else "quantized"


def _gigabytes(count_bytes: int) -> str:
    return f"{count_bytes / 1e9:.2f} GB"
