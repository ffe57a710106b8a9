"""dataset.json: where a data folder's rows come from and what was done to them, step by step.

A step names what it read and wrote by SHA-256, so that steps follow each other through folders.
The record's `seal` is the SHA-256 of the rest of it: with the hashes of its outputs it stands for
every byte of the folder. Whoever can rewrite the folder can also seal it anew; only a seal that
was noted elsewhere shows that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.sources import said_bytes
from mlx_itune.kit.errors import DataError
from mlx_itune.kit.files import sha256_file
from mlx_itune.kit.json_files import canonical, plain, read_object, to_record, write_object

DATASET = "dataset.json"
SPLITS = ("train", "valid", "test")
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

    @property
    def told(self) -> dict[str, Any]:
        """What a row's history says of this step."""
        tool, _, version = self.made_by.partition(" ")
        return {
            "time": self.created,
            "operator": self.operator,
            "tool": tool,
            "version": version,
            "command": self.command,
            "settings": self.settings,
        }


@dataclass(frozen=True)
class DatasetRecord(Step):
    """The step that made a folder, the steps before it (oldest first) and the raw files of all.

    `split`, `mix` and `render` are shares as asked for and as they came out.
    """

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
    """The record of a data folder, or of the one that a file of rows is in; None without one.

    Raises DataError for a broken one.
    """
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
        raise DataError(
            "has no record that rows can be traced by",
            where=str(folder),
            hint="`mlx-itune data import` makes folders with one",
        )
    return record


def write_dataset(folder: Path, record: DatasetRecord) -> DatasetRecord:
    """Write a record into its folder; returns it with its seal."""
    value = {key: item for key, item in plain(record).items() if item is not None}
    sealed = replace(record, seal=_seal(value))
    write_object(folder / DATASET, {**value, "seal": sealed.seal})
    return sealed


def verify(folder: Path) -> list[str]:
    """Every sign that a data folder is not what its record says; empty when all agrees.

    Raises DataError for a folder without a record.
    """
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
