"""Rows as they come, turns out of order and empty answers included, for steps that mend them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_itune.dataset.conversation import Conversation, Turn, find_problem, is_text
from mlx_itune.dataset.faults import Fault, RowFault
from mlx_itune.dataset.formats import parse_rows
from mlx_itune.dataset.formats.chat import ROLE_OF
from mlx_itune.dataset.reading import read_records

# Faults that steps on turns can mend.
_MENDABLE = frozenset({"role-order", "empty", "no-reply", "no-turns", "type", "missing-key"})
_LISTS = (("messages", "role", "content"), ("conversations", "from", "value"))
_PAIRS = (
    ("instruction", "output"),
    ("prompt", "completion"),
    ("question", "answer"),
    ("input", "output"),
)


@dataclass(frozen=True)
class LenientReader:
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
                row = None
                if self.mend and fault.code in _MENDABLE and self.columns is None:
                    row = _as_it_is(record.value, origin)
                yield row or fault.at(str(path), record.line, record.row)


def refusal_of(row: Conversation) -> tuple[str, str] | None:
    """Why a row could not be trained on, as (code, message); None when it could."""
    problem = find_problem(row.turns, is_text=is_text(row.tags))
    if problem is None and not any(turn.role == "assistant" for turn in row.turns):
        return "no-reply", "no assistant turn, so there is nothing to learn"
    return problem


def _as_it_is(value: Mapping[str, Any], origin: str) -> Conversation | None:
    for key, role_key, text_key in _LISTS:
        if isinstance(value.get(key), list):
            turns = _turns(value[key], role_key, text_key)
            return None if turns is None else _made(turns, origin, value, {key, "system"})
    for asked, answered in _PAIRS:
        question, answer = value.get(asked), value.get(answered)
        if isinstance(question, str) and (answer is None or isinstance(answer, str)):
            context = value.get("input") if asked == "instruction" else None
            whole = f"{question}\n\n{context}" if isinstance(context, str) and context else question
            pair = (Turn("user", whole), Turn("assistant", answer or ""))
            return _made(pair, origin, value, {asked, answered, "input", "system"})
    return None


def _turns(items: list[Any], role_key: str, text_key: str) -> tuple[Turn, ...] | None:
    turns = []
    for item in items:
        if not isinstance(item, dict) or item.get("tool_calls"):
            return None
        role = item.get(role_key, item.get("role", item.get("from")))
        text = item.get(text_key, item.get("content", item.get("value")))
        weight = item.get("weight")
        if not isinstance(role, str) or role.strip().lower() not in ROLE_OF:
            return None
        if not (text is None or isinstance(text, str)):
            return None
        if isinstance(weight, bool) or not (weight is None or isinstance(weight, (int, float))):
            return None
        turns.append(Turn(ROLE_OF[role.strip().lower()], text or "", weight))
    return tuple(turns)


def _made(
    turns: tuple[Turn, ...], origin: str, value: Mapping[str, Any], used: set[str]
) -> Conversation:
    system = value.get("system")
    if isinstance(system, str) and system.strip() and not any(t.role == "system" for t in turns):
        turns = (Turn("system", system), *turns)
    tags = {k: v for k, v in value.items() if k not in used and isinstance(v, str)}
    return Conversation(turns, origin, (), tags, checked=True)
