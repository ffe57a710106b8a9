"""Bytes -> raw rows, streamed, every fault at its line: JSON lines and arrays, tables, text.

| kind | rows |
|---|---|
| jsonl, json | one per line, array element or object, told apart by content; or a list in one |
| csv, tsv | one per record after the header |
| parquet, xlsx | one per row, numbers as text |
| text | one per document, block or dialogue: see plain.py |

Files ending in .gz are read through gzip.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from mlx_itune.dataset.faults import Fault
from mlx_itune.dataset.reading.delimited import read_delimited
from mlx_itune.dataset.reading.json_document import read_document
from mlx_itune.dataset.reading.json_lines import read_lines
from mlx_itune.dataset.reading.kinds import KINDS, SUFFIXES, is_lines, kind_by_name, kind_of
from mlx_itune.dataset.reading.plain import read_text
from mlx_itune.dataset.reading.stream import ByteStream, Record
from mlx_itune.dataset.reading.tables import read_parquet, read_xlsx
from mlx_itune.kit.errors import UsageError
from mlx_itune.kit.files import open_regular, storage_errors
from mlx_itune.kit.wording import did_you_mean

__all__ = ["KINDS", "SUFFIXES", "Record", "kind_by_name", "read_records"]


def read_records(
    path: Path,
    *,
    kind: str | None = None,
    header: bool | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> Iterator[Record | Fault]:
    """Each row of a file in order, or why it is none; blank lines are no rows.

    `kind` is one of KINDS; None goes by the name and the content. `header` says whether a table's
    first row names its columns; None goes by its looks. `on_bytes` is told, as reading goes on, how
    many more bytes of the file are done with.
    Raises StorageError when the file cannot be read or is no regular file, DataError for a file of
    another kind, UsageError for an unknown `kind` or a missing extra.
    """
    path = Path(path)
    if kind is not None and kind not in KINDS:
        raise UsageError(f"no kind of file {kind!r}", hint=did_you_mean(kind, KINDS))
    with storage_errors(path), open_regular(path) as file:
        stream = ByteStream(file, on_bytes)
        kind = kind or kind_of(path, stream.head)
        if kind == "parquet":
            yield from read_parquet(path, on_bytes)
        elif kind == "xlsx":
            yield from read_xlsx(path, on_bytes, header=header)
        else:
            line = yield from _read(stream, str(path), kind, header)
            if stream.broken is not None:
                yield stream.broken.at(str(path), line)


def _read(
    stream: ByteStream, name: str, kind: str, header: bool | None
) -> Generator[Record | Fault, None, int]:
    if kind in ("csv", "tsv"):
        return (yield from read_delimited(stream, name, kind, header=header))
    if kind == "text":
        return (yield from read_text(stream, name))
    has_lines = is_lines(
        stream.head, stream.tail, is_whole=stream.is_whole, prefers_lines=kind == "jsonl"
    )
    return (yield from (read_lines if has_lines else read_document)(stream, name))
