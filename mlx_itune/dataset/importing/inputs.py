"""What a step reads: files of rows, here or of the Hub, named for any machine, with licences."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path, PurePosixPath

from mlx_itune.dataset.importing.provenance import (
    VERSION,
    DatasetRecord,
    SourceRecord,
    read_dataset,
)
from mlx_itune.dataset.sources import expand, no_such
from mlx_itune.kit import network
from mlx_itune.kit.errors import DataError, ItuneError, StorageError, UsageError, one_line
from mlx_itune.kit.files import open_regular
from mlx_itune.kit.json_files import data_file
from mlx_itune.kit.wording import brief

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
    """A file of rows and what records say of it: `source.path`, its label, is never absolute.
    `split` is the one its own name speaks of, if any. `parent` is set for a file of a data folder
    whose rows carry an origin."""

    path: Path
    source: SourceRecord
    split: str | None
    parent: Parent | None = None


@dataclass(frozen=True)
class Inputs:
    """Every file of the sources, in a stable order, and the folders among them."""

    files: tuple[InputFile, ...]
    parents: tuple[Parent, ...]
    folders: tuple[Path, ...]

    @property
    def has_splits(self) -> bool:
        """Whether the files are named after splits: one of them is for training."""
        return any(file.split == "train" for file in self.files)

    def sources(self) -> list[SourceRecord]:
        """The raw files that the parents name, under their names in the new folder, and ours."""
        found = {
            parent.paths[source.path]: replace(source, path=parent.paths[source.path])
            for parent in self.parents
            for source in parent.record.sources
        }
        return [*found.values(), *(file.source for file in self.files if file.parent is None)]

    def licences(self) -> dict[str, str | None]:
        """The licence of each source by name."""
        known: dict[str, str | None] = {}
        for source in self.sources():
            known[source.name] = known.get(source.name) or source.licence
        return known


def find_inputs(sources: Sequence[Path | str], name: str | None = None) -> Inputs:
    """The files of rows in `sources`, each with a label of its own. A source is a file, a folder,
    or a Hub data set: org/name, org/name@revision, org/name:split. `name` is what all raw files are
    called. Raises DataError for a source that is missing, holds no file of rows, or is given twice,
    and what `_hub_files` raises."""
    files: list[InputFile] = []
    folders: list[Path] = []
    for source in sources:
        path = Path(source).expanduser()
        if path.exists():
            folders += [path] if path.is_dir() else []
            files += _local_files(path, f"{_name(path)}/" if len(sources) > 1 else "")
        elif isinstance(source, str) and (hub := hub_name(source)):
            files += _hub_files(hub)
        else:
            raise no_such(path)
    real = [file.path.resolve() for file in files]
    taken: dict[str, str] = {}
    for at, file in enumerate(files):
        if real.count(real[at]) > 1:
            raise DataError("is given twice", where=str(file.path))
        own = file.source.name if file.parent else name or file.source.name
        label = _free(file.source.path, taken)
        files[at] = replace(file, source=replace(file.source, path=label, name=own))
        taken[label] = ""
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
    known = {raw.licence for raw in record.sources} if record else {None}
    licence = None if None in known else " and ".join(sorted(map(str, known))) or None
    for path in expand([source]):
        label = prefix + path.relative_to(source).as_posix() if source.is_dir() else path.name
        said = licence or licence_beside(path) or licence_beside(source)
        name, split = _meaning(path)
        # A folder's train, valid and test files are one source of its name.
        name = _name(source) if split and path != source else name
        yield InputFile(path, SourceRecord(name, one_line(label), licence=said), split, parent)


def _meaning(path: Path) -> tuple[str, str | None]:
    # Names end up in rows, so what is no UTF-8 in them has to become text.
    stem = one_line(path.stem if path.suffix.lower() != ".gz" else Path(path.stem).stem)
    match = _SPLIT_NAME.match(stem.lower())
    return stem, _SPLIT_OF[match[1]] if match else None


def _name(source: Path) -> str:
    return one_line(Path(os.path.realpath(source)).name)


def _free(label: str, taken: dict[str, str], sha256: str | None = None) -> str:
    numbered = (f"{label}#{number}" if number > 1 else label for number in count(1))
    return next(name for name in numbered if name not in taken or taken[name] == sha256)


_HUB_NAME = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w.-]+))?(:(?P<split>[\w.-]+))?"
)
# The first kind that a data set has is taken: the others, as a rule, say the same again.
_KINDS = (".parquet", ".jsonl", ".json", ".csv", ".tsv")
# A name that ends like a file is a path that was mistyped, not a data set to ask the Hub for.
_FILE = re.compile(
    r"\.(parquet|jsonl?|ndjson|[ct]sv|xlsx?|ods|txt|md|html?|pdf|docx|gz|zip|toml|ya?ml)$", re.I
)
_NOT_DATA = re.compile(
    r"(^|/)(\.|dataset_infos?\.json|dataset_dict\.json|state\.json|config\.json|package.*\.json)"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def hub_name(text: str) -> re.Match[str] | None:
    """The name, revision and split of a Hub data set; None where `text` can only be a path."""
    match = _HUB_NAME.fullmatch(text)
    return None if match is None or _FILE.search(match["name"]) else match


def _hub_files(hub: re.Match[str]) -> Iterator[InputFile]:
    """The data files of a Hub data set, from the cache alone when offline; no code. Raises
    UsageError for a name that the cache or the Hub does not have, DataError for no download."""
    name, split = hub["name"], hub["split"]
    try:
        folder = _snapshot(hub)
    except Exception as error:  # the client raises its own kinds, its HTTP library's and the OS's
        raise _refusal(hub, error) from None
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    files = data_files(paths, split)
    if not files:
        what = f"no data file of a split {split!r}" if split else "no data file"
        raise UsageError(f"has {what}", where=name, hint=f"it may be any of {', '.join(_KINDS)}")
    revision = folder.name if _COMMIT.fullmatch(folder.name) else "unknown"
    about = SourceRecord(
        name.rpartition("/")[2], "", licence=licence_beside(folder), hub=name, revision=revision
    )
    for path in files:
        source = replace(about, path=one_line(f"{name}/{path}"))
        yield InputFile(folder / path, source, _meaning(folder / path)[1])


def data_files(names: Iterable[str], split: str | None) -> list[str]:
    """Those of a repository's files to read: one kind, and of one split if asked for."""
    named = [name for name in sorted(names) if not _NOT_DATA.search(name)]
    if split:
        begins = re.compile(rf"{re.escape(split)}([-_.]|$)")
        paths = {name: PurePosixPath(name) for name in named}
        named = [n for n, p in paths.items() if split in p.parts[:-1] or begins.match(p.stem)]
    for kind in _KINDS:
        if chosen := [name for name in named if name.lower().removesuffix(".gz").endswith(kind)]:
            return chosen
    return []


def _snapshot(hub: re.Match[str]) -> Path:
    """The folder of a data set's files, which is called after its commit."""
    from huggingface_hub import HfApi, snapshot_download

    if network.offline():
        about = {"repo_type": "dataset", "revision": hub["revision"]}
        return Path(snapshot_download(hub["name"], **about, local_files_only=True))
    info = HfApi().dataset_info(hub["name"], revision=hub["revision"])
    wanted = data_files([file.rfilename for file in info.siblings or ()], hub["split"])
    literal = [re.sub(r"([\[\]*?])", r"[\1]", name) for name in wanted]
    folder = snapshot_download(
        hub["name"],
        repo_type="dataset",
        revision=info.sha,
        allow_patterns=[*literal, "README.md", "LICENSE*"],
    )
    return Path(folder)


def _refusal(hub: re.Match[str], error: Exception) -> ItuneError:
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    where = hub["name"]
    if network.offline():
        what = "is no local path, and --offline finds no copy in the Hub's cache"
        return UsageError(what, where=where, hint="download it once without --offline")
    if isinstance(error, RevisionNotFoundError):
        return UsageError(f"has no revision {hub['revision']!r}", where=where)
    if isinstance(error, RepositoryNotFoundError):
        message = "is neither a local path nor a data set of the Hub that you may read"
        return UsageError(message, where=where)
    message = f"is no local path, and could not be downloaded: {brief(error)}"
    return DataError(message, where=where)


_NAMES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "LICENCE.md", "COPYING")
_READ_BYTES = 20_000


def data_licences(data: Path) -> dict[str, str | None]:
    """The licence of each source of a folder or file, if known. Raises DataError."""
    if record := read_dataset(data):
        return {source.name: source.licence for source in record.sources}
    return {data.name if data.is_dir() else data.stem: licence_beside(data)}


def licence_beside(source: Path) -> str | None:
    """The licence that a README's front matter or a licence file in or beside `source` names."""
    folder = source if source.is_dir() else source.parent
    return licence_in_card(folder) or next(
        (found for name in _NAMES if (found := _from_text(_read(folder / name)))), None
    )


def licence_in_card(folder: Path) -> str | None:
    """`license:` of a folder's data or model card: a string, or a list of which all are named."""
    text = _read(folder / "README.md")
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
    wordings = data_file(__file__, "licences").items()
    return next((name for name, wording in wordings if re.search(wording, words)), None)


def _read(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return file.read(_READ_BYTES).decode("utf-8", "replace")
    except (OSError, StorageError):
        return ""
