"""Bytes -> raw rows, streamed, every fault at its line: JSON lines and arrays, tables, text.

| kind | rows |
|---|---|
| jsonl, json | one per line or array element, told apart by content; or the list in an object |
| csv, tsv | one per record after the header |
| parquet, xlsx | one per row, numbers as text |
| text | one per document, block or dialogue: see plain.py |

Files ending in .gz are read through gzip.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from mlx_itune.dataset.faults import Fault
from mlx_itune.dataset.reading.record import Record, bom_fault
from mlx_itune.dataset.reading.sniff import KINDS, SUFFIXES, kind_by_name, kind_of, layout
from mlx_itune.dataset.reading.stream import ByteStream
from mlx_itune.kit.errors import UsageError, closest
from mlx_itune.kit.files import storage_errors

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
    Raises StorageError when the file cannot be read, DataError for a file of another kind,
    UsageError for an unknown `kind` or a missing extra.
    """
    path = Path(path)
    if kind is not None and kind not in KINDS:
        near = closest(kind, KINDS)
        raise UsageError(
            f"no kind of file {kind!r}", hint=f"did you mean {near!r}?" if near else None
        )
    with storage_errors(path):
        with ByteStream(path, on_bytes) as stream:
            kind = kind or kind_of(path, stream.head)
            if kind not in ("parquet", "xlsx"):
                line = yield from _read(stream, str(path), kind, header)
                if stream.broken is not None:
                    yield stream.broken.at(str(path), line)
                return
        if kind == "parquet":
            from mlx_itune.dataset.reading.columnar import read_parquet

            yield from read_parquet(path, on_bytes)
        else:
            from mlx_itune.dataset.reading.columnar import read_xlsx

            yield from read_xlsx(path, on_bytes, header=header)


def _read(
    stream: ByteStream, name: str, kind: str, header: bool | None
) -> Generator[Record | Fault, None, int]:
    if kind in ("csv", "tsv"):
        from mlx_itune.dataset.reading.delimited import read_delimited

        return (yield from read_delimited(stream, name, kind, header=header))
    if kind == "text":
        from mlx_itune.dataset.reading.plain import read_text

        return (yield from read_text(stream, name))
    found = layout(
        stream.head, stream.tail, is_whole=stream.is_whole, prefers_lines=kind == "jsonl"
    )
    if found == "lines":
        from mlx_itune.dataset.reading.lines import read_lines

        return (yield from read_lines(stream, name))
    return (yield from _document(stream, name, found))


def _document(stream: ByteStream, name: str, found: str) -> Generator[Record | Fault, None, int]:
    from mlx_itune.dataset.reading.array import read_array
    from mlx_itune.dataset.reading.window import Window
    from mlx_itune.dataset.reading.wrapped import read_object

    window = Window(stream)
    window.skip_space()
    rows = read_array(window, name) if found == "array" else read_object(window, name)
    if stream.has_bom:
        # The first row is the one the mark spoils; what follows is judged as usual.
        next(rows, None)
        yield bom_fault().at(name, 1)
    whole = yield from rows
    line = window.line
    if whole and window.skip_space():
        what = "array" if found == "array" else "object"
        yield Fault(name, line, "json", f"text follows the end of the {what}")
    return window.line
