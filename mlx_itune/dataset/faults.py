"""What is wrong with a row: a stable code, a place, one line, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Fault:
    """Why one row is refused (error) or worth a look (warning). `line` counts from 1."""

    file: str
    line: int
    code: str
    message: str
    hint: str = ""
    severity: Severity = "error"

    def __str__(self) -> str:
        fix = f" (fix: {self.hint})" if self.hint else ""
        return f"{self.file}:{self.line}: {self.code}: {self.message}{fix}"


class RowFault(Exception):
    """Raised while a row is read: a stable code, one line, and optionally what to do."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def at(self, file: str, line: int) -> Fault:
        """The same as a Fault with its place."""
        return Fault(file, line, self.code, self.message, self.hint)
