"""Rows on their way through the steps; with `mend` also those that break the rules of turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_itune.dataset.conversation import Conversation, Turn, find_problem, is_text
from mlx_itune.dataset.faults import Fault, RowFault, fault_at
from mlx_itune.dataset.formats import parse_rows
from mlx_itune.dataset.formats.chat import ROLE_OF
from mlx_itune.dataset.reading import read_records

# Faults that steps on turns can mend.
_MENDABLE = frozenset({"role-order", "empty", "no-reply", "no-turns", "type", "missing-key"})
_LISTS = (("messages", "role", "content"), ("conversations", "from", "value"))
_PAIRS = (
    ("instruction", "output"), ("prompt", "completion"), ("question", "answer"), ("input", "output")
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A row: the split it goes to, as it was read, as it is now, and (step, detail) of changes."""

    split: str
    before: Conversation
    now: Conversation
    notes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class RowReader:
    """Reads rows; with `mend`, those whose turns are out of order or empty come as they are.

    Such a conversation breaks the rules that Conversation checks, until a step has mended it.
    """

    format: str | None = None
    columns: Mapping[str, str] | None = None
    mend: bool = False

    def rows(
        self, path: Path, on_bytes: Callable[[int], None] | None = None
    ) -> Iterator[Conversation | Fault]:
        """The conversations and faults of a file, in order."""
        for record in read_records(path, on_bytes=on_bytes):
            if isinstance(record, Fault):
                yield record
                continue
            origin = record.origin(str(path))
            try:
                yield from parse_rows(
                    record.value, origin, format=self.format, columns=self.columns
                )
            except RowFault as fault:
                mendable = self.mend and fault.code in _MENDABLE and self.columns is None
                row = _as_it_is(record.value, origin) if mendable else None
                yield row or fault.at(str(path), record.line, record.row)


def refusal_of(row: Conversation) -> Fault | None:
    """Why a row could not be trained on; None when it could."""
    problem = find_problem(row.turns, is_text=is_text(row.tags))
    if problem is None and not any(turn.role == "assistant" for turn in row.turns):
        problem = "no-reply", "no assistant turn, so there is nothing to learn"
    return fault_at(row.origin, *problem) if problem else None


def _as_it_is(value: Mapping[str, Any], origin: str) -> Conversation | None:
    turns: list[Turn | None] = []
    for key, role_key, text_key in _LISTS:
        if isinstance(value.get(key), list):
            turns, used = [_turn(item, role_key, text_key) for item in value[key]], {key}
            break
    else:
        for asked, answered in _PAIRS:
            question, answer = value.get(asked), value.get(answered)
            if isinstance(question, str) and isinstance(answer, (str, type(None))):
                context, used = value.get("input"), {asked, answered, "input"}
                if asked == "instruction" and isinstance(context, str) and context:
                    question = f"{question}\n\n{context}"
                turns = [Turn("user", question), Turn("assistant", answer or "")]
                break
        else:
            return None
    known = tuple(turn for turn in turns if turn is not None)
    if len(known) < len(turns):
        return None
    system = value.get("system")
    if isinstance(system, str) and system.strip() and all(t.role != "system" for t in known):
        known = (Turn("system", system), *known)
    tags = {k: v for k, v in value.items() if k not in {*used, "system"} and isinstance(v, str)}
    return Conversation(known, origin, (), tags, checked=True)


def _turn(item: Any, role_key: str, text_key: str) -> Turn | None:
    """A turn that says something or nothing; None for one that is no mere text."""
    if not isinstance(item, dict) or item.get("tool_calls"):
        return None
    role = item.get(role_key, item.get("role", item.get("from")))
    text = item.get(text_key, item.get("content", item.get("value")))
    weight = item.get("weight")
    known = ROLE_OF.get(role.strip().lower()) if isinstance(role, str) else None
    numeric = weight is None or (isinstance(weight, (int, float)) and weight is not True)
    if known is None or not numeric or not isinstance(text, (str, type(None))):
        return None
    return Turn(known, text or "", weight)
