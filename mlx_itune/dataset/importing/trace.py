"""What happened to one row: from the line of a raw file to its place in a data folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from mlx_itune.dataset.formats import parse_rows
from mlx_itune.dataset.importing.folder import ORIGIN
from mlx_itune.dataset.importing.provenance import (
    SPLITS,
    DatasetRecord,
    row_id,
    traceable,
)
from mlx_itune.kit.errors import UsageError
from mlx_itune.kit.files import storage_errors
from mlx_itune.kit.wording import listing

_ID = re.compile(r"[0-9a-f]{16}")
_PLACE = re.compile(rf"({'|'.join(SPLITS)})(?:\.jsonl)?(:\d+)")
_FIRST = {"import": "imported", "render": "rendered"}
# Equal rows share an id; past this many, more would tell nothing new.
_MOST = 20

Line = dict[str, Any]


@dataclass(frozen=True)
class History:
    """One row: where it is `now` ("train:12"; None for one that is gone) and where it came from.

    `line` is a number, or "#17" for a row that has no line of its own. A step says what it did
    with the row, when, by whom and with which settings, and why it changed or removed it.
    """

    id: str | None
    now: str | None
    file: str
    line: int | str
    sha256: str | None
    text: str | None
    steps: tuple[dict[str, Any], ...]


def trace(folder: Path, row: str) -> list[History]:
    """The histories of a row, one per copy or split piece of that name; 20 at most.

    `row` is an id (16 hex digits), a place ("train:12", "train.jsonl:12") in `folder`, or the
    file and line it had when it was first read ("gsm8k.jsonl:7").
    Raises UsageError when no row answers to it, DataError for a folder without a record.
    """
    record = traceable(folder)
    place = _PLACE.fullmatch(row)
    labels = {label for step in record.steps for label in step.inputs}
    labels |= {source.path for source in record.sources}
    # A path in front of a raw file's name does no harm.
    known = row.rpartition(":")[0] in labels
    wanted = {place[1] + place[2] if place else row if known else Path(row).name}
    by_id = bool(_ID.fullmatch(row))
    changes: dict[str, Line] = {}
    found: list[tuple[str, Line]] = []
    for name in ("changed", place[1]) if place else ("changed", *SPLITS, "removed", "rejected"):
        for at, line in _lines(folder, name):
            origin = line[ORIGIN]
            is_it = (at if place else origin) in wanted or (by_id and _id_of(line) == row)
            if name == "changed":
                changes[origin] = line
                wanted |= {origin} if is_it else set()
            elif is_it:
                found.append((at, line))
    if not found:
        raise UsageError(f"no row {row!r} is in {folder.name or folder}", hint=_hint(record, row))
    return [_history(record, at, line, changes) for at, line in found[:_MOST]]


def _lines(folder: Path, name: str) -> Iterator[tuple[str, Line]]:
    """Each line of a file of a data folder with its place, "train:12"; every one has an origin."""
    path = folder / f"{name}.jsonl"
    if not path.is_file():
        return
    with storage_errors(path), path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = orjson.loads(raw)
            except orjson.JSONDecodeError:
                continue  # the folder's seal tells
            if isinstance(line, dict):
                line[ORIGIN] = str(line.get(ORIGIN, f"{name}.jsonl:{number}"))
                yield f"{name}:{number}", line


def _history(record: DatasetRecord, at: str, line: Line, changes: dict[str, Line]) -> History:
    file, _, place = line[ORIGIN].rpartition(":")
    name = at.partition(":")[0]
    now = at if name in SPLITS else None
    hashes = {label: digest for step in record.steps for label, digest in step.inputs.items()}
    hashes |= {source.path: source.sha256 or "" for source in record.sources}
    steps: list[dict[str, Any]] = []
    known = {hashes.get(file)}
    for number, step in enumerate(record.steps, 1):
        if known & set(step.inputs.values()):
            known |= set(step.outputs.values())
            action = "kept" if steps else _FIRST.get(step.command, "read")
            steps.append({"n": number, **step.told, "action": action})
    told = changes.get(line[ORIGIN]) if now else line
    if told and steps:
        steps[-1]["action"] = "changed" if now else name
        steps[-1]["reason"] = told.get("reason") or told.get("code") or ""
        steps[-1]["detail"] = told.get("detail") or told.get("message") or ""
    number_or_place = int(place) if place.isdigit() else place
    text = orjson.dumps(line).decode() if now else None
    return History(_id_of(line), now, file, number_or_place, hashes.get(file), text, tuple(steps))


def _id_of(line: Line) -> str | None:
    """The id of a row of a split, or of the row that a list shows."""
    row = line if "messages" in line else line.get("row")
    return next((row_id(one) for one in parse_rows(row, "")), None) if row else None


def _hint(record: DatasetRecord, row: str) -> str:
    label = Path(row).name.rpartition(":")[0]
    gone = [
        f"{rows:,} by {dashes}{why} of data {step.command}"
        for step in record.steps
        for dashes, what in (("--", step.left_out), ("", step.removed))
        for why, rows in what.items()
    ]
    if gone and any(Path(source.path).name == label for source in record.sources):
        return f"rows that earlier steps left out are counted, not listed ({listing(gone, 8)})"
    return "name it as train:12, as file.jsonl:12 of a source, or by its id"
