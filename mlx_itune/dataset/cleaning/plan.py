"""What a cleaning is asked to do, as the flags of `data clean` say it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from mlx_itune.kit.errors import UsageError
from mlx_itune.kit.settings import Help, refuse_out_of_range

# Names between commas.
Names = str | None


@dataclass(frozen=True)
class CleanPlan:
    """How to clean. Raises UsageError for what is no number, share or name."""

    steps: Annotated[Names, Help("Steps, run in this order.", "S1,S2,...")] = None
    preset: Annotated[
        Literal["default", "sharegpt", "alpaca"] | None,
        Help("A list of steps made for a kind of data (default: default, unless --steps)."),
    ] = None
    drop: Annotated[Names, Help("Lints whose rows the step 'refusals' drops.", "CODE,...")] = None
    pii: Annotated[
        Names,
        Help("Redact personal data of these kinds, or 'all'; adds the step 'pii'.", "KIND,..."),
    ] = None
    unify_system: Annotated[bool, Help("Add the step 'unify-system'.")] = False
    language: Annotated[
        Names,
        Help(
            "Keep rows mostly in these scripts, such as latin or cjk; adds the step 'language'.",
            "SCRIPT,...",
        ),
    ] = None
    script_share: Annotated[
        float, Interval(ge=0, le=1), Help("Least share of the letters for --language.")
    ] = 0.6
    min_chars: Annotated[int, Interval(ge=0, le=2**63 - 1), Help("For the step 'too-short'.")] = 16
    similarity: Annotated[
        float,
        Interval(ge=0.5, le=1),
        Help("For the step 'near-duplicates': least Jaccard similarity of the words."),
    ] = 0.8
    keep_going: Annotated[
        bool, Help("Leave broken rows out and list them, instead of writing nothing.")
    ] = False
    operator: Annotated[str | None, Help("Name for the ledger; yours unless given.", "WHO")] = None

    def __post_init__(self) -> None:
        refuse_out_of_range(self)
        if self.steps is not None and self.preset is not None:
            raise UsageError("give --steps or --preset, not both")

    def names(self, flag: Literal["steps", "drop", "pii", "language"]) -> list[str]:
        """The names of a list; none where it is not given. Raises UsageError for an empty one."""
        text: Names = getattr(self, flag)
        names = [] if text is None else [name.strip() for name in text.split(",")]
        if not all(names):
            raise UsageError(f"--{flag} {text!r} has an empty name")
        return names
