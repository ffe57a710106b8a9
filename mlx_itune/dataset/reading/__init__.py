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

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mlx_itune.dataset.conversation import Fault
from mlx_itune.dataset.how import Reading
from mlx_itune.dataset.reading import encodings
from mlx_itune.dataset.reading.delimited import read_delimited
from mlx_itune.dataset.reading.json_document import read_document
from mlx_itune.dataset.reading.plain import read_text
from mlx_itune.dataset.reading.stream import BLANK, ByteStream, Record, read_lines
from mlx_itune.dataset.reading.tables import read_parquet, read_xlsx
from mlx_itune.kit.errors import DataError
from mlx_itune.kit.files import open_regular, storage_errors
from mlx_itune.kit.wording import known

__all__ = ["Record", "kind_by_name", "read_records"]

KINDS = ("jsonl", "json", "csv", "tsv", "parquet", "xlsx", "text")
SUFFIXES = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv",
    ".tab": "tsv", ".parquet": "parquet", ".xlsx": "xlsx", ".xlsm": "xlsx", ".xls": "xlsx",
    ".ods": "xlsx", ".numbers": "xlsx", ".txt": "text", ".text": "text", ".md": "text",
    ".markdown": "text",
}  # fmt: skip
# Lines looked at before deciding how a JSON file is laid out.
_LINES = 64

_PAGE = re.compile(rb"\s*(?:<!doctype html|<html|<table)", re.IGNORECASE)
_BRACKET = re.compile(rb"^[ \t]*[{\[]", re.MULTILINE)


def read_records(
    path: Path,
    how: Reading | None = None,
    *,
    header: bool | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> Iterator[Record | Fault]:
    """Each row of a file in order, or why it is none; blank lines are no rows. `how` may force kind
    and encoding, `header` (whether a table's first row names its columns): None goes by the
    content. `on_bytes` is told how many more bytes of the file are done with. Raises StorageError;
    DataError for a file of another kind; UsageError for an unknown one or a missing extra."""
    path, how = Path(path), how or Reading()
    kind, encoding, told = how.kind, how.encoding, how.told
    if kind is not None:
        known("kind of file", kind, KINDS)
    with storage_errors(path), open_regular(path) as file:
        stream = ByteStream(file, on_bytes, encoding)
        kind = kind or _kind_of(path, stream)
        if kind == "parquet":
            yield from read_parquet(path, on_bytes)
            return
        if kind == "xlsx":
            yield from read_xlsx(path, told, on_bytes, header=header)
            return
        if kind in ("csv", "tsv", "text") and encoding is None:
            stream.guess_encoding()
        if kind in ("csv", "tsv"):
            reading = read_delimited(stream, str(path), kind, told, header=header)
        elif kind == "text":
            reading = read_text(stream, str(path))
        elif _is_lines(stream, prefers_lines=kind == "jsonl"):
            reading = read_lines(stream, str(path))
        else:
            reading = read_document(stream, str(path))
        line = yield from reading
        if stream.encoding is not None and encoding is None:
            name = encodings.NAMES[stream.encoding]
            told.note(f"{path.name} is read as {name} (--encoding names another)")
        if stream.broken is not None:
            yield stream.broken.at(str(path), line)


def kind_by_name(path: Path) -> str | None:
    """The kind that a file's name promises; `.gz` is looked through."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return SUFFIXES.get(suffixes[-1]) if suffixes else None


def _kind_of(path: Path, stream: ByteStream) -> str:
    """The kind of file that `path` names and a stream begins. Raises DataError for another's."""
    by_name, head = kind_by_name(path), stream.head
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"PK\x03\x04") or (by_name == "xlsx" and head.startswith(b"\xd0\xcf")):
        return "xlsx"
    if _PAGE.match(head) and by_name in (None, "xlsx", "csv", "tsv"):
        hint = "open it in a spreadsheet program and save it as CSV or XLSX"
        raise DataError("is a web page, no table", where=str(path), hint=hint)
    if by_name in ("parquet", "xlsx"):
        raise DataError(f"is not a {by_name} file", where=str(path), hint="is it damaged?")
    if by_name is None and b"\x00" in head and not _BRACKET.search(head):
        what = "is no kind of file that can be read"
        raise DataError(what, where=str(path), hint=f"give one of {', '.join(sorted(SUFFIXES))}")
    if by_name == "text" and isinstance(_value(head.lstrip(BLANK).partition(b"\n")[0]), dict):
        return "jsonl"
    return by_name or "json"


def _is_lines(stream: ByteStream, *, prefers_lines: bool) -> bool:
    """Whether JSON, by its beginning and (where known) its end, has a row per line, or is a
    document. One bad line must not decide: several lines have their say, and the end of the
    file."""
    head, is_whole = stream.head.lstrip(BLANK), stream.is_whole
    first = head[:1]
    if first not in (b"[", b"{"):
        return True
    lines = head.split(b"\n", _LINES)
    if len(lines) > _LINES or (not is_whole and len(lines) > 1):
        lines.pop()
    lines = [stripped for line in lines if (stripped := line.strip(BLANK))]
    alone = _value(lines[0])
    # Rows begin and end on their line, whole or damaged; elements of an array end with a comma.
    rows = sum(line[:1] == b"{" and len(line) > 1 and line[-1] not in b",[]" for line in lines)
    joined = sum(line[-1:] == b"," for line in lines)
    if rows <= max(joined, 1) and _is_spread(head):
        return False
    if first == b"{":
        is_one = len(lines) == 1 and is_whole
        return prefers_lines or ((alone is not None or rows > max(joined, 1)) and not is_one)
    if is_whole and _all_objects(_value(head)):
        return False
    if len(lines) > 1 and alone is not None:
        is_array = alone and _all_objects(alone) and not rows and _value(lines[1]) is None
        return prefers_lines or not is_array
    ends_as_array = not stream.tail or stream.tail.rstrip(BLANK).endswith(b"]")
    if rows > joined and not (rows == 1 and ends_as_array):
        return True
    return prefers_lines and not (joined > rows or ends_as_array)


def _is_spread(text: bytes) -> bool:
    """Whether a text begins with a whole JSON value that takes several lines."""
    start = text.decode("utf-8", "replace")
    try:
        _, end = json.JSONDecoder().raw_decode(start)
    except (ValueError, RecursionError):
        return False
    return "\n" in start[:end]


def _value(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _all_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)
