"""Parquet and XLSX. Line 1 stands for the header, as in a spreadsheet. Numbers, dates and booleans
in a column become text, as every column of a CSV is; lists and structs stay what they are."""

from __future__ import annotations

import functools
import itertools
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mlx_itune.dataset.conversation import Fault, RowFault
from mlx_itune.dataset.how import Account
from mlx_itune.dataset.reading.columns import Cells, named_rows
from mlx_itune.dataset.reading.stream import Record, refuse_strange_text
from mlx_itune.kit.errors import DataError, UsageError
from mlx_itune.kit.wording import brief

_BATCH_BYTES = 8 << 20
_MAX_BATCH_ROWS = 1024
# What a workbook may unpack to, and a sheet's grid hold: both are in memory at once.
_MAX_BOOK_BYTES = 1 << 30
_MAX_CELLS = 1 << 24
_CHUNK_BYTES = 1 << 20
_PLACE = re.compile(rb"<(?:\w+:)?(?:c|row)\s(?:[^<>]*?\s)?r\s*=\s*[\"']([A-Za-z]*)([0-9]*)")

Told = Callable[[int], None] | None


def read_parquet(path: Path, on_bytes: Told = None) -> Iterator[Record | Fault]:
    """A Record or Fault per row. Raises UsageError without pyarrow, DataError for no Parquet."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        lacks = "reading Parquet needs pyarrow"
        raise UsageError(lacks, where=str(path), hint="pip install pyarrow") from None
    try:
        # Neither the whole file nor a whole row group may end up in memory.
        file = parquet.ParquetFile(path, memory_map=False, buffer_size=1 << 20, pre_buffer=False)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        said = brief(error)
        raise DataError(f"is no readable Parquet file: {said}", where=str(path)) from None
    with file:
        names = file.schema_arrow.names
        if len({*names}) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            yield Fault(str(path), 1, "header", f"two columns are named {twice!r}", "rename one")
            return
        rows, size = file.metadata.num_rows, path.stat().st_size
        done = told = 0
        try:
            for batch in file.iter_batches(batch_size=_batch_rows(file.metadata)):
                yield from _batch(batch, done + 2, str(path))
                done += batch.num_rows
                if on_bytes is not None:
                    on_bytes(size * done // rows - told)
                told = size * done // rows
        except (pyarrow.ArrowException, OSError) as error:
            lost = f"the last {rows - done:,} rows cannot be read: {brief(error)}"
            yield Fault(str(path), done + 2, "parquet", lost, "is the file damaged?")


def _batch_rows(metadata: Any) -> int:
    size = sum(metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups))
    per_row = max(1, size // max(1, metadata.num_rows))
    return int(max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES // per_row)))


def _batch(batch: Any, line: int, name: str) -> Iterator[Record | Fault]:
    nested = {
        field.name: field.type for field in batch.schema if str(field.type).count("struct<") > 1
    }
    try:
        values = batch.to_pylist()
    except UnicodeDecodeError:
        values = None
    for number in range(batch.num_rows):
        try:
            value = values[number] if values else batch.slice(number, 1).to_pylist()[0]
            value = {key: _cell(item) for key, item in value.items()}
            value |= {key: _unpadded(value[key], kind) for key, kind in nested.items()}
        except UnicodeDecodeError:
            reason = "a text that is not UTF-8"
            yield Fault(name, line + number, "utf-8", reason, "write the column as UTF-8 text")
            continue
        yield _checked(Record(value, line + number), name)


# Of calls and tools, what says something as an empty object.
_MAY_BE_EMPTY = frozenset({"arguments", "parameters", "properties"})


def _unpadded(value: Any, kind: Any) -> Any:
    """A value of an Arrow type without the nulls that are there because other rows have something:
    objects of several kinds become a struct of all their keys. Nulls alone are what rows say."""
    if isinstance(value, dict) and hasattr(kind, "fields"):
        left = {
            field.name: _unpadded(value[field.name], field.type)
            for field in kind
            if value[field.name] is not None or str(field.type) == "null"
        }
        # Some writers pad with an object of nulls.
        return {name: item for name, item in left.items() if item != {} or name in _MAY_BE_EMPTY}
    if isinstance(value, list) and hasattr(kind, "value_type"):
        return [_unpadded(item, kind.value_type) for item in value]
    return value


def read_xlsx(
    path: Path, told: Account, on_bytes: Told = None, *, header: bool | None = None
) -> Iterator[Record | Fault]:
    """A Record or Fault per row of every sheet, each under its own header; `sheet` tells several
    apart. Raises DataError for what is no XLSX file, or too large."""
    import python_calamine as calamine

    try:
        if zipfile.is_zipfile(path):
            _refuse_huge(path)
        book = calamine.load_workbook(path)
    except (calamine.CalamineError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        said = brief(error)
        hint = "save it as XLSX or CSV" if path.suffix.lower() != ".xlsx" else None
        raise DataError(f"is no readable spreadsheet: {said}", where=str(path), hint=hint) from None
    sheets = [s for s in book.sheets_metadata if s.typ == calamine.SheetTypeEnum.WorkSheet]
    for sheet in sheets:
        try:
            grid = book.get_sheet_by_name(sheet.name)
            left = (grid.start or (0, 0))[1]
            merged = [
                (top, bottom, column - left)
                for (top, column), (bottom, _) in grid.merged_cell_ranges or ()
                if bottom > top
            ]
            rows = _sheet(grid.iter_rows(), merged)
        except calamine.CalamineError as error:
            lost = f"the sheet {sheet.name!r} cannot be read: {brief(error)}"
            yield Fault(str(path), 1, "xlsx", lost, "is the file damaged?")
            continue
        for record in named_rows(rows, str(path), header, told, is_sheet=True):
            if isinstance(record, Record):
                if len(sheets) > 1:
                    record.value.setdefault("sheet", sheet.name)
                record = _checked(record, str(path))
            yield record
    if on_bytes is not None:
        on_bytes(path.stat().st_size)


def _sheet(rows: Iterator[list[Any]], merged: Sequence[tuple[int, int, int]]) -> Iterator[Cells]:
    """The rows that say something. Of cells that are `merged` from one row to another, each row has
    what they show."""
    shown: dict[tuple[int, int, int], str] = {}
    for line in itertools.count(1):
        try:
            cells = [_cell(value) or "" for value in next(rows)]
            for place in merged:
                top, bottom, column = place
                if top < line <= bottom + 1 and column < len(cells):
                    cells[column] = shown.setdefault(place, cells[column])
        except StopIteration:
            return
        except (OverflowError, ValueError) as error:
            reason = f"a date or time that is none: {brief(error)}"
            yield Cells(line, None, RowFault("xlsx", reason, "correct the cell"))
            continue
        while cells and not cells[-1]:
            cells.pop()
        if cells:
            yield Cells(line, cells)


def _refuse_huge(path: Path) -> None:
    """Raise DataError where a sheet's grid, which a single cell far out makes huge, has no room."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.filename.endswith(".iwa") for entry in entries):
            hint = "in Numbers, File > Export To > CSV or Excel"
            raise DataError("is a Numbers document", where=str(path), hint=hint)
        if sum(entry.file_size for entry in entries) > _MAX_BOOK_BYTES:
            raise DataError("is too large a workbook", where=str(path), hint="save it as CSV")
        for entry in entries:
            rest, width, height = b"", 1, 1
            with archive.open(entry) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    rest += chunk
                    for letters, digits in _PLACE.findall(rest):
                        width = max(width, _column(letters[:8]))
                        height = max(height, int(digits[:9] or 0))
                    if width * height > _MAX_CELLS:
                        message = f"has a sheet of {width:,} columns and {height:,} rows"
                        raise DataError(message, where=str(path), hint="save it as CSV")
                    rest = rest[max(0, rest.rfind(b"<")) :][:_CHUNK_BYTES]


def _column(letters: bytes) -> int:
    return functools.reduce(lambda number, letter: 26 * number + letter - 64, letters.upper(), 0)


def _checked(record: Record, name: str) -> Record | Fault:
    try:
        refuse_strange_text(record.value)
    except RowFault as fault:
        return fault.at(name, record.line)
    return record


def _cell(value: Any) -> Any:
    """A scalar as its text; nothing for null and not-a-number; nested values as they are."""
    if value is None or isinstance(value, (str, list, dict)):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isnan(value):
            return None
        # As many digits as a spreadsheet shows.
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.15g}"
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return str(value)
