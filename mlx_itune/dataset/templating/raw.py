"""The files that raw rows come from, each with the split it is, if it is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_itune.dataset.faults import Fault
from mlx_itune.dataset.importing.inputs import find_inputs
from mlx_itune.dataset.reading import Record, kind_by_name, read_records
from mlx_itune.kit.errors import DataError

_SPLITS = {
    "train": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
}
_TABLES = ("csv", "tsv", "xlsx")
_NO_COLUMNS = "--columns is for CSV, TSV and XLSX"


@dataclass(frozen=True)
class RawFile:
    """A file of rows. `split` is None where its rows have no split of their own."""

    path: Path
    split: str | None = None


def raw_files(source: Path, out: Path) -> tuple[tuple[RawFile, ...], tuple[Path, ...]]:
    """The files of a source, and those that are left out.

    A folder that has a train file is read by splits (train, valid, test; validation, val and dev
    mean valid), and its other files are left out. Any other folder is read whole.
    Raises DataError for a source without files, two files of one split, or `out` inside it.
    """
    paths = [file.path for file in find_inputs([source]).files]
    if not paths:
        raise DataError("holds no file of rows", where=str(source))
    if not source.is_dir():
        return (RawFile(source),), ()
    if out.resolve().is_relative_to(source.resolve()):
        raise DataError("--out lies inside the source", where=str(out), hint="name another folder")
    by_split: dict[str, Path] = {}
    others = []
    for path in paths:
        split = _SPLITS.get(path.stem)
        if split is None:
            others.append(path)
        elif split in by_split:
            raise DataError(
                f"{by_split[split].name} and {path.name} are both the {split} split",
                where=str(source),
            )
        else:
            by_split[split] = path
    if "train" not in by_split:
        return tuple(map(RawFile, paths)), ()
    files = [RawFile(by_split[s], s) for s in ("train", "valid", "test") if s in by_split]
    return tuple(files), tuple(others)


def read_raw(
    file: RawFile, columns: Sequence[str], on_bytes: Callable[[int], None]
) -> Iterator[Record | Fault]:
    """The rows of a file. `columns` names the columns of a table that has no header line.

    Raises DataError where `columns` does not fit the file.
    """
    if not columns:
        yield from read_records(file.path, on_bytes=on_bytes)
        return
    if kind_by_name(file.path) not in _TABLES:
        raise DataError("is no table without a header", where=str(file.path), hint=_NO_COLUMNS)
    is_first = True
    for record in read_records(file.path, header=False, on_bytes=on_bytes):
        if isinstance(record, Fault):
            yield record
            continue
        cells = list(record.value.values())
        if len(cells) != len(columns):
            raise DataError(
                f"has {len(cells)} columns, and --columns names {len(columns)}",
                where=f"{file.path}:{record.line}",
            )
        if not is_first or cells != list(columns):
            yield Record(dict(zip(columns, cells, strict=True)), record.line)
        is_first = False
