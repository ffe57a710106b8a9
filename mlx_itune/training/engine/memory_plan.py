"""What a run will take, before any weight is loaded: memory, time, and what to change."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_itune.kit.errors import ResourceError
from mlx_itune.kit.wording import size
from mlx_itune.model.engine import memory
from mlx_itune.model.engine.shapes import read_shapes
from mlx_itune.model.loading import backend
from mlx_itune.training.engine.footprint import Workload, shortened
from mlx_itune.training.engine.microbatch import Example
from mlx_itune.training.settings import TrainSettings, table

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
    notes: what was decided for the user, and rows that are not used.
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
    notes: tuple[str, ...] = ()


def workload(
    settings: TrainSettings, path: Path, config: Mapping[str, Any], examples: Sequence[Example]
) -> Workload:
    """A run over `examples` on this machine. Raises ModelError, StorageError."""
    machine = memory.machine(settings.memory_gb)
    return Workload(settings, read_shapes(path, config), machine, examples)


def make_plan(work: Workload, *, rate: Callable[[], float] | None = None) -> Plan:
    """The plan of a run. rate: FLOP/s of this machine, measured unless given. Raises DataError."""
    flops = (rate or measured_rate)() * EFFICIENCY[work.machine.device]
    lengths = [len(row.input_ids) for row in work.rows]
    how = "dequantized" if work.dense else "quantized"
    return Plan(
        peak_memory_bytes=work.peak_bytes,
        limit_bytes=work.machine.limit_bytes,
        fits=work.fits,
        breakdown=work.breakdown,
        cache_bytes=memory.cache_limit_bytes(work.machine.limit_bytes),
        time_per_epoch_s=work.epoch_seconds(flops),
        time_from="the run's floating-point operations over this machine's measured product rate",
        steps_per_epoch=-(-len(lengths) // work.settings.rows_per_step),
        tokens_per_epoch=sum(lengths),
        longest_tokens=max(lengths, default=0),
        trainable_parameters=work.parameters,
        compute=how if work.shapes.quantized else "float",
        gradient_checkpointing=work.checkpoints,
        limit_from=work.machine.source,
        suggestions=() if work.fits else suggest(work),
    )


def require_fit(work: Workload) -> None:
    """Raise ResourceError, with what to change, where a run cannot fit.

    Cheap: headers are read, a few steps are cut; nothing is tokenized, loaded or measured.
    """
    if work.fits:
        return
    suggestions = suggest(work)
    ways = [s for s in suggestions if s.fits]
    listed = [f"{s.change} ({size(s.peak_memory_bytes)})" for s in ways or suggestions]
    nothing = f"nothing alone is enough: {', '.join(listed[-3:])}"
    raise ResourceError(
        f"needs {size(work.peak_bytes)} of memory at its peak and may take "
        f"{size(work.machine.limit_bytes)} ({work.machine.source})",
        hint=f"try {' or '.join(listed[:3])}" if ways else nothing,
    )


def made_to_fit(work: Workload) -> tuple[TrainSettings, str]:
    """The settings with the first change that lets the run fit, and that change as it is typed; as
    they are, and nothing, where it fits or no change of settings is enough."""
    ways = [] if work.fits else [s.change for s in suggest(work) if s.fits]
    change = next((way for way in ways if way.startswith("--")), "")
    words = change.split()
    known = {setting.flag: setting for setting in table().values()}
    values = {
        known[flag].name: known[flag].kind(value)
        for flag, value in zip(words[::2], words[1::2], strict=True)
    }
    return dataclasses.replace(work.settings, **values), change


def suggest(work: Workload) -> tuple[Suggestion, ...]:
    """What would make the run smaller, each with its peak; those that fit come first."""
    found = [
        Suggestion(change, other.peak_bytes, other.fits)
        for change, other in _changes(work)
        if other.peak_bytes < work.peak_bytes
    ]
    found.sort(key=lambda suggestion: not suggestion.fits)
    if not any(suggestion.fits for suggestion in found):
        found.append(_least(work))
    return tuple(found)


def _changes(work: Workload) -> Iterator[tuple[str, Workload]]:
    s, now = work.settings, work.micro_batch_tokens
    longest = max(len(row.input_ids) for row in work.rows)
    if s.gradient_checkpointing != "on":
        yield "--gradient-checkpointing on", work.otherwise(gradient_checkpointing="on")
    # Less than the longest row is as much as it: a row is never cut for it.
    for tokens in sorted({now // 2, now // 4, min(longest, now)}, reverse=True):
        if longest <= tokens < now:
            yield f"--micro-batch-tokens {tokens}", work.otherwise(micro_batch_tokens=tokens)
    length = 1 << max(7, (longest - 1).bit_length() - 1)
    while 128 <= length < longest:
        less = min(now, length)
        cut = shortened(work.rows, length)
        yield (
            f"--max-length {length} --micro-batch-tokens {less}",
            work.otherwise(cut, max_length=length, micro_batch_tokens=less),
        )
        length //= 2
    for rank in (s.rank // 2, s.rank // 4):
        if rank >= 1 and s.alpha is None:
            yield f"--rank {rank}", work.otherwise(rank=rank)
    if work.resident and s.compute != "quantized":
        yield "--compute quantized", work.otherwise(compute="quantized")
    if not work.shapes.quantized:
        yield "a base in 4 bits", _quantized(work)


def _quantized(work: Workload) -> Workload:
    """The run with a base of 4 bits in groups of 64, never as floats."""
    matrices = []
    for m in work.shapes.matrices:
        codes, grid = m.numbers // 2, m.numbers // 16
        sizes: dict[str, Any] = {"stored_bytes": codes + grid, "grid_bytes": grid}
        matrices.append(dataclasses.replace(m, bits=4, group_size=64, **sizes))
    shapes = dataclasses.replace(work.shapes, matrices=tuple(matrices))
    return dataclasses.replace(work.otherwise(compute="quantized"), shapes=shapes)


def _least(work: Workload) -> Suggestion:
    """All changes together; where even that is too much, a smaller model is the answer."""
    packed = work.shapes.quantized
    how = {"compute": "quantized"} if packed else {}
    least = work.otherwise(
        shortened(work.rows, 128),
        gradient_checkpointing="on",
        micro_batch_tokens=128,
        max_length=128,
        **how,
    )
    change = "a smaller base" if packed else "a smaller or quantized base"
    if least.fits:
        change = "--max-length 128 --micro-batch-tokens 128 --gradient-checkpointing on"
        change += " --compute quantized" if packed else ""
    return Suggestion(change, least.peak_bytes, least.fits)


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
