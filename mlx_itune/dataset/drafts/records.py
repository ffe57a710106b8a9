"""A folder of drafts: `drafts.jsonl`, and the decisions on them, `decisions.jsonl`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from annotated_types import Interval

from mlx_itune.dataset.conversation import DRAFT_KIND, Conversation, RowFault
from mlx_itune.dataset.formats import parse_rows
from mlx_itune.dataset.how import Reading
from mlx_itune.kit.errors import DataError
from mlx_itune.kit.files import open_regular, storage_errors
from mlx_itune.kit.json_files import plain, to_record

DRAFTS, DECISIONS, CALLS = "drafts.jsonl", "decisions.jsonl", "calls.jsonl"
Choice = Literal["accept", "edit", "reject"]
Share = Annotated[float, Interval(ge=0, le=1)]


@dataclass(frozen=True)
class Draft:
    """A row as a teacher drafted it. passage: the id of the one it is from, and source its
    document; prompt: what the teacher was asked; scores: by name, None where one does not apply;
    doubt: from 0, none, to 1."""

    id: str
    messages: list[dict[str, Any]]
    kind: Literal["draft"] = DRAFT_KIND
    passage: str | None = None
    source: str | None = None
    recipe: str = ""
    teacher: dict[str, Any] = field(default_factory=dict)
    prompt: str = ""
    scores: dict[str, float | None] = field(default_factory=dict)
    doubt: Share = 0.0


@dataclass(frozen=True)
class Decision:
    """What somebody said of a draft; the last one on it by an operator counts. messages: what an
    edit made of it; sample: whether the draft was drawn at random; at: ISO 8601, UTC."""

    id: str
    decision: Choice
    by: str
    at: str
    messages: list[dict[str, Any]] | None = None
    reason: str | None = None
    sample: bool = False


def conversation(
    messages: list[dict[str, Any]], origin: str, tags: Mapping[str, str] | None = None
) -> Conversation:
    """The row that a draft would be. Raises DataError for messages that are none."""
    try:
        (row,) = parse_rows({**(tags or {}), "messages": messages}, origin, Reading())
    except RowFault as fault:
        raise DataError(fault.message, where=origin, hint=fault.hint or None) from fault
    return row


def read_drafts(folder: Path) -> dict[str, tuple[Draft, str]]:
    """The drafts by id, in their order, each with its place "FILE:LINE". Raises DataError."""
    found: dict[str, tuple[Draft, str]] = {}
    path = folder / DRAFTS
    if not path.is_file():
        hint = "`mlx-itune data grow` makes a folder of drafts"
        raise DataError(f"has no {DRAFTS}", where=str(folder), hint=hint)
    for place, draft in _records(path, Draft):
        if draft.id in found:
            raise DataError(f"the id {draft.id} is taken by another draft", where=place)
        conversation(draft.messages, place)
        found[draft.id] = draft, place
    return found


def read_decisions(folder: Path) -> list[Decision]:
    """The decisions in their order; a last line that was cut is left out. Raises DataError."""
    path = folder / DECISIONS
    return [each for _, each in _records(path, Decision)] if path.is_file() else []


def append(folder: Path, decision: Decision) -> None:
    """Add a decision, on the disk when this returns. Raises StorageError."""
    line = orjson.dumps(plain(decision), option=orjson.OPT_APPEND_NEWLINE)
    path = folder / DECISIONS
    with storage_errors(path), path.open("ab") as file:
        # A line that was cut by a crash would spoil the next one.
        if file.tell() and path.read_bytes()[-1:] != b"\n":
            file.write(b"\n")
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _records(path: Path, cls: type[Any]) -> Iterator[tuple[str, Any]]:
    with open_regular(path, DataError) as file:
        lines = file.read().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            yield place, to_record(line, cls, where=place, error=DataError)
        except DataError:
            # Only what a crash cut, the last line without an end, is no fault of the file.
            if cls is Decision and number == len(lines):
                return
            raise
