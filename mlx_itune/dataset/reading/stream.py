"""The bytes of a file, plain or gzip, in chunks or lines; what was read is told as it goes."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from mlx_itune.dataset.conversation import RowFault, origin_of

# What is made of a chunk of this size stays in the processor's cache, and in memory that the
# allocator hands out again without asking the system: larger chunks take half as long again.
CHUNK_BYTES = 1 << 16
MAX_ROW_BYTES = 64 << 20
BLANK = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"
_TAIL_BYTES = 4096


class Record(NamedTuple):
    """A row as it stands in its file; `line` counts from 1. `row` counts the rows of the file,
    where several stand on one line."""

    value: dict[str, Any]
    line: int
    row: int | None = None

    def origin(self, file: str) -> str:
        """The address of the row."""
        return origin_of(file, self.line, self.row)


class ByteStream:
    """Chunks of an open file. `head` is the first one, still to be read; a byte order mark is cut.
    `on_bytes` is told how many more bytes of the file have been read. A damaged gzip file ends
    early and says why in `broken`. Raises OSError."""

    def __init__(self, file: BinaryIO, on_bytes: Callable[[int], None] | None = None) -> None:
        self._file, self._on_bytes, self._told = file, on_bytes, 0
        self.broken: RowFault | None = None
        is_gzip = file.read(2) == b"\x1f\x8b"
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        self.tail = b"" if is_gzip else file.read()
        file.seek(0)
        self._content: Any = gzip.GzipFile(fileobj=file) if is_gzip else file
        head = self._next()
        self.is_whole = len(head) < CHUNK_BYTES
        self.has_bom = head.startswith(_BOM)
        self.start = len(_BOM) if self.has_bom else 0
        self.head = head[self.start :]
        self._pending: bytes | None = self.head

    def read(self) -> bytes:
        """The next chunk; nothing at the end."""
        chunk = self._next() if self._pending is None else self._pending
        self._pending = None
        if self._on_bytes is not None:
            reached = self._file.tell()
            self._on_bytes(reached - self._told)
            self._told = reached
        return chunk

    def lines(self) -> Iterator[tuple[int, int, bytes]]:
        """(number, first byte, line) of each line; lines end at b"\\n" only.

        Of one that is longer than MAX_ROW_BYTES, so many bytes and one more.
        """
        number, at = 0, self.start
        pieces: list[bytes] = []
        size = 0
        while chunk := self.read():
            *ends, rest = chunk.split(b"\n")
            for end in ends:
                number += 1
                yield number, at, b"".join((*pieces, end))[: MAX_ROW_BYTES + 1]
                at += size + len(end) + 1
                pieces, size = [], 0
            if size <= MAX_ROW_BYTES:
                pieces.append(rest)
            size += len(rest)
        if size:
            yield number + 1, at, b"".join(pieces)[: MAX_ROW_BYTES + 1]

    def _next(self) -> bytes:
        pieces: list[bytes] = []
        left = 0 if self.broken else CHUNK_BYTES
        try:
            while left and (piece := self._content.read1(left)):
                pieces.append(piece)
                left -= len(piece)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            reason = f"the compressed file is damaged: {error}"
            self.broken = RowFault("gzip", reason, "download it again")
        return b"".join(pieces)


def refuse_too_long(size: int) -> None:
    """Raise RowFault for a row that would not fit in memory with its neighbours."""
    if size > MAX_ROW_BYTES:
        reason = f"the row is longer than {MAX_ROW_BYTES >> 20} MiB"
        raise RowFault("row-size", reason, "split it, or look for a missing line break or bracket")
