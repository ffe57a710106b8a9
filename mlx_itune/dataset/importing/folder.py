"""A new data folder, written row by row and sealed at the end, or not written at all.

folder/
  train.jsonl valid.jsonl test.jsonl   rows, one per line, UTF-8; a split without rows has none
  removed.jsonl changed.jsonl          {"file", "line", "origin", "reason", "detail", "row"}
  rejected.jsonl                       {"file", "line", "origin", "code", "message"}
  dataset.json                         where the rows come from and what was done to them

A row's `origin` is the place in the raw file that it was first read from: "quiz.jsonl:7". It stays
the same through every step, so the row can be found again in every folder.
"""

from __future__ import annotations

import contextlib
import getpass
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from mlx_itune import __version__
from mlx_itune.dataset.conversation import Conversation, Fault, place_of
from mlx_itune.dataset.importing.inputs import Inputs, find_inputs
from mlx_itune.dataset.importing.provenance import (
    ORIGIN,
    SPLITS,
    DatasetRecord,
    SourceRecord,
    write_dataset,
)
from mlx_itune.dataset.sources import to_row
from mlx_itune.kit.errors import DataError, UsageError, one_line
from mlx_itune.kit.files import refuse_occupied, sha256_file, staged_directory, storage_errors

# What a raw row's own field of that name is called in a data folder.
GIVEN_ORIGIN = "given_origin"
_BUFFER_BYTES = 1 << 20
_FAULTS_KEPT = 50


@contextlib.contextmanager
def new_folder(
    out: Path,
    command: str,
    sources: Sequence[Path] | Inputs,
    *,
    settings: Mapping[str, Any] | None = None,
    operator: str | None = None,
    licences: Mapping[str, str] | None = None,
) -> Iterator[FolderWriter]:
    """Fill a new data folder; an exception inside leaves nothing behind. `sources` are spelled as
    their rows' origins spell them; `licences` sets some by source name. Raises UsageError for an
    `out` inside a source, StorageError for one that is not empty, and DataError when no row was
    added or a source changed meanwhile."""
    inputs = sources if isinstance(sources, Inputs) else find_inputs(sources)
    refuse_place(out, inputs)
    with staged_directory(out) as stage, contextlib.ExitStack() as files:
        writer = FolderWriter(inputs, stage, files)
        before = [_stamp(file.path) for file in inputs.files]
        yield writer
        if not any(writer.counts.values()):
            raise DataError("no row is left to write", where=str(out))
        with storage_errors(out):
            files.close()
        step = {"operator": operator or _operator_name(), "settings": _portable(settings or {})}
        writer.seal({"command": command, **step}, licences or {})
        for file, stamp in zip(inputs.files, before, strict=True):
            if _stamp(file.path) != stamp:
                raise DataError("changed while it was read", where=str(file.path))


def refuse_place(out: Path, inputs: Inputs) -> None:
    """Raise where no folder can be made of these inputs: before hours of reading, not after."""
    for folder in inputs.folders:
        if out.resolve().is_relative_to(folder.resolve()):
            what = f"lies inside the source {folder}"
            raise UsageError(what, where=str(out), hint="name another folder")
    refuse_occupied(out)


class FolderWriter:
    """Writes the rows of a new data folder, and lists what was removed or changed on the way.
    `shares` may be filled for dataset.json; `record` is what that says when the folder is there."""

    def __init__(self, inputs: Inputs, stage: Path, files: contextlib.ExitStack) -> None:
        self.inputs = inputs
        self.counts: dict[str, int] = dict.fromkeys(SPLITS, 0)
        self.rejected = 0
        self._faults: dict[str, Fault] = {}
        self._alike: Counter[str] = Counter()
        self.shares: dict[str, Any] = {}
        self.record = DatasetRecord()
        # By what was done to rows, and why.
        self._done: dict[str, Counter[str]] = {
            what: Counter() for what in ("removed", "changed", "left_out")
        }
        self._stage, self._stack = stage, files
        self._by_path = {str(file.path): file for file in inputs.files}
        self._accepted: Counter[str] = Counter()
        self._broken: Counter[str] = Counter()
        self._last = ""
        self._files: dict[str, BinaryIO] = {}

    def add(
        self,
        split: str,
        conversation: Conversation,
        *,
        before: Conversation | None = None,
        reason: str = "",
        detail: str = "",
        show_before: bool = True,
    ) -> None:
        """Write one row at the end of a split. `before`: a changed row as it was read, for
        changed.jsonl, its text if `show_before`."""
        self.counts[split] += 1
        self._write(split, self._row(before or conversation, conversation))
        if before is not None:
            self._list("changed", before, reason, detail, show_before)
        self._accept((before or conversation).origin)

    def remove(
        self, conversation: Conversation, reason: str, detail: str = "", *, show: bool = True
    ) -> None:
        """Record that a row was read and not written; its text goes to removed.jsonl if `show`."""
        self._list("removed", conversation, reason, detail, show)
        self._accept(conversation.origin)

    def leave_out(self, conversation: Conversation, reason: str) -> None:
        """Count a good row that was not asked for (a filter, a sample); it is not listed."""
        self._done["left_out"][reason] += 1
        self._accept(conversation.origin)

    def reject(self, fault: Fault) -> None:
        """Record a row that could not be read, in rejected.jsonl; the first `faults` are kept."""
        kind = fault.kind
        kept = (other.severity == fault.severity for other in self._faults.values())
        if kind in self._faults:
            self._alike[kind] += 1
        elif sum(kept) < _FAULTS_KEPT:
            self._faults[kind] = fault
        if fault.severity != "error":
            return
        self.rejected += 1
        self._broken[fault.file] += 1
        label = self._label(fault.file)
        message = fault.message.replace(fault.file, label)
        place = fault.where.rpartition(":")[2]
        listed = {"file": label, "line": fault.line, ORIGIN: f"{label}:{place}"}
        self._write("rejected", {**listed, "code": fault.code, "message": message})

    @property
    def faults(self) -> list[Fault]:
        """The first faults of each kind, with the number of rows that have the same."""
        return [replace(fault, alike=self._alike[kind]) for kind, fault in self._faults.items()]

    def seal(self, step: Mapping[str, Any], licences: Mapping[str, str]) -> None:
        """Write dataset.json over everything that was written."""
        inputs = {file.source.path: sha256_file(file.path) for file in self.inputs.files}
        names = [f"{name}.jsonl" for name in self._files]
        steps = [earlier for parent in self.inputs.parents for earlier in parent.record.steps]
        record = DatasetRecord(
            **step,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            made_by=f"mlx-itune {__version__}",
            inputs=inputs,
            outputs={name: sha256_file(self._stage / name) for name in names},
            counts={split: count for split, count in self.counts.items() if count},
            removed=dict(self._done["removed"]),
            changed=dict(self._done["changed"]),
            left_out=dict(self._done["left_out"]),
            rejected=self.rejected,
            sources=tuple(self._sources(inputs, licences)),
            earlier=tuple({earlier.seal: earlier for earlier in steps}.values()),
            **self.shares,
        )
        self.record = write_dataset(self._stage, record)

    def _sources(
        self, hashes: Mapping[str, str], licences: Mapping[str, str]
    ) -> Iterator[SourceRecord]:
        new = {file.source.path: str(file.path) for file in self.inputs.files if not file.parent}
        for source in self.inputs.sources():
            if path := new.get(source.path):
                good, bad = self._accepted[path], self._broken[path]
                source = replace(
                    source, sha256=hashes[source.path], rows=good + bad, accepted=good, rejected=bad
                )
            yield replace(source, licence=licences.get(source.name) or source.licence)

    def _label(self, path: str) -> str:
        """The name that the folder uses for the source file `path`."""
        file = self._by_path.get(path)
        return file.source.path if file else one_line(Path(path).name)

    def _row(self, read: Conversation, conversation: Conversation) -> dict[str, Any]:
        """The row as it is written: under the origin of the row that was `read`."""
        path, _, place = read.origin.rpartition(":")
        file = self._by_path.get(path)
        row = to_row(conversation)
        if file and file.parent and ORIGIN in read.tags:
            raw, _, place = read.tags[ORIGIN].rpartition(":")
            row[ORIGIN] = f"{file.parent.paths.get(raw, raw)}:{place}"
            return row
        if ORIGIN in row:
            row[GIVEN_ORIGIN] = row[ORIGIN]
        row[ORIGIN] = f"{self._label(path)}:{place}"
        return row

    def _list(self, name: str, row: Conversation, reason: str, detail: str, show: bool) -> None:
        self._done[name][reason] += 1
        path, line, _ = place_of(row.origin)
        whole = self._row(row, row)
        listed = {
            "file": self._label(path),
            "line": line,
            ORIGIN: whole.pop(ORIGIN),
            "reason": reason,
            "detail": detail,
            "row": whole if show else None,
        }
        self._write(name, listed)

    def _write(self, name: str, value: Mapping[str, Any]) -> None:
        file = self._files.get(name)
        if file is None:
            path = self._stage / f"{name}.jsonl"
            file = self._stack.enter_context(path.open("xb", buffering=_BUFFER_BYTES))
            self._files[name] = file
        try:
            line = orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
        except TypeError:
            # Integers beyond 64 bits, and file names that are no UTF-8 (they come back as escapes).
            text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            line = text.encode("utf-8", "backslashreplace") + b"\n"
        file.write(line)

    def _accept(self, origin: str) -> None:
        # One row may be written as several, one after the other.
        if origin != self._last:
            self._accepted[origin.rpartition(":")[0]] += 1
        self._last = origin


def _portable(value: Any) -> Any:
    """Settings as JSON; of an absolute path the last part, so that they mean the same anywhere."""
    if isinstance(value, (str, Path)):
        return Path(value).name if Path(value).is_absolute() else str(value)
    if isinstance(value, Mapping):
        return {str(key): _portable(item) for key, item in value.items()}
    return [_portable(item) for item in value] if isinstance(value, (list, tuple)) else value


def _operator_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return "unknown"


def _stamp(path: Path) -> tuple[int, int]:
    with storage_errors(path):
        status = path.stat()
    return status.st_size, status.st_mtime_ns
