"""Numbers kept per row, in files: one column each, written in pieces, read when all is there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from mlx_itune.dataset.checking.chunk import U64, Index
from mlx_itune.kit.errors import StorageError
from mlx_itune.kit.files import storage_errors

_BUFFER_ROWS = 1 << 14
_BLOCK_ROWS = 1 << 20
# Rows sorted at a time: 64 MB.
_SORT_ROWS = 1 << 23


class Columns:
    """Columns of uint64 in a temporary folder that is gone afterwards; a context manager."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.rows = 0
        self._pending: list[U64] = []
        self._pending_rows = 0

    def __enter__(self) -> Columns:
        with storage_errors(tempfile.gettempdir()):
            self._folder = Path(tempfile.mkdtemp(prefix="mlx-itune-check-"))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def append(self, values: U64) -> None:
        """Add rows: (n, width)."""
        self._pending.append(values)
        self._pending_rows += len(values)
        self.rows += len(values)
        if self._pending_rows >= _BUFFER_ROWS:
            self._flush()

    def read(self, column: int) -> U64:
        """A whole column: 8 bytes per row."""
        return np.concatenate([np.zeros(0, np.uint64), *self._blocks(column)])

    def pick(self, column: int, rows: Index) -> U64:
        """The values of some rows (in rising order)."""
        out = np.zeros(len(rows), np.uint64)
        done, at = 0, 0
        for block in self._blocks(column):
            upto = int(np.searchsorted(rows, at + len(block)))
            out[done:upto] = block[rows[done:upto] - at]
            done, at = upto, at + len(block)
        return out

    def groups(self, column: int, mask: np.uint64) -> Iterator[tuple[Index, Index]]:
        """Rows that agree in a column's masked bits: (rows, sizes), group after group.

        Rows with zeros take no part. Rows of a group are in rising order. Part of a hash is
        compared, so that now and then rows stand together that do not agree.
        """
        index_bits = max(1, self.rows - 1).bit_length()
        low = np.uint64((1 << index_bits) - 1)
        parts = -(-self.rows // _SORT_ROWS)
        for part in range(parts):
            keys = self._packed(column, mask, low, part, parts)
            keys.sort()
            same = (keys[1:] ^ keys[:-1]) <= low
            # Padded, every run of equal keys has a start and an end.
            edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).view(np.int8)))
            starts, ends = edges[0::2], edges[1::2] + 1
            if not len(starts):
                continue
            sizes = ends - starts
            within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            members = keys[np.repeat(starts, sizes) + within] & low
            del keys, same
            yield members.astype(np.intp), sizes

    def _packed(self, column: int, mask: np.uint64, low: np.uint64, part: int, parts: int) -> U64:
        """Hash bits above, row numbers below, of the rows of one part."""
        kept: list[U64] = []
        at = 0
        for block in self._blocks(column):
            masked = block & mask
            rows = np.arange(at, at + len(block), dtype=np.uint64)
            at += len(block)
            masked ^= masked >> np.uint64(31)
            masked *= np.uint64(0x9E3779B97F4A7C15)
            masked ^= masked >> np.uint64(29)
            keep = block != 0
            if parts > 1:
                keep &= masked % np.uint64(parts) == np.uint64(part)
            packed = (masked & ~low) | rows
            kept.append(packed[keep])
        return np.concatenate(kept) if kept else np.zeros(0, np.uint64)

    def _blocks(self, column: int) -> Iterator[U64]:
        self._flush()
        path = self._folder / f"{column}"
        if not path.exists():
            return
        with storage_errors(path), path.open("rb") as file:
            while len(block := np.fromfile(file, np.uint64, _BLOCK_ROWS)):
                yield block

    def _flush(self) -> None:
        if not self._pending:
            return
        table = np.ascontiguousarray(np.concatenate(self._pending).T)
        self._pending, self._pending_rows = [], 0
        with storage_errors(self._folder):
            for column, values in enumerate(table):
                with (self._folder / f"{column}").open("ab") as file:
                    written = file.write(memoryview(values).cast("B"))
                if written != values.nbytes:
                    raise StorageError("not all was written", where=str(self._folder))
