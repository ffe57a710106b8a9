"""What a rendering is asked to do, as the flags of `data render` say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Interval

from mlx_itune.kit.errors import UsageError
from mlx_itune.kit.json_files import data_file
from mlx_itune.kit.settings import refuse_out_of_range

_MOST_SHOTS = 100

Count = Annotated[int, Interval(ge=1, le=10**6)]
OptionsMode = Literal["random", "lines", "letters", "none"]


@dataclass(frozen=True)
class RenderPlan:
    """How to render. Raises UsageError for what is no number, share or name."""

    HELP: ClassVar[Mapping[str, Sequence[str]]] = data_file(__file__, "plan")

    task: tuple[str, ...] = ()
    draws: Count = 1
    seed: Annotated[int, Interval(ge=0, le=2**63 - 1)] = 0
    shots: str = "0"
    shot_budget: Count = 1920
    model: str | None = None
    inverse_weight: Annotated[float, Interval(ge=0, le=1000000000.0)] = 0.3
    options: OptionsMode = "lines"
    split: str | None = None
    columns: str | None = None
    keep_going: bool = False

    def __post_init__(self) -> None:
        refuse_out_of_range(self)
        if self.wants_exemplars and self.model is None:
            what = "--shots needs --model, whose tokenizer measures the budget"
            raise UsageError(what, hint="such as --model starter")
        if self.model is not None and not self.wants_exemplars:
            raise UsageError("--model has no effect without --shots above 0")
        names = self.column_names
        if not all(names) or len(set(names)) < len(names):
            raise UsageError(f"--columns {self.columns!r} must be different names between commas")

    @property
    def shot_counts(self) -> tuple[int, ...]:
        """`shots` as numbers."""
        parts = [part.strip() for part in self.shots.split(",")]
        if not all(p.isascii() and p.isdigit() and int(p) <= _MOST_SHOTS for p in parts):
            raise UsageError(f"--shots {self.shots!r} is not a list of numbers such as 0,1,2,5")
        return tuple(map(int, parts))

    @property
    def wants_exemplars(self) -> bool:
        """Whether any draw asks for one."""
        return max(self.shot_counts) > 0

    @property
    def column_names(self) -> tuple[str, ...]:
        """`columns` as names."""
        return tuple(name.strip() for name in self.columns.split(",")) if self.columns else ()
