"""FolderWriter: a data folder, written row by row and sealed at the end, or not written at all.

folder/
  train.jsonl valid.jsonl test.jsonl   rows, one per line, UTF-8; a split without rows has none
  removed.jsonl changed.jsonl          {"file", "line", "reason", "detail", "row"}
  rejected.jsonl                       {"file", "line", "code", "message"}
  dataset.json                         sources, licences, counts, settings
  ledger.jsonl                         what was done, as a chain of hashes
  lineage/0001.jsonl ...               per step and row: {"id", "at", "from", "action", ...}
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from mlx_itune import __version__
from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.faults import Fault
from mlx_itune.dataset.importing.hashed import FileHashes, HashedFile, json_line
from mlx_itune.dataset.importing.inheriting import (
    branch_hashes,
    carry_history,
    described_sources,
    portable,
)
from mlx_itune.dataset.importing.inputs import Inputs, find_inputs
from mlx_itune.dataset.importing.ledger import (
    DESCRIPTION,
    LINEAGE,
    SPLITS,
    Entry,
    append_entry,
    operator_name,
    read_entries,
    row_id,
    utc_now,
)
from mlx_itune.dataset.sources import to_row
from mlx_itune.kit.errors import DataError, UsageError, one_line
from mlx_itune.kit.files import staged_directory, storage_errors


class FolderWriter:
    """Context manager that fills a new data folder; an exception inside leaves nothing behind.

    `sources` are the files and folders the rows come from, spelled as their rows' origins spell
    them; a data folder among them hands on its sources, licences, ledger and lineage.
    `about` adds keys to a file's entry among the sources of dataset.json, by label; `licences`
    sets theirs by source name.

        with FolderWriter(out, "clean", [folder], settings={...}) as writer:
            writer.add("train", conversation)                                  # as it is
            writer.add("train", new, before=old, reason="pii", detail="2 e-mail addresses")
            writer.remove(conversation, "duplicate", "same as train.jsonl:3")
        writer.entry["hash"], writer.counts, writer.removed, writer.changed

    Raises UsageError for an `out` inside a source, StorageError for an `out` that is not empty,
    and DataError on leaving when no row was added.
    """

    def __init__(
        self,
        out: Path,
        command: str,
        sources: Sequence[Path] | Inputs,
        *,
        settings: Mapping[str, Any] | None = None,
        operator: str | None = None,
        about: Mapping[str, Mapping[str, Any]] | None = None,
        licences: Mapping[str, str] | None = None,
    ) -> None:
        self.out = out
        self.inputs = sources if isinstance(sources, Inputs) else find_inputs(sources)
        self.counts: dict[str, int] = dict.fromkeys(SPLITS, 0)
        self.removed: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.rejected = 0
        self.description: dict[str, Any] = {}
        self.entry: Entry = {}
        self._command = command
        self._settings = portable(settings or {})
        self._operator = operator or operator_name()
        self._about = dict(about or {})
        self._licences = dict(licences or {})
        self._labels = {str(file.path): file.label for file in self.inputs.files}
        self._json_labels = {k: json.dumps(v)[1:-1] for k, v in self._labels.items()}
        self._new = {str(file.path) for file in self.inputs.new_files()}
        self._per_file: dict[str, list[int]] = {f.label: [0, 0] for f in self.inputs.files}
        self._files: dict[str, HashedFile] = {}
        self._last = ("", "")
        self._stack = contextlib.ExitStack()
        for folder in self.inputs.folders:
            if out.resolve().is_relative_to(folder.resolve()):
                raise UsageError(
                    f"lies inside the source {folder}", where=str(out), hint="name another folder"
                )

    def __enter__(self) -> FolderWriter:
        with contextlib.ExitStack() as stack:
            self._stage = stack.enter_context(staged_directory(self.out))
            with storage_errors(self.out):
                self._branches = carry_history(self.inputs.parents, self._stage)
            step = len(read_entries(self._stage)) + 1
            self._lineage = self._open(f"{LINEAGE}/{step:04d}.jsonl")
            stack.callback(self._discard)
            self._hashes = stack.enter_context(FileHashes([f.path for f in self.inputs.files]))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._seal()

    def add(
        self,
        split: str,
        conversation: Conversation,
        *,
        before: Conversation | None = None,
        reason: str = "",
        detail: str = "",
        show_before: bool = True,
        content: int | None = None,
    ) -> str:
        """Write one row at the end of a split; returns its id.

        With `before`, the row as it was read, it is a changed row and goes to changed.jsonl too,
        with the text it had unless `show_before` is off. Without it, `reason` is noted in the
        row's lineage and nowhere else. `content` is the row's content_hash where it is known.
        """
        name = row_id(conversation) if content is None else f"{content:016x}"
        self.counts[split] += 1
        self._file(split).write(json_line(to_row(conversation)))
        path, line = _place((before or conversation).origin)
        action, extra = "imported" if path in self._new else "kept", ""
        if before is not None:
            action = "changed"
            self.changed[reason] += 1
            extra = f',"was":"{row_id(before)}"'
            self._note("changed", before, reason, detail, show_before)
        if reason:
            extra += f',"reason":{json.dumps(reason)}'
        if detail:
            extra += f',"detail":{json.dumps(detail)}'
        self._lineage.write(
            f'{{"id":"{name}","at":"{split}:{self.counts[split]}",'
            f'"from":"{self._json_label(path)}:{line}","action":"{action}"{extra}}}\n'.encode()
        )
        origin = (path, line)
        if origin != self._last:
            # One row may be written as several pieces, one after the other.
            self._last = origin
            self._count(path, 0)
        return name

    def remove(
        self, conversation: Conversation, reason: str, detail: str = "", *, show: bool = True
    ) -> None:
        """Record that a row was read and not written; its text goes to removed.jsonl if `show`."""
        self.removed[reason] += 1
        self._note("removed", conversation, reason, detail, show)
        path, line = _place(conversation.origin)
        self._lineage.write(
            f'{{"id":"{row_id(conversation)}","from":"{self._json_label(path)}:{line}",'
            f'"action":"removed","reason":{json.dumps(reason)},'
            f'"detail":{json.dumps(detail)}}}\n'.encode()
        )
        self._count(path, 0)

    def reject(self, fault: Fault) -> None:
        """Record a row that could not be read, in rejected.jsonl."""
        self.rejected += 1
        label = self.label(fault.file)
        noted = {
            "file": label,
            "line": fault.line,
            "code": fault.code,
            "message": fault.message.replace(fault.file, label),
        }
        self._file("rejected").write(json_line(noted))
        self._lineage.write(
            json_line(
                {
                    "from": f"{label}:{fault.where.rpartition(':')[2]}",
                    "action": "rejected",
                    "reason": fault.code,
                    "detail": noted["message"],
                }
            )
        )
        self._count(fault.file, 1)

    def leave_out(self, path: str, reason: str) -> None:
        """Count a good row that was not asked for (a filter, a sample); it is not listed."""
        self.left_out[reason] += 1
        self._count(path, 0)

    def label(self, path: str) -> str:
        """The name that the folder uses for the source file `path`."""
        return self._labels.get(path) or one_line(Path(path).name)

    def _json_label(self, path: str) -> str:
        return self._json_labels.get(path) or json.dumps(self.label(path))[1:-1]

    def _count(self, path: str, which: int) -> None:
        counts = self._per_file.get(self._labels.get(path, ""))
        if counts is not None:
            counts[which] += 1

    def _note(
        self, kind: str, row: Conversation, reason: str, detail: str, with_text: bool
    ) -> None:
        path, line = _place(row.origin)
        self._file(kind).write(
            json_line(
                {
                    "file": self.label(path),
                    "line": int(line) if line.isdigit() else line,
                    "reason": reason,
                    "detail": detail,
                    "row": to_row(row) if with_text else None,
                }
            )
        )

    def _file(self, name: str) -> HashedFile:
        return self._files.get(name) or self._open(name)

    def _open(self, name: str) -> HashedFile:
        path = self._stage / (name if name.endswith(".jsonl") else f"{name}.jsonl")
        file = self._files[name] = HashedFile(path)
        return file

    def _discard(self) -> None:
        for file in self._files.values():
            file.discard()

    def _seal(self) -> None:
        rows = sum(self.counts.values())
        if not rows:
            raise DataError("no row is left to write", where=str(self.out))
        outputs = {
            file.path.relative_to(self._stage).as_posix(): file.close()
            for file in self._files.values()
        }
        labels = [file.label for file in self.inputs.files]
        inputs = dict(zip(labels, self._hashes.results(), strict=True))
        created = utc_now()
        self.description = {
            "version": 1,
            "sources": self._sources(inputs),
            "counts": {split: count for split, count in self.counts.items() if count},
            "removed": dict(self.removed),
            "changed": dict(self.changed),
            "left_out": dict(self.left_out),
            "rejected": self.rejected,
            "settings": self._settings,
            "created": created,
            **self.description,
        }
        text = json.dumps(self.description, indent=2, ensure_ascii=False, allow_nan=False)
        described = HashedFile(self._stage / DESCRIPTION)
        described.write(text.encode("utf-8", "backslashreplace") + b"\n")
        outputs[DESCRIPTION] = described.close()
        outputs |= branch_hashes(self._stage, self._branches)
        parents = self.inputs.parents
        self.entry = append_entry(
            self._stage,
            {
                "time": created,
                "operator": self._operator,
                "tool": "mlx-itune",
                "version": __version__,
                "python": ".".join(map(str, sys.version_info[:3])),
                "command": self._command,
                "settings": self._settings,
                "inputs": inputs,
                "outputs": outputs,
                "rows_in": sum(map(sum, self._per_file.values())),
                "rows_out": rows,
                "removed": sum(self.removed.values()),
                "changed": sum(self.changed.values()),
                "rejected": self.rejected,
                "left_out": dict(self.left_out),
                **({"parent": parents[0].prefix} if parents else {}),
                **({"branches": self._branches} if self._branches else {}),
            },
        )

    def _sources(self, hashes: Mapping[str, str]) -> list[dict[str, Any]]:
        """The parents' sources as they were, then the files that are new here."""
        sources: list[dict[str, Any]] = []
        for parent in self.inputs.parents:
            sources += [s for s in described_sources(parent.folder) if s not in sources]
        for file in self.inputs.new_files():
            accepted, rejected = self._per_file[file.label]
            entry = {
                "name": file.name,
                "path": file.label,
                "sha256": hashes[file.label],
                "rows": accepted + rejected,
                "accepted": accepted,
                "rejected": rejected,
                "licence": None,
            }
            sources.append({**entry, **self._about.get(file.label, {})})
        for source in sources:
            if licence := self._licences.get(str(source.get("name"))):
                source["licence"] = licence
        return sources


def _place(origin: str) -> tuple[str, str]:
    """("file", place) of an address."""
    path, _, place = origin.rpartition(":")
    return path, place
