"""Rows on their way through the steps, and a file in which they wait for a look at all of them."""

from __future__ import annotations

import pickle
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

from mlx_itune.dataset.conversation import Conversation
from mlx_itune.kit.files import storage_errors


@dataclass(frozen=True)
class Row:
    """A row: the split it goes to, as it was read, as it is now, and (step, detail) of changes."""

    split: str
    before: Conversation
    now: Conversation
    notes: tuple[tuple[str, str], ...] = ()


class Spool:
    """Rows in a temporary file: written once, read in order or by number. A context manager.

    The file is our own and gone afterwards, so that pickle is safe here; 8 bytes per row stay in
    memory.
    """

    def __enter__(self) -> Spool:
        with storage_errors(tempfile.gettempdir()):
            self._file = tempfile.TemporaryFile(prefix="mlx-itune-clean-")
        self._starts = array("Q")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._starts)

    def append(self, row: Row) -> None:
        """Write one row at the end."""
        with storage_errors(tempfile.gettempdir()):
            self._starts.append(self._file.tell())
            pickle.dump(row, self._file, protocol=pickle.HIGHEST_PROTOCOL)

    def __iter__(self) -> Iterator[Row]:
        """All rows in order. Nothing may be appended meanwhile."""
        at = 0
        for _ in range(len(self._starts)):
            # Rows may be fetched by number in between.
            self._file.seek(at)
            row: Row = pickle.load(self._file)
            at = self._file.tell()
            yield row

    def row(self, number: int) -> Row:
        """One row, by number from 0."""
        self._file.seek(self._starts[number])
        found: Row = pickle.load(self._file)
        return found

    def conversations(self, numbers: Sequence[int]) -> Iterator[tuple[int, Conversation]]:
        """Rows by number, as they are now."""
        for number in numbers:
            yield number, self.row(number).now
