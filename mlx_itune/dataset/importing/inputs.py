"""What a step reads: files on this disk with names that mean something on any machine."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from mlx_itune.dataset.importing import hub
from mlx_itune.dataset.importing.provenance import (
    VERSION,
    DatasetRecord,
    SourceRecord,
    read_dataset,
)
from mlx_itune.dataset.sources import expand, no_such
from mlx_itune.kit.errors import DataError, StorageError, one_line
from mlx_itune.kit.files import open_regular

# Given a stage and its bytes in all: what is to be told of each further stretch that is read.
Tell = Callable[[str, int], Callable[[int], None]]

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


_NAMES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "LICENCE.md", "COPYING")
_READ_BYTES = 20_000
# The first that occurs wins, so the narrower wording comes before the wider one.
_WORDINGS = (
    ("CC-BY-NC-SA-4.0", r"attribution-noncommercial-sharealike 4\.0"),
    ("CC-BY-NC-ND-4.0", r"attribution-noncommercial-noderivatives 4\.0"),
    ("CC-BY-NC-4.0", r"attribution-noncommercial 4\.0"),
    ("CC-BY-SA-4.0", r"attribution-sharealike 4\.0"),
    ("CC-BY-SA-3.0", r"attribution-sharealike 3\.0"),
    ("CC-BY-ND-4.0", r"attribution-noderivatives 4\.0"),
    ("CC-BY-4.0", r"attribution 4\.0"),
    ("CC0-1.0", r"cc0 1\.0"),
    ("Apache-2.0", r"apache license,? +version 2\.0"),
    ("MIT", r"permission is hereby granted, free of charge, to any person obtaining a copy"),
    ("AGPL-3.0", r"gnu affero general public license version 3"),
    ("LGPL-3.0", r"gnu lesser general public license version 3"),
    ("GPL-3.0", r"gnu general public license version 3"),
    ("GPL-2.0", r"gnu general public license version 2"),
    ("MPL-2.0", r"mozilla public license,? version 2\.0"),
    ("ODC-By-1.0", r"odc attribution license"),
    ("ODbL-1.0", r"open database license"),
    ("BSD-3-Clause", r"redistribution and use in source and binary forms.*neither the name"),
    ("BSD-2-Clause", r"redistribution and use in source and binary forms"),
)


def data_licences(data: Path) -> dict[str, str | None]:
    """The licence of each source of a data folder, of one of its files, or of any file of rows.

    None where nobody knows. Raises DataError for a broken dataset.json.
    """
    if record := read_dataset(data):
        return {source.name: source.licence for source in record.sources}
    return {data.name if data.is_dir() else data.stem: licence_beside(data)}


def joined(licences: Iterable[str | None]) -> str | None:
    """Several licences as one; None if any is unknown."""
    listed = list(licences)
    return None if None in listed else " and ".join(dict.fromkeys(map(str, listed))) or None


def licence_beside(source: Path) -> str | None:
    """The licence named by the README's front matter or a licence file next to `source`.

    For a file its folder is looked at, for a folder itself. None where nothing is recognised.
    """
    folder = source if source.is_dir() else source.parent
    return _from_card(folder / "README.md") or next(
        (found for name in _NAMES if (found := _from_text(_read(folder / name)))), None
    )


def _from_card(path: Path) -> str | None:
    """`license:` of a data card: a string, or a list of which all are named."""
    text = _read(path)
    card = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    if card is None:
        return None
    stated = re.search(r"(?m)^licen[sc]e:[ \t]*(.*(?:\r?\n[ \t]*-[ \t].*)*)", card[1])
    if stated is None:
        return None
    names = re.findall(r"[^\s,\[\]\"'#-][^\n\r,\[\]\"'#]*", stated[1])
    return " and ".join(name.strip() for name in names if name.strip()) or None


def _from_text(text: str) -> str | None:
    words = re.sub(r"\s+", " ", text).lower()
    return next((name for name, wording in _WORDINGS if re.search(wording, words)), None)


def _read(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return file.read(_READ_BYTES).decode("utf-8", "replace")
    except (OSError, StorageError):
        return ""
