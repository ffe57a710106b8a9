"""What memory this machine can give, limits on what MLX takes of it, and what a model's
activations take, roughly: enough to choose how a step is computed.

On an Apple GPU that is the recommended working set: beyond it macOS swaps, and wired memory that
nothing can reclaim has ended in kernel panics. On Linux it is what the kernel calls available, or
what the control group of the process leaves, if that is less.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from mlx_itune.model.adapters.lowrank import LINEAR, SWITCH, LowRank, matrix_shape
from mlx_itune.model.engine.loss import chunk_rows, vocabulary

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
# Where Linux says no limit, the number is of the size of the address space.
_NO_LIMIT_BYTES = 1 << 60
# Of what is available: the rest is for Python, the tokenizer, the page cache and a wrong guess.
_SHARE_OF_WORKING_SET = 0.95
_SHARE_OF_AVAILABLE = 0.90
# Of the limit: freed buffers that MLX keeps for the next step rather than give back.
_CACHE_SHARE = 0.125
_CACHE_BYTES, _CPU_CACHE_BYTES = 2 << 30, 1 << 28
# Numbers kept per position and per number that goes into or comes out of a linear layer: norms,
# gates and attention keep theirs too. Measured: 1.1 to 1.4 on llama and qwen3 shapes.
_KEPT = 2.0
# Copies of a chunk's logits that stand at once: themselves, shifted, and their gradient.
_LOGITS_COPIES = 3
# Of all memory, where no budget is given.
_BUDGET_SHARE = 0.7


@dataclass(frozen=True)
class Machine:
    """Bytes: `total` memory, what is `available` to us now, and the `limit` that a run may fill.

    `source` says in words where `available` comes from.
    """

    device: str
    total_bytes: int
    available_bytes: int
    limit_bytes: int
    source: str


def machine(memory_gb: float | None = None) -> Machine:
    """What this machine can give; `memory_gb` (of 10**9 bytes) is a limit that the user set."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    device = "gpu" if mx.default_device() == mx.gpu else "cpu"
    info = dict(mx.device_info())
    working_set = info.get("max_recommended_working_set_size")
    memory_size = info.get("memory_size", info.get("total_memory"))
    if device == "gpu" and isinstance(working_set, int) and working_set > 0:
        total = memory_size if isinstance(memory_size, int) else total
        available, share, source = working_set, _SHARE_OF_WORKING_SET, "GPU working set"
    elif device == "gpu" and isinstance(memory_size, int) and memory_size > 0:
        free = info.get("free_memory")
        total = memory_size
        available = free if isinstance(free, int) and free > 0 else memory_size
        share, source = _SHARE_OF_AVAILABLE, "GPU memory"
    else:
        available, source = _available_bytes(total)
        share = _SHARE_OF_AVAILABLE
    limit = int(available * share)
    if memory_gb is not None:
        limit, source = int(memory_gb * 1e9), "--memory-gb"
    return Machine(device, total, available, limit, source)


def cache_limit_bytes(limit_bytes: int) -> int:
    """Freed buffers that MLX may keep for reuse, of a run's limit."""
    most = _CPU_CACHE_BYTES if mx.default_device() == mx.cpu else _CACHE_BYTES
    return min(int(limit_bytes * _CACHE_SHARE), most)


@contextmanager
def limits(limit_bytes: int | None = None) -> Iterator[int]:
    """Bound what MLX takes for the block, and put the bounds back after it; yields the limit.

    limit_bytes: of a `Machine`, by default this one's. Above the memory limit MLX waits for work
    in flight before it allocates more. Wired memory is bounded by the working set: the default of
    0 lets macOS page weights out in the middle of a step, the maximum lets nothing else run.
    """
    here = machine()
    limit = here.limit_bytes if limit_bytes is None else limit_bytes
    before = [
        (mx.set_memory_limit, mx.set_memory_limit(limit)),
        (mx.set_cache_limit, mx.set_cache_limit(cache_limit_bytes(limit))),
    ]
    try:
        if mx.metal.is_available():
            before.append((mx.set_wired_limit, mx.set_wired_limit(min(limit, here.limit_bytes))))
        yield limit
    finally:
        for put, value in reversed(before):
            put(value)
        mx.clear_cache()


def _available_bytes(total: int) -> tuple[int, str]:
    """(bytes, where they are from) on a machine whose device is its CPU."""
    found = [(total // 2, "half of this machine's memory")]
    with suppress(OSError, ValueError, IndexError):
        lines = (_PROC / "meminfo").read_text(encoding="ascii").splitlines()
        free = next((line for line in lines if line.startswith("MemAvailable:")), "")
        found = [(int(free.split()[1]) * 1024, "available memory")]
    group = _cgroup_left_bytes()
    if group is not None:
        found.append((group, "this process's control group"))
    return min(found)


def _cgroup_left_bytes() -> int | None:
    """What the tightest of our control groups and of those around it leaves; None without one."""
    left = []
    for limit, used, stat in _cgroup_files():
        bound, now = _number(limit), _number(used)
        if bound is None or now is None or bound >= _NO_LIMIT_BYTES:
            continue
        # Cached file pages are counted as used and go at once when memory is short.
        left.append(max(0, bound - max(0, now - _inactive_file_bytes(stat))))
    return min(left, default=None)


def _cgroup_files() -> Iterator[tuple[Path, Path, Path]]:
    """(limit, use, statistics) of every group that holds this process, version 2 or 1."""
    try:
        lines = (_PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        second = number == "0" and not controllers
        if not second and "memory" not in controllers.split(","):
            continue
        root = _CGROUPS if second else _CGROUPS / "memory"
        names = (
            ("memory.max", "memory.current")
            if second
            else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        group = root / path.lstrip("/")
        # In a container the group's own path is often not there, and its root is the group.
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            yield folder / names[0], folder / names[1], folder / "memory.stat"


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _inactive_file_bytes(stat: Path) -> int:
    try:
        values = dict(line.split()[:2] for line in stat.read_text("ascii").splitlines())
        return int(values.get("total_inactive_file", values.get("inactive_file", "0")))
    except (OSError, ValueError):
        return 0


def bytes_per_token(model: nn.Module) -> int:
    """What all blocks keep for the backward pass of one position, without checkpointing."""
    numbers = 0
    for block in model.layers:
        for _, module in block.named_modules():
            if isinstance(module, LowRank):
                continue
            if isinstance(module, LINEAR) or hasattr(module, "bits"):
                numbers += sum(matrix_shape(module)) if "weight" in module else 0
            elif isinstance(module, SWITCH):
                numbers += int(module.weight.shape[-2] + module.weight.shape[-1])
    norm = next((a for a in model.parameters().values() if isinstance(a, mx.array)), None)
    return kept_bytes(numbers, 4 if norm is None else int(norm.itemsize))


def attention_bytes(model: nn.Module) -> int:
    """The same of attention, for one position and each key that it sees; float32."""
    named = ("num_attention_heads", "n_heads", "num_heads")
    config = dict(vars(getattr(model, "args", object)))
    heads = next((config[name] for name in named if isinstance(config.get(name), int)), 1)
    return 4 * len(model.layers) * heads


def kept_bytes(numbers: int, item_bytes: int) -> int:
    """The same, where so many numbers go into and come out of linear layers."""
    return int(_KEPT * numbers * item_bytes)


def logits_bytes(model: nn.Module) -> int:
    """What one chunk of logits takes, with what its gradient is made of."""
    return logits_of(vocabulary(model), hidden_size(model))


def logits_of(vocabulary_size: int, hidden: int) -> int:
    """The same by sizes."""
    return _LOGITS_COPIES * 4 * chunk_rows(vocabulary_size, hidden) * vocabulary_size


def default_budget_bytes() -> int:
    """What a run may take of this machine; the same at each start, whatever else is running."""
    here = machine()
    return here.limit_bytes if here.device == "gpu" else int(_BUDGET_SHARE * here.total_bytes)


def hidden_size(model: nn.Module) -> int:
    """The width of a model's blocks; 0 where no token table tells."""
    tables = (m for _, m in model.named_modules() if hasattr(m, "as_linear") and "weight" in m)
    return next((matrix_shape(table)[1] for table in tables), 0)
