"""The bytes of a file, plain or gzip, in chunks; what was read is told as it goes."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from mlx_itune.dataset.faults import RowFault

# What is made of a chunk of this size stays in the processor's cache, and in memory that the
# allocator hands out again without asking the system: larger chunks take half as long again.
CHUNK_BYTES = 1 << 16
MAX_ROW_BYTES = 64 << 20
BOM = b"\xef\xbb\xbf"
BLANK = b" \t\r\n"
_TAIL_BYTES = 4096


class ByteStream:
    """Chunks of a file. `head` is the first one, still to be read; a byte order mark is cut off.

    `on_bytes` is told how many more bytes of the file itself, compressed or not, are done with.
    A damaged gzip file ends early and says why in `broken`. Raises OSError.
    """

    def __init__(self, path: Path, on_bytes: Callable[[int], None] | None = None) -> None:
        self._file: BinaryIO = path.open("rb")
        self._unpacked: gzip.GzipFile | None = None
        self._on_bytes = on_bytes
        self._told = 0
        self._pending: bytes | None = None
        self.broken: RowFault | None = None
        try:
            self.is_gzip = self._file.read(2) == b"\x1f\x8b"
            self.tail = b"" if self.is_gzip else self._last_bytes()
            self._file.seek(0)
            if self.is_gzip:
                self._unpacked = gzip.GzipFile(fileobj=self._file)
            head = self._next()
        except BaseException:
            self._file.close()
            raise
        self.has_bom = head.startswith(BOM)
        self.head = head[len(BOM) :] if self.has_bom else head
        self.start = len(BOM) if self.has_bom else 0
        self.is_whole = len(head) < CHUNK_BYTES
        self._pending = self.head

    def __enter__(self) -> ByteStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._unpacked is not None:
            self._unpacked.close()
        self._file.close()

    def read(self) -> bytes:
        """The next chunk; nothing at the end."""
        if self._pending is not None:
            chunk, self._pending = self._pending, None
            # A file that is a byte order mark and no more still has nothing to read.
            return chunk
        if self._on_bytes is not None:
            self._tell()
        chunk = self._next()
        if not chunk and self._on_bytes is not None:
            self._tell()
        return chunk

    def _next(self) -> bytes:
        if self._unpacked is None:
            return self._file.read(CHUNK_BYTES)
        if self.broken is not None:
            return b""
        pieces: list[bytes] = []
        size = 0
        try:
            while size < CHUNK_BYTES and (piece := self._unpacked.read1(CHUNK_BYTES - size)):
                pieces.append(piece)
                size += len(piece)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            self.broken = RowFault(
                "gzip", f"the compressed file is damaged: {error}", "download it again"
            )
        return b"".join(pieces)

    def _tell(self) -> None:
        assert self._on_bytes is not None
        reached = self._file.tell()
        self._on_bytes(reached - self._told)
        self._told = reached

    def _last_bytes(self) -> bytes:
        size = self._file.seek(0, 2)
        self._file.seek(max(0, size - _TAIL_BYTES))
        return self._file.read(_TAIL_BYTES)
