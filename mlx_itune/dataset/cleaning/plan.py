"""What a cleaning is asked to do, as the flags of `data clean` say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Interval

from mlx_itune.dataset.conversation import SystemMode, SystemPrompt, system_prompt
from mlx_itune.kit.errors import UsageError
from mlx_itune.kit.json_files import data_file
from mlx_itune.kit.settings import refuse_out_of_range

# Names between commas.
Names = str | None


@dataclass(frozen=True)
class CleanPlan:
    """How to clean. Raises UsageError for what is no number, share or name."""

    HELP: ClassVar[Mapping[str, Sequence[str]]] = data_file(__file__, "plan")

    steps: Names = None
    preset: Literal["default", "sharegpt", "alpaca"] | None = None
    drop: Names = None
    pii: Names = None
    unify_system: bool = False
    language: Names = None
    script_share: Annotated[float, Interval(ge=0, le=1)] = 0.6
    min_chars: Annotated[int, Interval(ge=0, le=2**63 - 1)] = 16
    similarity: Annotated[float, Interval(ge=0.5, le=1)] = 0.8
    keep_going: bool = False
    system: str | None = None
    system_mode: SystemMode = "missing"
    operator: str | None = None

    def __post_init__(self) -> None:
        refuse_out_of_range(self)
        if self.steps is not None and self.preset is not None:
            raise UsageError("give --steps or --preset, not both")

    @property
    def system_prompt(self) -> SystemPrompt | None:
        """What `system` asks for. Raises UsageError, StorageError."""
        return system_prompt(self.system, self.system_mode)

    def names(self, flag: Literal["steps", "drop", "pii", "language"]) -> list[str]:
        """The names of a list; none where it is not given. Raises UsageError for an empty one."""
        text: Names = getattr(self, flag)
        names = [] if text is None else [name.strip() for name in text.split(",")]
        if not all(names):
            raise UsageError(f"--{flag} {text!r} has an empty name")
        return names
