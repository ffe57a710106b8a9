"""What an import is asked to do, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_itune.dataset.faults import Fault
from mlx_itune.dataset.importing.inputs import Inputs
from mlx_itune.dataset.importing.select import Condition
from mlx_itune.dataset.importing.splitting import Achieved, Shares


@dataclass(frozen=True)
class Plan:
    """What to import and how; see `mlx-itune data import --help`."""

    inputs: Inputs
    format: str | None = None
    kind: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    where: tuple[Condition, ...] = ()
    sample: int | None = None
    seed: int = 0
    shares: Shares | None = None
    group_by: str | None = None
    stratify: str | None = None
    cap: int | None = None
    weights: Mapping[str, float] | None = None
    strict: bool = False


@dataclass
class Outcome:
    """What came of it. `written` is False when faults (strict) or no good row forbade it."""

    rows: int = 0
    accepted: int = 0
    rejected: int = 0
    written: bool = False
    splits: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    warnings: list[Fault] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    sources: Sequence[Mapping[str, Any]] = ()
    split: Achieved | None = None
    mix: Mapping[str, Mapping[str, float]] | None = None
    notes: list[str] = field(default_factory=list)
    ledger: str | None = None
