"""Conversation: one row of any format, frozen and validated; Fault: what is wrong with a row."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mlx_itune.kit.errors import DataError, UsageError, one_line
from mlx_itune.kit.json_files import read_bytes
from mlx_itune.kit.wording import count

ROLES = ("system", "user", "assistant", "tool")

# The value of the tag `kind` under which a single assistant turn is a conversation: plain text,
# learned whole.
TEXT_KIND = "text"

# Of a row that a model drafted, and nobody accepted yet.
DRAFT_KIND: Literal["draft"] = "draft"

_NUMBER = re.compile("[0-9]+")
_PLACE = re.compile(r"(?P<file>.*):(?P<line>[0-9]*)(?:#(?P<row>[0-9]+))?", re.DOTALL)

# What may stand before a turn; None is the start of the conversation.
_MAY_FOLLOW: dict[str, tuple[str | None, ...]] = {
    "system": (),
    "user": (None, "system", "assistant", "tool"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


@dataclass(frozen=True)
class Turn:
    """One message. `weight` says how much an assistant turn is learned (None: the run decides).
    `input`: of Alpaca's user turns, the part of `content` after the instruction and a blank line.
    `tool_call_id`: the call that a tool turn answers. `reasoning`: what an assistant thought
    first."""

    role: str
    content: str
    weight: float | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    name: str | None = None
    input: str | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None

    def message(self) -> dict[str, Any]:
        """The turn as most chat templates read it."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [dict(call) for call in self.tool_calls]
        if self.name is not None:
            message["name"] = self.name
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if self.input is not None:
            message["instruction"] = self.content.removesuffix(f"\n\n{self.input}")
            message["input"] = self.input
        return message


@dataclass(frozen=True)
class Conversation:
    """Turns in a legal order. `origin` is "file:line"; `tags` keeps string metadata of the row.
    Raises DataError at construction: unknown role, wrong order, an empty turn, a bad weight."""

    turns: tuple[Turn, ...]
    origin: str
    tools: tuple[dict[str, Any], ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    checked: InitVar[bool] = field(default=False, kw_only=True)

    def __post_init__(self, checked: bool) -> None:
        problem = None if checked else find_problem(self.turns, is_text=is_text(self.tags))
        if problem is not None:
            raise DataError(problem[1], where=self.origin)

    def messages(self) -> list[dict[str, Any]]:
        """The turns as chat templates read them."""
        return [turn.message() for turn in self.turns]


SystemMode = Literal["missing", "replace", "prepend"]


@dataclass(frozen=True)
class SystemPrompt:
    """A system prompt for rows: for those without one, instead of theirs, or before theirs."""

    text: str
    mode: SystemMode = "missing"

    def on(self, row: Conversation) -> Conversation:
        """A row with it; plain text stays as it is."""
        own = row.turns[0].content if row.turns[0].role == "system" else None
        if is_text(row.tags) or (own is not None and self.mode == "missing"):
            return row
        text = f"{self.text}\n\n{own}" if own is not None and self.mode == "prepend" else self.text
        turns = (Turn("system", text), *row.turns[own is not None :])
        return replace(row, turns=turns, checked=True)


def system_prompt(given: str | None, mode: SystemMode = "missing") -> SystemPrompt | None:
    """What `--system TEXT` or `--system @FILE` asks for. Raises UsageError, StorageError."""
    if given is None:
        return None
    text = given
    if given.startswith("@"):
        text = read_bytes(Path(given[1:])).decode("utf-8-sig", errors="replace").strip("\r\n")
    if not text.strip():
        raise UsageError("--system is empty", hint="leave it out, or give it words")
    return SystemPrompt(text, mode)


def is_text(tags: Mapping[str, str]) -> bool:
    """Whether a row with these tags may be plain text: one assistant turn and no prompt."""
    return tags.get("kind") == TEXT_KIND


def find_problem(turns: tuple[Turn, ...], *, is_text: bool = False) -> tuple[str, str] | None:
    """The first broken rule as (code, message), or None for a legal conversation. `is_text`: a
    single assistant turn is legal, as plain text that is learned whole."""
    if not turns:
        return "no-turns", "the conversation has no turns"
    is_alone = is_text and len(turns) == 1 and turns[0].role == "assistant"
    # The turn before, and the last one that is no instruction: those may change on the way.
    before, previous = None, "user" if is_alone else None
    for number, turn in enumerate(turns, 1):
        role, weight = turn.role, turn.weight
        place = f"turn {number} ({role!r})"
        if role not in _MAY_FOLLOW:
            return "unknown-role", f"{place}: the role must be one of {', '.join(ROLES)}"
        if before == "system" if role == "system" else previous not in _MAY_FOLLOW[role]:
            after = f"cannot follow {before!r}" if before else "cannot be the first turn"
            return "role-order", f"{place} {after}"
        if turn.tool_calls and role != "assistant":
            return "tool-calls", f"{place}: only an assistant turn can call tools"
        if turn.reasoning is not None and role != "assistant":
            return "reasoning", f"{place}: only an assistant turn has reasoning"
        # A tool may well return nothing; everybody else has to say something.
        if not turn.tool_calls and role != "tool" and not turn.content.strip():
            return "empty", f"{place} has no text"
        if weight is not None and not 0 <= weight < float("inf"):
            return "weight", f"{place}: weight {weight} is not a finite number >= 0"
        before = role
        if role != "system" or previous is None:
            previous = role
    return None


def origin_of(file: str, line: int, row: int | None = None) -> str:
    """The address of a row: "file:12"; "file:#17" where several rows stand on the first line.
    "file:3#17" is the 17th row of the file, among others on line 3."""
    if row is None:
        return f"{file}:{line}"
    return f"{file}:#{row}" if line == 1 else f"{file}:{line}#{row}"


def place_of(origin: str) -> tuple[str, int, int | None]:
    """(file, line, row) of an address; line 0 where it is none."""
    found = _PLACE.fullmatch(origin)
    if found is None or not (found["line"] or found["row"]):
        return origin, 0, None
    row = int(found["row"]) if found["row"] else None
    return found["file"], int(found["line"] or 1), row


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
    # Rows besides this one that have the same.
    alike: int = 0
    where: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", origin_of(self.file, self.line, self.row))

    def __str__(self) -> str:
        fix = f" (fix: {self.hint})" if self.hint else ""
        also = f"; the same in {count(self.alike, 'more row')}" if self.alike else ""
        return one_line(f"{self.where}: {self.code}: {self.message}{fix}{also}")

    @property
    def kind(self) -> str:
        """What the faults of several rows have in common: of errors, all but the numbers in it."""
        said = f"{self.code}: {self.message} {self.hint}"
        return said if self.severity == "warning" else _NUMBER.sub("#", said)


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
