"""What a transformation reads: files with names that mean something on any machine."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_itune.dataset.importing.ledger import DESCRIPTION, LEDGER, REJECTED
from mlx_itune.dataset.sources import expand
from mlx_itune.kit.errors import DataError, one_line

_SPLIT_OF = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "eval": "valid",
    "test": "test",
    "testing": "test",
}
# "test", "validation", "train-00000-of-00002": the word ends where the name or a part of it does.
_SPLIT_NAME = re.compile(rf"({'|'.join(_SPLIT_OF)})(?:[-_.]|$)")


@dataclass(frozen=True)
class InputFile:
    """A file of rows. `label` is its name in ledgers and origins: relative, never absolute.

    `name` is the source it belongs to; `split` the one its own name speaks of, if any.
    """

    path: Path
    label: str
    name: str
    split: str | None


@dataclass(frozen=True)
class Parent:
    """A data folder with a ledger among the inputs; its files' labels start with `prefix`."""

    folder: Path
    prefix: str


@dataclass(frozen=True)
class Inputs:
    """Every file of the sources, in a stable order, and the data folders they came in."""

    files: tuple[InputFile, ...]
    parents: tuple[Parent, ...] = ()
    folders: tuple[Path, ...] = ()

    def new_files(self) -> list[InputFile]:
        """The files that are not of a data folder with a history of its own."""
        old = tuple(parent.prefix for parent in self.parents)
        return [file for file in self.files if not (old and file.label.startswith(old))]


def find_inputs(sources: Sequence[Path]) -> Inputs:
    """The files of rows in `sources` (files, or folders of them), each with a label of its own.

    One folder's files are named within it; with several sources, within the folder's name.
    Raises DataError for a source that is missing, holds no file of rows, or is given twice.
    """
    files: list[InputFile] = []
    parents: list[Parent] = []
    seen: set[Path] = set()
    names = Counter(_name(source) for source in sources if source.is_dir())
    used: Counter[str] = Counter()
    for source in sources:
        if not source.exists():
            raise DataError("no such file or folder", where=str(source))
        prefix = ""
        if source.is_dir():
            if len(sources) > 1:
                name = _name(source)
                used[name] += 1
                prefix = f"{name}-{used[name]}/" if names[name] > 1 else f"{name}/"
            if is_data_folder(source):
                parents.append(Parent(source, prefix))
        for path in expand([source]):
            if path.name == REJECTED and source.is_dir():
                continue
            real = path.resolve()
            if real in seen:
                raise DataError("is given twice", where=str(path))
            seen.add(real)
            inner = path.relative_to(source).as_posix() if source.is_dir() else path.name
            files.append(input_file(path, prefix + inner, source))
    folders = tuple(source for source in sources if source.is_dir())
    return Inputs(tuple(distinct(files)), tuple(parents), folders)


def input_file(path: Path, label: str, source: Path) -> InputFile:
    """A file of `source`; a folder's train, valid and test files are one source of its name."""
    stem = path.stem if path.suffix.lower() != ".gz" else Path(path.stem).stem
    # Names end up in rows, so what is no UTF-8 in them has to become text.
    label, stem = one_line(label), one_line(stem)
    match = _SPLIT_NAME.match(stem.lower())
    if match is None:
        return InputFile(path, label, stem, None)
    name = stem if path == source else _name(source)
    return InputFile(path, label, name, _SPLIT_OF[match[1]])


def is_data_folder(path: Path) -> bool:
    """Whether a folder was written by this program: it has a ledger and a description."""
    return (path / LEDGER).is_file() and (path / DESCRIPTION).is_file()


def _name(source: Path) -> str:
    return one_line(Path(os.path.realpath(source)).name)


def distinct(files: list[InputFile]) -> Iterator[InputFile]:
    """Equal labels get their parent folder's name, and a number where that does not help."""
    for attempt in range(3):
        counts = Counter(file.label for file in files)
        if max(counts.values(), default=1) == 1:
            break
        numbers: Counter[str] = Counter()
        named = []
        for file in files:
            label = file.label
            if counts[label] > 1:
                numbers[label] += 1
                parent = _name(file.path.parent)
                label = f"{parent}/{label}" if attempt == 0 else f"{label}#{numbers[label]}"
            named.append(dataclasses.replace(file, label=label))
        files = named
    return iter(files)
