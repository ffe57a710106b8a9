"""dataset.json: where a data folder's rows come from and what was done to them, step by step. Steps
name what they read and wrote by SHA-256. The `seal` is the SHA-256 of the rest of the record and so
stands for every byte of the folder; whoever can rewrite that can also seal it anew."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import orjson

from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.formats import parse_rows
from mlx_itune.dataset.how import Reading
from mlx_itune.dataset.sources import said_bytes
from mlx_itune.kit.errors import DataError, UsageError
from mlx_itune.kit.files import sha256_file, storage_errors
from mlx_itune.kit.json_files import canonical, plain, read_object, to_record, write_object
from mlx_itune.kit.wording import listing

DATASET = "dataset.json"
SPLITS = ("train", "valid", "test")
# The field of a row that says where it was first read from.
ORIGIN = "origin"
LISTS = ("changed", "removed", "rejected")
# Folders of version 1 had a ledger, and rows without an origin.
VERSION = 2


@dataclass(frozen=True)
class SourceRecord:
    """One raw file; `path` is what the rows' origins call it. `hub` is the data set it is of."""

    name: str
    path: str
    sha256: str | None = None
    rows: int = 0
    accepted: int = 0
    rejected: int = 0
    licence: str | None = None
    hub: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Step:
    """One command: `inputs` and `outputs` are SHA-256 by file name, the counts are of rows."""

    command: str = "import"
    created: str = ""
    operator: str = ""
    made_by: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    rejected: int = 0
    seal: str = ""


@dataclass(frozen=True)
class DatasetRecord(Step):
    """The step that made a folder, the steps before it (oldest first) and the raw files of all.
    `split`, `mix` and `render` are shares as asked for and as they came out."""

    version: int = VERSION
    sources: tuple[SourceRecord, ...] = ()
    earlier: tuple[Step, ...] = ()
    split: Any = None
    mix: Any = None
    render: Any = None

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps, this folder's last."""
        own = Step(**{each.name: getattr(self, each.name) for each in fields(Step)})
        return (*self.earlier, own)


def read_dataset(data: Path) -> DatasetRecord | None:
    """The record of a data folder, or of a file's folder; None without one. Raises DataError."""
    path = (data if data.is_dir() else data.parent) / DATASET
    if not path.is_file():
        return None
    value = read_object(path, error=DataError)
    if not {"sources", "version"} <= value.keys():
        return None
    record = to_record(value, DatasetRecord, where=str(path), error=DataError)
    return record if data.is_dir() or data.stem in record.counts else None


def traceable(folder: Path) -> DatasetRecord:
    """The record of a data folder whose rows carry origins. Raises DataError for any other."""
    record = read_dataset(folder)
    if record is None or record.version < VERSION:
        hint = "`mlx-itune data import` makes folders with one"
        raise DataError("has no record that rows can be traced by", where=str(folder), hint=hint)
    return record


def write_dataset(folder: Path, record: DatasetRecord) -> DatasetRecord:
    """Write a record into its folder; returns it with its seal."""
    value = {key: item for key, item in plain(record).items() if item is not None}
    sealed = replace(record, seal=_seal(value))
    write_object(folder / DATASET, {**value, "seal": sealed.seal})
    return sealed


def verify(folder: Path) -> list[str]:
    """Every sign that a data folder is not what its record says. Raises DataError."""
    record = traceable(folder)
    problems = [*_strange_inputs(record)]
    if _seal(read_object(folder / DATASET, error=DataError)) != record.seal:
        problems.append(f"{DATASET}: changed after it was sealed")
    for stem in (*SPLITS, *LISTS):
        name = f"{stem}.jsonl"
        path, digest = folder / name, record.outputs.get(name)
        if digest is None:
            extra = [p.name for p in (path, path.with_suffix(".json")) if p.exists()]
            problems += [f"{name}: not written by the step that made the folder" for name in extra]
        elif not path.is_file():
            problems.append(f"{name}: missing")
        elif sha256_file(path) != digest:
            problems.append(f"{name}: changed after it was written (its SHA-256 differs)")
    return problems


def content_hash(conversation: Conversation) -> int:
    """64 bits of what a conversation says: roles, texts, tool calls, tools; no tags, no weights."""
    digest = hashlib.blake2b(said_bytes(conversation), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def row_id(conversation: Conversation) -> str:
    """A row's name: its content hash as 16 hex digits. Equal rows have equal names."""
    return f"{content_hash(conversation):016x}"


def _seal(value: Mapping[str, Any]) -> str:
    rest = {key: item for key, item in value.items() if key != "seal"}
    return hashlib.sha256(canonical(rest)).hexdigest()


def _strange_inputs(record: DatasetRecord) -> Iterator[str]:
    """Files that a step read and that are neither raw nor what a step before had written."""
    known = {source.sha256 for source in record.sources}
    for number, step in enumerate(record.steps, 1):
        for name, digest in step.inputs.items():
            if digest not in known:
                yield f"{name}: changed by hand before step {number} read it"
        known |= set(step.outputs.values())


_ID = re.compile(r"[0-9a-f]{16}")
_PLACE = re.compile(rf"({'|'.join(SPLITS)})(?:\.jsonl)?(:\d+)")
_FIRST = {"import": "imported", "render": "rendered"}
# Equal rows share an id; past this many, more would tell nothing new.
_MOST = 20

Line = dict[str, Any]


@dataclass(frozen=True)
class History:
    """One row: where it is `now` ("train:12"; None for one that is gone) and where it came from.
    `line` is a number, or "#17" for a row that has no line of its own."""

    id: str | None
    now: str | None
    file: str
    line: int | str
    sha256: str | None
    text: str | None
    steps: tuple[dict[str, Any], ...]


def trace(folder: Path, row: str) -> list[History]:
    """The histories of a row, one per copy or split piece of that name; 20 at most. `row` is an id,
    a place in `folder` ("train:12") or of a source ("gsm8k.jsonl:7"). Raises UsageError when no row
    answers to it, DataError for a folder without a record."""
    record = traceable(folder)
    place = _PLACE.fullmatch(row)
    by_id = bool(_ID.fullmatch(row))
    changes: dict[str, Line] = {}
    found: list[tuple[str, Line]] = []
    for name in ("changed", place[1]) if place else ("changed", *SPLITS, "removed", "rejected"):
        for at, line in _lines(folder, name):
            origin = line[ORIGIN]
            if name == "changed":
                changes[origin] = line
                continue
            if place:
                is_it = at == place[1] + place[2]
            elif by_id:
                is_it = row in (_id_of(line), _id_of(changes.get(origin, {})))
            else:
                # A path in front of a raw file's name does no harm.
                is_it = row == origin or row.endswith(f"/{origin}")
            if is_it:
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
            tool, _, version = step.made_by.partition(" ")
            told = {"n": number, "time": step.created, "operator": step.operator, "tool": tool}
            told |= {"version": version, "command": step.command, "settings": step.settings}
            action = "kept" if steps else _FIRST.get(step.command, "read")
            steps.append({**told, "action": action})
    listed = changes.get(line[ORIGIN]) if now else line
    if listed and steps:
        steps[-1]["action"] = "changed" if now else name
        steps[-1]["reason"] = listed.get("reason") or listed.get("code") or ""
        steps[-1]["detail"] = listed.get("detail") or listed.get("message") or ""
    number_or_place = int(place) if place.isdigit() else place
    text = orjson.dumps(line).decode() if now else None
    return History(_id_of(line), now, file, number_or_place, hashes.get(file), text, tuple(steps))


def _id_of(line: Line) -> str | None:
    row = line if "messages" in line else line.get("row")
    return next((row_id(one) for one in parse_rows(row, "", Reading())), None) if row else None


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
