"""Reading chosen rows of files once more: the few whose texts have to be compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.faults import Fault, RowFault
from mlx_itune.dataset.formats import parse_rows
from mlx_itune.dataset.sources import read_rows
from mlx_itune.kit.files import storage_errors

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Reading:
    """How files are read: what `read_rows` takes beside the path."""

    format: str | None = None
    columns: Mapping[str, str] | None = None
    kind: str | None = None

    def rows(self, path: Path, **options: Any) -> Iterator[Conversation | Fault]:
        """The rows of a file."""
        return read_rows(path, format=self.format, columns=self.columns, kind=self.kind, **options)

    def again(
        self, path: Path, ordinals: Sequence[int], lines: Sequence[int]
    ) -> Iterator[tuple[int, Conversation]]:
        """(ordinal, row) of accepted rows, given by rising ordinal (from 0) and by line."""
        at = 0
        if path.suffix == ".jsonl" and self.kind in (None, "jsonl"):
            for ordinal, row in zip(ordinals, self._on_lines(path, lines), strict=False):
                if row is None:
                    break
                at += 1
                yield ordinal, row
        if at == len(ordinals):
            return
        # No file of lines after all: what is left is counted off.
        number = 0
        for item in self.rows(path):
            if isinstance(item, Fault):
                continue
            if number == ordinals[at]:
                yield number, item
                at += 1
                if at == len(ordinals):
                    return
            number += 1

    def _on_lines(self, path: Path, lines: Sequence[int]) -> Iterator[Conversation | None]:
        wanted = 0
        first, rest = 1, b""
        with storage_errors(path), path.open("rb") as file:
            while wanted < len(lines):
                chunk = file.read(_CHUNK_BYTES)
                block = rest + chunk
                ends = block.count(b"\n")
                if lines[wanted] >= first + ends and chunk:
                    rest = block[block.rfind(b"\n") + 1 :]
                    first += ends
                    continue
                whole = block.split(b"\n")
                rest = whole.pop() if chunk else b""
                while wanted < len(lines) and lines[wanted] < first + len(whole):
                    yield self._row(whole[lines[wanted] - first], path, lines[wanted])
                    wanted += 1
                first += len(whole)
                if not chunk:
                    break

    def _row(self, raw: bytes, path: Path, line: int) -> Conversation | None:
        try:
            value = orjson.loads(raw)
            if not isinstance(value, dict):
                return None
            rows = parse_rows(value, f"{path}:{line}", format=self.format, columns=self.columns)
        except (orjson.JSONDecodeError, RowFault, RecursionError):
            return None
        return rows[0] if len(rows) == 1 else None
