"""What a rendering is asked to do, as the flags of `data render` say it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from mlx_itune.kit.errors import UsageError
from mlx_itune.kit.settings import Help, refuse_out_of_range

_MOST_SHOTS = 100

Count = Annotated[int, Interval(ge=1, le=10**6)]
OptionsMode = Literal["random", "lines", "letters", "none"]


@dataclass(frozen=True)
class RenderPlan:
    """How to render. Raises UsageError for what is no number, share or name."""

    task: Annotated[
        tuple[str, ...], Help("Render this task only; without it, every task of the file.", "NAME")
    ] = ()
    draws: Annotated[Count, Help("Examples per row and task.")] = 1
    seed: Annotated[int, Interval(ge=0, le=2**63 - 1), Help("Of everything that is drawn.")] = 0
    shots: Annotated[
        str, Help("Numbers of exemplars; each example draws one of them.", "N,N,...")
    ] = "0"
    shot_budget: Annotated[
        Count, Help("Exemplars are taken out of a prompt until it is this short.", "TOKENS")
    ] = 1920
    model: Annotated[
        str | None,
        Help("Whose tokenizer measures the budget: 'starter', a directory or a Hub id.", "MODEL"),
    ] = None
    inverse_weight: Annotated[
        float,
        Interval(ge=0, le=1e9),
        Help("How often inverse templates are drawn, to 1 for the others."),
    ] = 0.3
    options: Annotated[
        OptionsMode, Help("How answer options are laid out; with letters the answer is the letter.")
    ] = "lines"
    split: Annotated[
        str | None,
        Help(
            "train/valid/test, such as 0.9/0.05/0.05; without it, every row is a training row.",
            "SHARES",
        ),
    ] = None
    columns: Annotated[
        str | None, Help("Names of the columns of a table without a header line.", "NAME,NAME,...")
    ] = None
    keep_going: Annotated[
        bool, Help("Leave out rows that cannot be rendered; rejected.jsonl lists them.")
    ] = False

    def __post_init__(self) -> None:
        refuse_out_of_range(self)
        if self.wants_exemplars and self.model is None:
            raise UsageError(
                "--shots needs --model, whose tokenizer measures the budget",
                hint="such as --model starter",
            )
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
