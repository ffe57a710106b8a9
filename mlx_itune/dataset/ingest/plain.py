"""Texts, Markdown and tables of text, streamed: a file of any size, a paragraph at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from mlx_itune.dataset.conversation import Fault
from mlx_itune.dataset.how import Reading
from mlx_itune.dataset.ingest.passages import Block
from mlx_itune.dataset.reading import read_records
from mlx_itune.dataset.reading.stream import MAX_ROW_BYTES, ByteStream
from mlx_itune.kit.errors import DataError
from mlx_itune.kit.files import open_regular
from mlx_itune.kit.wording import count

OnBytes = Callable[[int], None]
Note = Callable[[str], None]

_HEADING = re.compile(r" {0,3}(#{1,6})\s+(.*?)\s*#*\s*")
_FENCE = re.compile(r" {0,3}(```+|~~~+)")
_UNDERLINE = re.compile(r" {0,3}(=+|-+)\s*")
# A paragraph without an end is cut here.
_MOST_CHARACTERS = 1 << 20


def read_text(path: Path, on_bytes: OnBytes, note: Note) -> Iterator[Block]:
    """Paragraphs, between empty lines. Raises DataError, StorageError."""
    yield from _paragraphs(_lines(path, on_bytes, note))


def read_markdown(path: Path, on_bytes: OnBytes, note: Note) -> Iterator[Block]:
    """Headings, and what is between them; code in fences stays one paragraph. Raises DataError,
    StorageError."""
    text: list[str] = []
    fence, is_matter = "", False
    for number, line in enumerate(_lines(path, on_bytes, note)):
        if number == 0 and line.strip() == "---":
            is_matter = True
        elif is_matter:
            is_matter = line.strip() not in ("---", "...")
        elif fence or (opened := _FENCE.match(line)):
            ends = fence and line.strip().startswith(fence) and not line.strip().strip(fence[0])
            fence = "" if ends else fence or (opened[1] if opened else "")
        elif found := _HEADING.fullmatch(line):
            yield from _paragraphs(text)
            text = []
            yield Block(found[2], "heading", len(found[1]))
            continue
        elif len(text) == 1 and text[0].strip() and (under := _UNDERLINE.fullmatch(line)):
            # What is underlined and stands alone is a heading.
            yield Block(text[0], "heading", 1 if under[1][0] == "=" else 2)
            text = []
            continue
        text.append(line)
        if not line.strip() and not fence:
            yield from _paragraphs(["\n".join(text)])
            text = []
    yield from _paragraphs(["\n".join(text)])


def read_table(path: Path, on_bytes: OnBytes, note: Note) -> Iterator[Block]:
    """A row at a time, `column: value | column: value`. Raises DataError, StorageError."""
    broken: list[Fault] = []
    is_empty = True
    for record in read_records(path, Reading(), on_bytes=on_bytes):
        if isinstance(record, Fault):
            broken.append(record)
            continue
        cells = ((key, value) for key, value in record.value.items() if value not in (None, ""))
        is_empty = False
        yield Block(" | ".join(f"{key}: {value}" for key, value in cells), "table")
    errors = [fault for fault in broken if fault.severity == "error"]
    if errors and is_empty:
        raise DataError(f"has no row that can be read: {errors[0].message}")
    if errors:
        note(f"{count(len(errors), 'row')} not read: {errors[0]}")


def _paragraphs(lines: Iterator[str] | list[str]) -> Iterator[Block]:
    text: list[str] = []
    size = 0
    for line in lines:
        if line.strip():
            text.append(line)
            size += len(line)
        if (not line.strip() or size > _MOST_CHARACTERS) and text:
            yield Block("\n".join(text))
            text, size = [], 0
    if text:
        yield Block("\n".join(text))


def _lines(path: Path, on_bytes: OnBytes, note: Note) -> Iterator[str]:
    with open_regular(path, DataError) as file:
        stream = ByteStream(file, on_bytes)
        stream.guess_encoding()
        if b"\0" in stream.head:
            raise DataError("is no text", hint="it has zero bytes")
        for number, _, line in stream.lines():
            if len(line) > MAX_ROW_BYTES:
                raise DataError(f"line {number} is longer than {MAX_ROW_BYTES >> 20} MB")
            text = line.decode("utf-8", "replace")
            if "\ufffd" in text and b"\xef\xbf\xbd" not in line:
                note(f"line {number} has bytes that are no {stream.encoding or 'UTF-8'}")
            yield text.rstrip("\r")
        if stream.broken:
            raise DataError(str(stream.broken))
