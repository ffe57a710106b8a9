"""What a step reads: files on this disk with names that mean something on any machine."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from mlx_itune.dataset.importing import hub
from mlx_itune.dataset.importing.licences import joined, licence_beside
from mlx_itune.dataset.importing.provenance import (
    VERSION,
    DatasetRecord,
    SourceRecord,
    read_dataset,
)
from mlx_itune.dataset.sources import expand, no_such
from mlx_itune.kit.errors import DataError, one_line

# (stage, bytes done, bytes in all)
OnBytes = Callable[[str, int, int], None]

_SPLIT_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev", "eval"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# "test", "validation", "train-00000-of-00002": the word ends where the name or a part of it does.
_SPLIT_NAME = re.compile(rf"({'|'.join(_SPLIT_OF)})(?:[-_.]|$)")


@dataclass(frozen=True)
class Parent:
    """A data folder among the inputs. `paths` gives its raw files' names in the new folder."""

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
        found = {
            parent.paths[source.path]: replace(source, path=parent.paths[source.path])
            for parent in self.parents
            for source in parent.record.sources
        }
        return list(found.values())

    def licences(self) -> dict[str, str | None]:
        """The licence of each source by name."""
        known: dict[str, str | None] = {}
        pairs = [(source.name, source.licence) for source in self.sources()]
        for name, licence in pairs + [(file.name, file.licence) for file in self.new_files()]:
            known[name] = known.get(name) or licence
        return known


def find_inputs(sources: Sequence[Path | str], name: str | None = None) -> Inputs:
    """The files of rows in `sources`, each with a label of its own.

    A source is a file, a folder of files, or, as a text that is no path, a data set of the Hub,
    whose files are read from the cache. `name` is what all raw files are called instead of their
    own names. Raises DataError for a source that is missing, holds no file of rows, or is given
    twice, and what hub.fetch raises.
    """
    files: list[InputFile] = []
    folders: list[Path] = []
    for source in sources:
        path = Path(source).expanduser()
        if path.exists():
            folders += [path] if path.is_dir() else []
            files += _local_files(path, f"{_name(path)}/" if len(sources) > 1 else "")
        elif isinstance(source, str) and (named := hub.parse_name(source)):
            files += _hub_files(named)
        else:
            raise no_such(path)
    real = [file.path.resolve() for file in files]
    for file, path in zip(files, real, strict=True):
        if real.count(path) > 1:
            raise DataError("is given twice", where=str(file.path))
    taken: dict[str, str] = {}
    for at, file in enumerate(files):
        own = file.name if file.parent else name or file.name
        files[at] = replace(file, label=_free(file.label, taken), name=own)
        taken[files[at].label] = ""
    parents = list({id(file.parent): file.parent for file in files if file.parent}.values())
    for parent in parents:
        for raw in parent.record.sources:
            # The same raw file in two folders is one; another of its name gets another.
            parent.paths[raw.path] = _free(raw.path, taken, raw.sha256)
            taken[parent.paths[raw.path]] = raw.sha256 or ""
    return Inputs(tuple(files), tuple(parents), tuple(folders))


def _local_files(source: Path, prefix: str) -> Iterator[InputFile]:
    """The files of a folder, labelled within it behind `prefix`, or a file itself."""
    record = read_dataset(source)
    parent = Parent(record) if record and record.version >= VERSION else None
    # An earlier version's rows carry no origin, so its files are what they come from.
    licence = joined(raw.licence for raw in record.sources) if record else None
    for path in expand([source]):
        is_inside = source.is_dir()
        label = prefix + path.relative_to(source).as_posix() if is_inside else path.name
        said = licence or licence_beside(path) or licence_beside(source)
        yield _input_file(path, label, source, licence=said, parent=parent)


def _hub_files(named: hub.HubName) -> Iterator[InputFile]:
    data = hub.fetch(named)
    licence = licence_beside(data.folder)
    for path in data.files:
        label = f"{named.name}/{path.relative_to(data.folder).as_posix()}"
        about = {"licence": licence, "hub": named.name, "revision": data.revision}
        file = _input_file(path, label, path, **about)
        yield replace(file, name=named.name.rpartition("/")[2])


def teller(files: Sequence[InputFile], stage: str, tell: OnBytes) -> Callable[[int], None]:
    """What a reader of all files in turn is to tell of each further stretch of bytes."""
    total, done = sum(file.path.stat().st_size for file in files), 0

    def on_bytes(more: int) -> None:
        nonlocal done
        done += more
        tell(stage, min(done, total), max(total, 1))

    return on_bytes


def _input_file(path: Path, label: str, source: Path, **about: Any) -> InputFile:
    """A file of `source`; a folder's train, valid and test files are one source of its name."""
    # Names end up in rows, so what is no UTF-8 in them has to become text.
    stem = one_line(path.stem if path.suffix.lower() != ".gz" else Path(path.stem).stem)
    match = _SPLIT_NAME.match(stem.lower())
    name = stem if match is None or path == source else _name(source)
    return InputFile(path, one_line(label), name, _SPLIT_OF[match[1]] if match else None, **about)


def _name(source: Path) -> str:
    return one_line(Path(os.path.realpath(source)).name)


def _free(label: str, taken: dict[str, str], sha256: str | None = None) -> str:
    """A label that nothing has yet, or that the same content has."""
    numbered = (f"{label}#{number}" if number > 1 else label for number in count(1))
    return next(name for name in numbered if name not in taken or taken[name] == sha256)
