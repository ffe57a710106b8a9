"""What happened to one row: from the line of a raw file to its place in a data folder."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_itune.dataset.importing.ledger import (
    LINEAGE,
    SPLITS,
    Entry,
    read_entries,
)
from mlx_itune.kit.errors import DataError, UsageError
from mlx_itune.kit.files import storage_errors

_ID = re.compile(r"[0-9a-f]{16}")
_PLACE = re.compile(rf"({'|'.join(SPLITS)})(?:\.jsonl)?:(\d+)")
_CHUNK_BYTES = 1 << 22
# Equal rows share an id; past this many, more would tell nothing new.
_MOST = 20

Line = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One transformation as it met one row: the ledger's entry and the row's line in lineage."""

    entry: Entry
    line: Line

    def __str__(self) -> str:
        return f"{self.line.get('action')} by {self.entry.get('command')}"


@dataclass(frozen=True)
class History:
    """The steps of one row, oldest first. `now` is "train:12", or None for a row that is gone.

    `file`, `line` and `sha256` say where it came from first.
    """

    steps: tuple[Step, ...]
    file: str
    line: int
    sha256: str | None
    now: str | None

    @property
    def id(self) -> str | None:
        """The row's last id; None for a row that never could be read."""
        ids = [step.line["id"] for step in self.steps if "id" in step.line]
        return str(ids[-1]) if ids else None


@dataclass(frozen=True)
class _Chain:
    """One ledger with its lineage files: a data folder's, or a branch kept inside it.

    A branch ends where step `joins` of the chain `outer` read it, its files behind `prefix`.
    """

    home: Path
    entries: list[Entry] = field(repr=False)
    outer: _Chain | None = None
    joins: int = 0
    prefix: str = ""

    def lineage(self, step: int) -> Path:
        return self.home / LINEAGE / f"{step:04d}.jsonl"

    def branch(self, step: int, prefix: str, place: str) -> _Chain:
        home = self.home / place
        return _Chain(home, read_entries(home), self, step, prefix)

    def branches(self, step: int) -> Iterator[_Chain]:
        for prefix, place in self.entries[step - 1].get("branches", {}).items():
            yield self.branch(step, prefix, place)

    def after(self, step: int) -> tuple[_Chain, int, str] | None:
        """The step that read what `step` wrote, and what that step puts before file names."""
        if step < len(self.entries):
            return self, step + 1, str(self.entries[step].get("parent", ""))
        return (self.outer, self.joins, self.prefix) if self.outer else None


def history(folder: Path, row: str) -> list[History]:
    """The histories of a row, one per copy, split piece or file of that name; 20 at most.

    `row` is an id (16 hex digits), a place ("train:12", "train.jsonl:12") in `folder`, or the
    file and line it had when it was first read ("gsm8k.jsonl:7").
    Raises UsageError when no row answers to it, DataError for a folder without a ledger.
    """
    chain = _Chain(folder, read_entries(folder))
    if not chain.entries:
        raise DataError(
            "has no ledger",
            where=str(folder),
            hint="`mlx-itune data import` makes folders with one",
        )
    found: list[History] = []
    for where, number, line in _matches(chain, row):
        for one in _whole(where, number, line):
            if one not in found:
                found.append(one)
        if len(found) >= _MOST:
            break
    if not found:
        raise UsageError(
            f"no row {row!r} passed through {folder.name or folder}", hint=_hint(chain, row)
        )
    return found[:_MOST]


def _hint(chain: _Chain, row: str) -> str:
    label = row.rpartition(":")[0]
    for entry in chain.entries:
        passed = entry.get("left_out")
        if label in entry.get("inputs", {}) and isinstance(passed, dict) and passed:
            counts = ", ".join(f"{count} by --{why}" for why, count in passed.items())
            return f"rows that were left out are counted, not listed ({counts})"
    return "name it as train:12, as file.jsonl:12 of a source, or by its id"


def text_at(folder: Path, place: str | None) -> str | None:
    """The line of a data folder at "train:12" as it is now; None where there is none."""
    found = _PLACE.fullmatch(str(place))
    if found is None or not (path := folder / f"{found[1]}.jsonl").is_file():
        return None
    number = max(int(found[2]), 1)
    with storage_errors(path), path.open("rb") as file:
        for line in itertools.islice(file, number - 1, number):
            return line.decode("utf-8", "replace").rstrip("\n")
    return None


def _matches(chain: _Chain, row: str) -> Iterator[tuple[_Chain, int, Line]]:
    """The lines of lineage, with their step, that `row` may name; present rows first."""
    last = len(chain.entries)
    if place := _PLACE.fullmatch(row):
        at = f"{place[1]}:{place[2]}"
        yield from ((chain, last, line) for line in _scan(chain, last, "at", at))
    if _ID.fullmatch(row):
        yield from _everywhere(chain, "id", row)
        return
    name, _, number = row.rpartition(":")
    if name and number.isdigit():
        # Sources are known by their label; a path in front of it does no harm.
        for label in dict.fromkeys((row, f"{Path(name).name}:{number}")):
            yield from _everywhere(chain, "from", label)


def _everywhere(chain: _Chain, key: str, value: str) -> Iterator[tuple[_Chain, int, Line]]:
    for number in range(len(chain.entries), 0, -1):
        yield from ((chain, number, line) for line in _scan(chain, number, key, value))
        for branch in chain.branches(number):
            yield from _everywhere(branch, key, value)


def _whole(chain: _Chain, number: int, line: Line) -> Iterator[History]:
    """The histories through one line of lineage: one way back to the start, every way on."""
    back = [*_before(chain, number, line), Step(chain.entries[number - 1], line)]
    file, _, place = str(back[0].line.get("from", "")).rpartition(":")
    digest = back[0].entry.get("inputs", {}).get(file)
    for onward in _after(chain, number, line):
        steps = (*back, *onward)
        now = steps[-1].line.get("at")
        yield History(steps, file, int(place) if place.isdigit() else 0, digest, now)


def _before(chain: _Chain, number: int, line: Line) -> list[Step]:
    came_from = str(line.get("from", ""))
    earlier, step, prefix = chain, number - 1, chain.entries[number - 1].get("parent")
    for branch in chain.branches(number):
        if came_from.startswith(branch.prefix):
            earlier, step, prefix = branch, len(branch.entries), branch.prefix
    if prefix is None or step < 1 or not came_from.startswith(prefix):
        return []
    place = _PLACE.fullmatch(came_from[len(prefix) :])
    if place is None:
        return []
    for found in _scan(earlier, step, "at", f"{place[1]}:{place[2]}"):
        return [*_before(earlier, step, found), Step(earlier.entries[step - 1], found)]
    return []


def _after(chain: _Chain, number: int, line: Line) -> Iterator[list[Step]]:
    at, onward = line.get("at"), chain.after(number)
    if at is None or onward is None:
        yield []
        return
    later_chain, later, prefix = onward
    split, _, place = str(at).partition(":")
    label = f"{prefix}{split}.jsonl:{place}"
    entry = later_chain.entries[later - 1]
    found = False
    for met in _scan(later_chain, later, "from", label):
        found = True
        for rest in _after(later_chain, later, met):
            yield [Step(entry, met), *rest]
    if not found:
        # Counted by that step and not listed: a filter or a sample passed it over.
        yield [Step(entry, {"from": label, "action": "left out"})]


def _scan(chain: _Chain, step: int, key: str, value: str) -> Iterator[Line]:
    """The lines of a step's lineage whose `key` is `value`, found as text before being read."""
    needle = f'"{key}":{json.dumps(value)}'.encode()
    path = chain.lineage(step)
    if not path.exists():
        return
    for raw in _lines_with(path, needle):
        try:
            line = json.loads(raw)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and line.get(key) == value:
            yield line


def _lines_with(path: Path, needle: bytes) -> Iterator[bytes]:
    rest = b""
    with storage_errors(path), path.open("rb") as file:
        while True:
            chunk = file.read(_CHUNK_BYTES)
            block = rest + chunk
            end = block.rfind(b"\n") + 1 if chunk else len(block)
            block, rest = block[:end], block[end:]
            at = block.find(needle)
            while at >= 0:
                start = block.rfind(b"\n", 0, at) + 1
                stop = block.find(b"\n", at)
                yield block[start : stop if stop >= 0 else len(block)]
                at = block.find(needle, stop) if stop >= 0 else -1
            if not chunk:
                return
