"""Parquet and XLSX, a batch at a time. Line 1 stands for the header, as in a spreadsheet.

Numbers, dates and booleans in a column become text, as every column of a CSV is; lists and structs
stay what they are.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mlx_itune.dataset.faults import Fault, RowFault
from mlx_itune.dataset.reading.delimited import columns_of
from mlx_itune.dataset.reading.stream import Record
from mlx_itune.dataset.reading.strict_json import refuse_strange_text
from mlx_itune.kit.errors import DataError, UsageError
from mlx_itune.kit.wording import first_line

_BATCH_BYTES = 8 << 20
_MAX_BATCH_ROWS = 1024
_MAX_BOOK_BYTES = 2 << 30

Told = Callable[[int], None] | None


def read_parquet(path: Path, on_bytes: Told = None) -> Iterator[Record | Fault]:
    """A Record or Fault per row. Raises UsageError without pyarrow, DataError for no Parquet."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UsageError(
            "reading Parquet needs pyarrow",
            where=str(path),
            hint="pip install 'mlx-itune[tables]'",
        ) from None
    try:
        # Neither the whole file nor a whole row group may end up in memory.
        file = parquet.ParquetFile(path, memory_map=False, buffer_size=1 << 20, pre_buffer=False)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"is no readable Parquet file: {first_line(error)}", where=str(path)
        ) from None
    with file:
        names = file.schema_arrow.names
        if len({*names}) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            yield Fault(str(path), 1, "header", f"two columns are named {twice!r}", "rename one")
            return
        rows = file.metadata.num_rows
        told = _Share(path, rows, on_bytes)
        done = 0
        try:
            for batch in file.iter_batches(batch_size=_batch_rows(file.metadata)):
                for record in _batch(batch, done + 2, str(path)):
                    done += 1
                    yield record
                told.rows(done)
        except (pyarrow.ArrowException, OSError) as error:
            yield Fault(
                str(path),
                done + 2,
                "parquet",
                f"the last {rows - done:,} rows cannot be read: {first_line(error)}",
                "is the file damaged?",
            )


def read_xlsx(
    path: Path, on_bytes: Told = None, *, header: bool | None = None
) -> Iterator[Record | Fault]:
    """A Record or Fault per row of every sheet; `sheet` tells several apart.

    Each sheet has a header of its own, and is in memory while it is read.
    Raises DataError for what is no XLSX file.
    """
    import python_calamine as calamine

    try:
        _refuse_bomb(path)
        book = calamine.load_workbook(path)
        sheets = [
            book.get_sheet_by_name(sheet.name)
            for sheet in book.sheets_metadata
            if sheet.typ == calamine.SheetTypeEnum.WorkSheet
        ]
    except (calamine.CalamineError, zipfile.BadZipFile) as error:
        raise DataError(f"is no readable XLSX file: {first_line(error)}", where=str(path)) from None
    with book:
        for sheet in sheets:
            for record in _sheet(sheet.iter_rows(), str(path), header):
                if isinstance(record, Record) and len(sheets) > 1:
                    record.value.setdefault("sheet", sheet.name)
                yield record
    _Share(path, 1, on_bytes).rows(1)


def _refuse_bomb(path: Path) -> None:
    """Raise DataError for a workbook that would unpack to far more than fits in memory."""
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > _MAX_BOOK_BYTES:
            raise DataError("is too large a workbook", where=str(path), hint="save it as CSV")


def _sheet(
    rows: Iterator[Sequence[Any]], name: str, header: bool | None
) -> Iterator[Record | Fault]:
    columns: list[str] | None = None
    for line, row in enumerate(rows, 1):
        cells = [_cell(value) or "" for value in row]
        while cells and not cells[-1]:
            cells.pop()
        if not cells:
            continue
        if columns is None:
            found = columns_of(cells, header, [cells])
            if isinstance(found, RowFault):
                yield found.at(name, line)
                return
            columns, is_header = found
            if is_header:
                continue
        if len(cells) > len(columns):
            count = f"{len(cells)} cells, where the first row has {len(columns)}"
            yield Fault(name, line, "columns", count, "name the column or clear the cell")
            continue
        cells += [""] * (len(columns) - len(cells))
        yield from _record(dict(zip(columns, cells, strict=True)), line, name)


def _batch(batch: Any, line: int, name: str) -> Iterator[Record | Fault]:
    try:
        values = batch.to_pylist()
    except UnicodeDecodeError:
        values = None
    for number in range(batch.num_rows):
        try:
            value = values[number] if values else batch.slice(number, 1).to_pylist()[0]
            value = {key: _cell(item) for key, item in value.items()}
        except UnicodeDecodeError:
            reason = "a text that is not UTF-8"
            yield Fault(name, line + number, "utf-8", reason, "write the column as UTF-8 text")
            continue
        yield from _record(value, line + number, name)


def _record(value: dict[str, Any], line: int, name: str) -> Iterator[Record | Fault]:
    try:
        refuse_strange_text(value)
    except RowFault as fault:
        yield fault.at(name, line)
    else:
        yield Record(value, line)


def _cell(value: Any) -> Any:
    """A scalar as its text; nothing for null and not-a-number; nested values as they are."""
    if value is None or isinstance(value, (str, list, dict)):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _batch_rows(metadata: Any) -> int:
    """As many rows as make a batch of a few megabytes."""
    size = sum(metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups))
    per_row = max(1, size // max(1, metadata.num_rows))
    return int(max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES // per_row)))


class _Share:
    """Rows done, told as the bytes of the file that they are a share of."""

    def __init__(self, path: Path, rows: int, on_bytes: Told) -> None:
        self._bytes = path.stat().st_size
        self._rows = max(1, rows)
        self._on_bytes = on_bytes
        self._told = 0

    def rows(self, done: int) -> None:
        """`done` rows are done with."""
        reached = self._bytes * done // self._rows
        if self._on_bytes is not None:
            self._on_bytes(reached - self._told)
        self._told = reached
