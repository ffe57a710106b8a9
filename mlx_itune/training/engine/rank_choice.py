"""The processes of one run under `mlx.launch`: who this one is, and what goes between them.

Data-parallel: each process has the whole model and computes a share of every step's rows; sums of
gradients go around (mx.distributed: ring, JACCL, NCCL or MPI), and all make the same update. Only
process 0 writes; the others' files go to a directory of their own that ends with them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

from mlx_itune.kit.errors import ResourceError, UsageError
from mlx_itune.kit.wording import brief
from mlx_itune.training.settings import TrainSettings

# What the launchers of MLX's back ends set for a process.
_LAUNCHED = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
Item = TypeVar("Item")


class LostRankError(ResourceError):
    """Another process of the run is gone."""


class Ranks:
    """`index` of `size` processes; alone if group is None. Every method but `share` is called by
    all processes, in the same order. Raises LostRankError."""

    def __init__(self, group: Any = None) -> None:
        self._group = group if group is not None and group.size() > 1 else None
        self.index: int = self._group.rank() if self._group else 0
        self.size: int = self._group.size() if self._group else 1

    def share(self, items: Sequence[Item], costs: Sequence[float]) -> list[Item]:
        """This process's part of the items: in order of cost, each to who has least to do."""
        if self._group is None:
            return list(items)
        loads = [0.0] * self.size
        mine = []
        for place in sorted(range(len(items)), key=lambda place: -costs[place]):
            rank = loads.index(min(loads))
            loads[rank] += costs[place]
            if rank == self.index:
                mine.append(items[place])
        return mine

    def total(self, arrays: Sequence[mx.array]) -> list[mx.array]:
        """The sums of each array (float32) over all processes; the same bits in each."""
        if self._group is None:
            return list(arrays)
        # In one: of several on their way, only the first would notice that a process is gone.
        flat = [array.reshape(-1) for array in arrays]
        whole = mx.distributed.all_sum(mx.concatenate(flat), group=self._group)
        cuts = [*itertools.accumulate(array.size for array in arrays)][:-1]
        pieces = mx.split(self._done([whole])[0], cuts)
        return [piece.reshape(array.shape) for piece, array in zip(pieces, arrays, strict=True)]

    def numbers(self, *values: float) -> list[float]:
        """The sums of a few numbers over all processes, in float64."""
        if self._group is None:
            return list(values)
        # MLX has no float64 on GPUs: the bytes go around, and all add up the same numbers.
        halves = mx.array(np.array([values], np.float64).view(np.uint32))
        (all_halves,) = self._done([mx.distributed.all_gather(halves, group=self._group)])
        rows = np.ascontiguousarray(np.asarray(all_halves)).view(np.float64)
        return [float(sum(column)) for column in rows.T.tolist()]

    def any(self, value: int) -> int:
        """The largest of a number >= 0 over all processes."""
        if self._group is None:
            return value
        mine = mx.array([value], mx.int32)
        (found,) = self._done([mx.distributed.all_gather(mine, group=self._group)])
        return int(np.asarray(found).max())

    def told(self, data: bytes) -> bytes:
        """What process 0 has."""
        if self._group is None:
            return data
        (length,) = self.numbers(len(data) if self.index == 0 else 0)
        mine = np.zeros(-(-int(length) // 4) * 4, np.uint8)
        if self.index == 0:
            mine[: len(data)] = np.frombuffer(data, np.uint8)
        (found,) = self.total([mx.array(mine.view(np.uint32))])
        return np.asarray(found).tobytes()[: int(length)]

    def require_same(self, facts: Mapping[str, Any]) -> None:
        """Raise UsageError, in every process, where one has other facts than process 0."""
        if self._group is None:
            return
        first = json.loads(self.told(json.dumps(facts, default=str).encode()))
        mine = json.loads(json.dumps(facts, default=str))
        other = [name for name in first if first[name] != mine.get(name)]
        if self.any(len(other)):
            named = f"{', '.join(other)} here" if other else "something in another process"
            raise UsageError(
                f"{named} is not what process 0 has",
                where=f"process {self.index} of {self.size}",
                hint="the same versions, model, rows and settings on every machine",
            )

    def _done(self, arrays: list[mx.array]) -> list[mx.array]:
        try:
            mx.eval(arrays)
        except RuntimeError as error:
            raise LostRankError(
                f"another process of this run is gone ({brief(error)})",
                where=f"process {self.index} of {self.size}",
            ) from error
        return arrays


@functools.cache
def ranks() -> Ranks:
    """This process's place in its launch. Raises UsageError where the others cannot be reached."""
    if not any(name in os.environ for name in _LAUNCHED):
        return Ranks()
    try:
        return Ranks(mx.distributed.init())
    except RuntimeError as error:
        raise UsageError(
            f"mx.distributed does not start: {brief(error)}",
            hint="see docs/two-macs.md; without mlx.launch a run needs no other machine",
        ) from error


def is_writer() -> bool:
    """Whether this process writes the run and speaks to the user."""
    return ranks().index == 0


@contextmanager
def own_place(settings: TrainSettings) -> Iterator[TrainSettings]:
    """The settings of this process: where it does not write the run, with a place of its own."""
    if is_writer():
        yield settings
        return
    with tempfile.TemporaryDirectory(prefix="mlx-itune-") as folder:
        home = Path(folder)
        yield dataclasses.replace(settings, out=home / "adapter", runs=home / "runs")


@contextmanager
def mirrored(folder: Path, needed: Callable[[Path], Sequence[str]]) -> Iterator[Path]:
    """Process 0's run folder; in other processes, which may have no such folder, a copy of the
    files in it that are `needed`."""
    if ranks().size == 1:
        yield folder
        return
    told = ranks().told
    names = needed(folder) if is_writer() else []
    listed = json.loads(told(json.dumps([*names]).encode()))
    files = {name: told((folder / name).read_bytes() if is_writer() else b"") for name in listed}
    if is_writer():
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="mlx-itune-") as place:
        copy = Path(place) / "run"
        for name, data in files.items():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(data)
        yield copy
