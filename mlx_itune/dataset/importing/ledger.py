"""ledger.jsonl: one entry per transformation of a data folder, each sealed over the one before.

An entry's `hash` is the SHA-256 of its canonical JSON without `hash`; `previous` is the hash of
the entry before. Every line is canonical JSON, so that no byte of the file can change unseen.
Whoever can rewrite the whole folder can also recompute every hash: only a head hash that was
noted elsewhere shows that.
"""

from __future__ import annotations

import getpass
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any

from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.sources import said_bytes
from mlx_itune.kit.errors import DataError
from mlx_itune.kit.files import sha256_file, storage_errors, write_durably

LEDGER = "ledger.jsonl"
LINEAGE = "lineage"
DESCRIPTION = "dataset.json"
REJECTED = "rejected.jsonl"
SPLITS = ("train", "valid", "test")
START = "0" * 64

Entry = dict[str, Any]


def content_hash(conversation: Conversation) -> int:
    """64 bits of what a conversation says: roles, texts, tool calls, tools; no tags, no weights."""
    digest = hashlib.blake2b(said_bytes(conversation), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def row_id(conversation: Conversation) -> str:
    """A row's name: its content hash as 16 hex digits. Equal rows have equal names."""
    return f"{content_hash(conversation):016x}"


def operator_name() -> str:
    """Who runs this, as the machine knows them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return "unknown"


def utc_now() -> str:
    """The time as ISO 8601 in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def read_entries(folder: Path) -> list[Entry]:
    """The entries of a folder's ledger, unverified; none without a ledger.

    Raises DataError for a line that is no entry.
    """
    path = Path(folder) / LEDGER
    if not path.exists():
        return []
    entries = []
    for number, line in enumerate(_lines(path), 1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if not _is_entry(entry):
            raise DataError("not an entry of a ledger", where=f"{path}:{number}")
        entries.append(entry)
    return entries


def append_entry(folder: Path, entry: Mapping[str, Any]) -> Entry:
    """Seal `entry` (all but n, previous, hash) over the ledger of `folder` and write it there."""
    path = Path(folder) / LEDGER
    before = read_entries(folder)
    sealed = {
        **entry,
        "n": len(before) + 1,
        "previous": before[-1].get("hash", START) if before else START,
    }
    sealed["hash"] = _seal(sealed)
    with storage_errors(path):
        old = path.read_bytes() if before else b""
    write_durably(path, old + _canonical(sealed) + b"\n")
    return sealed


def verify(folder: Path) -> list[str]:
    """Every sign that a folder is not what its ledger says; empty when all agrees.

    Checks each entry's seal and place in the chain, the hashes of the files the last entry wrote
    and of every lineage file, and that each step read what the step before had written.
    """
    folder = Path(folder)
    problems, entries = _chain(folder / LEDGER)
    if not entries:
        return problems or [f"{LEDGER}: missing"]
    problems += _steps_that_read_something_else(entries)
    expected: dict[str, str] = {}
    for entry in entries:
        written = _hashes(entry, "outputs")
        last = entry is entries[-1]
        expected |= {
            name: digest
            for name, digest in written.items()
            if last or name.startswith(f"{LINEAGE}/")
        }
    for name, digest in expected.items():
        path = folder / name
        if not _is_inside(name):
            problems.append(f"{name}: not a file of this folder")
        elif not path.is_file():
            problems.append(f"{name}: missing")
        elif sha256_file(path) != digest:
            problems.append(f"{name}: changed after it was written (its SHA-256 differs)")
    for name in _written_files(folder):
        if name not in expected:
            problems.append(f"{name}: not written by any step of the ledger")
    for name in expected:
        if name.endswith(f"/{LEDGER}") and _is_inside(name):
            problems += [f"{name}: {problem}" for problem in _chain(folder / name)[0]]
    return problems


def _chain(path: Path) -> tuple[list[str], list[Entry]]:
    """The entries of one ledger file and what is wrong with their seals and order."""
    name = path.name
    if not path.is_file():
        return [f"{name}: missing"], []
    problems: list[str] = []
    entries: list[Entry] = []
    previous = START
    lines = _lines(path)
    for number, line in enumerate(lines, 1):
        where = f"{name}:{number}"
        try:
            entry = json.loads(line)
            is_canonical = isinstance(entry, dict) and _canonical(entry) + b"\n" == line
        except (ValueError, RecursionError):
            entry, is_canonical = None, False
        if not _is_entry(entry):
            problems.append(f"{where}: not an entry of a ledger")
            continue
        entries.append(entry)
        if not is_canonical or entry.get("hash") != _seal(entry):
            problems.append(f"{where}: changed after it was sealed")
        if entry.get("previous") != previous or entry.get("n") != number:
            problems.append(f"{where}: does not follow the entry before it")
        previous = str(entry.get("hash"))
    return problems, entries


def _steps_that_read_something_else(entries: list[Entry]) -> list[str]:
    problems = []
    for before, entry in itertools.pairwise(entries):
        written, read = _hashes(before, "outputs"), _hashes(entry, "inputs")
        prefix = str(entry.get("parent", ""))
        for name, digest in written.items():
            seen = read.get(prefix + name)
            if seen is not None and seen != digest:
                problems.append(
                    f"{name}: changed by hand between step {before.get('n')} and {entry.get('n')}"
                )
    return problems


def _written_files(folder: Path) -> Iterator[str]:
    """The files in a folder that only a step of the ledger may have written."""
    for stem in (*SPLITS, "removed", "changed", "rejected"):
        for name in (f"{stem}.jsonl", f"{stem}.json"):
            if (folder / name).exists():
                yield name
    for path in sorted((folder / LINEAGE).rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def _is_entry(value: Any) -> bool:
    """Whether a value has the shape that readers of a ledger rely on, sealed or not."""
    return (
        isinstance(value, dict)
        and all(_is_text_map(value.get(key, {})) for key in ("inputs", "outputs", "branches"))
        and all(_is_inside(place) for place in value.get("branches", {}).values())
        and isinstance(value.get("parent", ""), str)
    )


def _is_text_map(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())


def _is_inside(name: str) -> bool:
    """Whether a name can only be of a file within the folder it is looked up in."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _hashes(entry: Entry, key: str) -> dict[str, str]:
    value: dict[str, str] = entry.get(key, {})
    return value


def _seal(entry: Entry) -> str:
    unsealed = {key: value for key, value in entry.items() if key != "hash"}
    return hashlib.sha256(_canonical(unsealed)).hexdigest()


def _canonical(entry: Mapping[str, Any]) -> bytes:
    text = json.dumps(entry, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def _lines(path: Path) -> list[bytes]:
    with storage_errors(path), path.open("rb") as file:
        return list(file)
