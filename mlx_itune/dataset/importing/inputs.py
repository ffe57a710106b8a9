"""What a step reads: files on this disk with names that mean something on any machine."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from mlx_itune.dataset.importing import hub
from mlx_itune.dataset.importing.licences import joined, licence_beside
from mlx_itune.dataset.importing.provenance import (
    VERSION,
    DatasetRecord,
    SourceRecord,
    read_dataset,
)
from mlx_itune.dataset.sources import expand
from mlx_itune.kit.errors import DataError, closest, one_line

_SPLIT_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev", "eval"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# "test", "validation", "train-00000-of-00002": the word ends where the name or a part of it does.
_SPLIT_NAME = re.compile(rf"({'|'.join(_SPLIT_OF)})(?:[-_.]|$)")
_REJECTED = "rejected.jsonl"
_NAMES_READ = 10_000


@dataclass(frozen=True)
class Parent:
    """A data folder among the inputs. `paths` gives its raw files' names in the new folder."""

    folder: Path
    record: DatasetRecord
    paths: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class InputFile:
    """A file of rows. `label` is its name in records and origins: relative, never absolute.

    `name` is the source it belongs to; `split` the one its own name speaks of, if any. `parent`
    is set for a file of a data folder whose rows carry an origin.
    """

    path: Path
    label: str
    name: str
    split: str | None
    licence: str | None = None
    hub: str | None = None
    revision: str | None = None
    parent: Parent | None = None


@dataclass(frozen=True)
class Inputs:
    """Every file of the sources, in a stable order, and the data folders among them."""

    files: tuple[InputFile, ...]
    parents: tuple[Parent, ...] = ()
    folders: tuple[Path, ...] = ()

    def new_files(self) -> list[InputFile]:
        """The files that are raw here."""
        return [file for file in self.files if file.parent is None]

    def sources(self) -> list[SourceRecord]:
        """The raw files that the parents name, under their names in the new folder."""
        found: dict[str, SourceRecord] = {}
        for parent in self.parents:
            for source in parent.record.sources:
                path = parent.paths[source.path]
                there = found.get(path)
                licence = (there.licence if there else None) or source.licence
                found[path] = replace(source, path=path, licence=licence)
        return list(found.values())

    def licences(self) -> dict[str, str | None]:
        """The licence of each source by name."""
        known: dict[str, str | None] = {}
        pairs = [(source.name, source.licence) for source in self.sources()]
        for name, licence in pairs + [(file.name, file.licence) for file in self.new_files()]:
            known[name] = known.get(name) or licence
        return known


def gather(sources: Sequence[str], name: str | None = None) -> Inputs:
    """Files and folders as they are, Hub data sets as files of the cache. A local path wins.

    `name` is what all raw files are called instead of their own names. Raises DataError for a
    path that is not there, and what hub.fetch raises.
    """
    local: list[Path] = []
    fetched: list[InputFile] = []
    for source in sources:
        path = Path(source).expanduser()
        named = None if path.exists() else hub.parse_name(source)
        if named is None:
            local.append(path)
            continue
        data = hub.fetch(named)
        for each in data.files:
            label = f"{named.name}/{each.relative_to(data.folder).as_posix()}"
            fetched.append(
                replace(
                    _input_file(each, label, each),
                    name=named.name.rpartition("/")[2],
                    licence=licence_beside(data.folder),
                    hub=named.name,
                    revision=data.revision,
                )
            )
    inputs = find_inputs(local) if local else Inputs(())
    files = [
        file if file.parent or file.licence else replace(file, licence=_licence(file.path, local))
        for file in inputs.files
    ]
    files += fetched
    if name:
        files = [file if file.parent else replace(file, name=name) for file in files]
    return _distinct(replace(inputs, files=tuple(files)))


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
            raise no_such(source)
        prefix, parent, licence = "", None, None
        if source.is_dir():
            if len(sources) > 1:
                name = _name(source)
                used[name] += 1
                prefix = f"{name}-{used[name]}/" if names[name] > 1 else f"{name}/"
            record = read_dataset(source)
            if record and record.version >= VERSION:
                parent = Parent(source, record)
                parents.append(parent)
            elif record:
                # Its rows carry no origin, so its files are what rows come from.
                licence = joined(each.licence for each in record.sources)
        for path in expand([source]):
            if path.name == _REJECTED and source.is_dir():
                continue
            if path.resolve() in seen:
                raise DataError("is given twice", where=str(path))
            seen.add(path.resolve())
            inner = path.relative_to(source).as_posix() if source.is_dir() else path.name
            file = _input_file(path, prefix + inner, source)
            files.append(replace(file, parent=parent, licence=licence))
    folders = tuple(source for source in sources if source.is_dir())
    return _distinct(Inputs(tuple(files), tuple(parents), folders))


def no_such(path: Path) -> DataError:
    """The error for a path that is not there: with what may have been meant in its folder."""
    missing = path
    while not missing.parent.is_dir() and missing.parent != missing:
        missing = missing.parent
    there = [entry.name for entry in islice(missing.parent.iterdir(), _NAMES_READ)]
    hint = None
    if near := closest(missing.name, there):
        whole = missing.with_name(near) / path.relative_to(missing)
        hint = f"did you mean {whole if whole.exists() else missing.with_name(near)}?"
    return DataError("no such file or folder", where=str(path), hint=hint)


def _input_file(path: Path, label: str, source: Path) -> InputFile:
    """A file of `source`; a folder's train, valid and test files are one source of its name."""
    stem = path.stem if path.suffix.lower() != ".gz" else Path(path.stem).stem
    # Names end up in rows, so what is no UTF-8 in them has to become text.
    label, stem = one_line(label), one_line(stem)
    match = _SPLIT_NAME.match(stem.lower())
    if match is None:
        return InputFile(path, label, stem, None)
    name = stem if path == source else _name(source)
    return InputFile(path, label, name, _SPLIT_OF[match[1]])


def _licence(path: Path, sources: Sequence[Path]) -> str | None:
    """What the file's folder says, or else the folder that was named."""
    above = [source for source in sources if source.is_dir() and path.is_relative_to(source)]
    return next((found for place in (path, *above) if (found := licence_beside(place))), None)


def _name(source: Path) -> str:
    return one_line(Path(os.path.realpath(source)).name)


def _distinct(inputs: Inputs) -> Inputs:
    """Labels that no two files share, nor a raw file that a data folder among them names."""
    labels = list(_unique((file.label, _name(file.path.parent)) for file in inputs.files))
    files = tuple(
        replace(file, label=label) for file, label in zip(inputs.files, labels, strict=True)
    )
    taken: dict[str, str | None] = {file.label: None for file in files if file.parent is None}
    for parent in inputs.parents:
        for source in parent.record.sources:
            path = source.path
            while path in taken and (taken[path] is None or taken[path] != source.sha256):
                path = f"{_name(parent.folder)}/{path}"
            taken[path] = source.sha256 or ""
            parent.paths[source.path] = path
    return replace(inputs, files=files)


def _unique(names: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Each label; one that was there already with its folder's name, or a number behind it."""
    used: set[str] = set()
    for label, folder in names:
        choice, number = label, 1
        while choice in used:
            choice = f"{folder}/{label}" if number == 1 else f"{folder}/{label}#{number}"
            number += 1
        used.add(choice)
        yield choice
