"""What is wrong with a row: a stable code, a place, one line, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mlx_itune.dataset.conversation import origin_of, place_of
from mlx_itune.kit.errors import one_line

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Fault:
    """Why one row is refused (error) or worth a look (warning), at `where`, as `origin_of` writes
    it. `line` and `row` count from 1; `row` is given where several stand on one line."""

    file: str
    line: int
    code: str
    message: str
    hint: str = ""
    severity: Severity = "error"
    row: int | None = None
    where: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", origin_of(self.file, self.line, self.row))

    def __str__(self) -> str:
        fix = f" (fix: {self.hint})" if self.hint else ""
        return one_line(f"{self.where}: {self.code}: {self.message}{fix}")


class RowFault(Exception):
    """Raised while a row is read: a stable code, one line, and optionally what to do."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def at(self, file: str, line: int, row: int | None = None) -> Fault:
        """The same as a Fault with its place."""
        return Fault(file, line, self.code, self.message, self.hint, row=row)


def fault_at(
    origin: str, code: str, message: str, hint: str = "", severity: Severity = "error"
) -> Fault:
    """The fault of the row at an address."""
    file, line, row = place_of(origin)
    return Fault(file, line, code, message, hint, severity, row)
