"""`data ingest`: documents and folders of them in; a folder of passages out."""

from __future__ import annotations

import importlib.util
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import orjson

from mlx_itune import __version__
from mlx_itune.dataset.ingest import plain
from mlx_itune.dataset.ingest.passages import Block, Pieces
from mlx_itune.dataset.ingest.worker import KINDS, Worker
from mlx_itune.kit.errors import DataError, ItuneError, UsageError, one_line
from mlx_itune.kit.files import open_regular, sha256_file, staged_directory, storage_errors
from mlx_itune.kit.json_files import write_object
from mlx_itune.kit.wording import listing

PASSAGES, RECORD, TEXTS = "passages.jsonl", "ingest.json", "text"
MOST_CHARACTERS = 2000
_SUFFIXES = {
    ".txt": "text", ".text": "text", ".md": "markdown", ".markdown": "markdown", ".csv": "csv",
    ".tsv": "csv", ".html": "html", ".htm": "html", ".xhtml": "html", ".pdf": "pdf",
    ".docx": "docx", ".pptx": "pptx", ".epub": "epub", ".eml": "eml",
}  # fmt: skip
_STREAMED = {"text": plain.read_text, "markdown": plain.read_markdown, "csv": plain.read_table}
# How files begin, and what they are then; those of a text may begin with anything else.
_SIGNS: tuple[tuple[bytes, str, frozenset[str]], ...] = (
    (b"%PDF-", "a PDF", frozenset({"pdf"})),
    (b"PK\x03\x04", "a ZIP archive", frozenset({"docx", "pptx", "epub"})),
    (b"\xd0\xcf\x11\xe0", "encrypted, or of Office before 2007", frozenset()),
    (b"{\\rtf", "RTF", frozenset()),
    (b"\x1f\x8b", "compressed (gzip)", frozenset()),
    (b"\x89PNG", "a picture", frozenset()),
    (b"\xff\xd8\xff", "a picture", frozenset()),
    (b"SQLite format 3", "a database", frozenset()),
)
_SIGNED = frozenset().union(*(kinds for _, _, kinds in _SIGNS))
_HEAD_BYTES = 1024

Observe = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Ingested:
    """A file that was read: where it is within what was named, and what came of it."""

    source: str
    sha256: str
    kind: str
    passages: int
    characters: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rejected:
    """A file that was not, and why."""

    file: str
    message: str


@dataclass(frozen=True)
class Ingest:
    """What was made. skipped: files of kinds that are not read, by the end of their names."""

    out: str
    files: tuple[Ingested, ...]
    passages: int
    characters: int
    rejected: tuple[Rejected, ...]
    skipped: dict[str, int]


def ingest(
    sources: Sequence[Path],
    out: Path,
    *,
    max_characters: int = MOST_CHARACTERS,
    observe: Observe | None = None,
) -> Ingest:
    """Read documents and the folders that hold some into a new folder `out`. A file that cannot be
    read is listed, and the others go on. Raises DataError where nothing could be read; UsageError,
    StorageError."""
    if max_characters < 100:
        raise UsageError("--max-characters must be 100 or more")
    found, skipped, rejected = _found(sources, out)
    if not found and not rejected:
        kinds = " ".join(_SUFFIXES)
        raise DataError("no document", where=str(sources[0]), hint=f"these are read: {kinds}")
    _require({_SUFFIXES[path.suffix.lower()] for path, *_ in found} & {*KINDS})
    total, done = sum(size for *_, size in found), 0
    files: list[Ingested] = []
    with staged_directory(out) as stage, Worker() as worker, storage_errors(out):
        with (stage / PASSAGES).open("xb") as passages:
            for path, name, size in found:
                before = passages.tell()
                reader = _Reader(path, name, worker, partial(_tell, observe, done, total))
                try:
                    files.append(reader.into(stage, passages, max_characters))
                except ItuneError as error:
                    passages.seek(before)
                    passages.truncate()
                    (stage / TEXTS / f"{name}.txt").unlink(missing_ok=True)
                    said = error.message + (f"; {error.hint}" if error.hint else "")
                    rejected.append(Rejected(name, one_line(said)))
                done += size
                _tell(observe, 0, total, done)
        if not any(file.passages for file in files):
            why = f"{rejected[0].file}: {rejected[0].message}" if rejected else "they have no text"
            raise DataError(f"no document could be read: {why}", where=str(sources[0]))
        made = Ingest(
            out=str(out),
            files=tuple(files),
            passages=sum(file.passages for file in files),
            characters=sum(file.characters for file in files),
            rejected=tuple(rejected),
            skipped=dict(skipped.most_common()),
        )
        about = {"v": 1, "made_by": f"mlx-itune {__version__}", "max_characters": max_characters}
        write_object(stage / RECORD, {**about, **asdict(replace(made, out=out.name))})
    return made


class _Reader:
    def __init__(
        self, path: Path, name: str, worker: Worker, on_done: Callable[[int], None]
    ) -> None:
        self._path, self._name, self._worker = path, name, worker
        self._on_done, self._done = on_done, 0
        self._notes: dict[str, tuple[str, int]] = {}

    def into(self, stage: Path, passages: BinaryIO, most: int) -> Ingested:
        """Write a document's text and passages. Raises DataError, also in the middle."""
        kind = _kind_of(self._path)
        sha256 = sha256_file(self._path)
        pieces = Pieces(self._name, sha256, most)
        text_at = stage / TEXTS / f"{self._name}.txt"
        text_at.parent.mkdir(parents=True, exist_ok=True)
        count, characters = 0, 0
        with text_at.open("x", encoding="utf-8", newline="") as text:
            for said, passage in pieces.of(self._blocks(kind)):
                text.write(said)
                characters += len(said)
                if passage is not None:
                    passages.write(orjson.dumps(passage, option=orjson.OPT_APPEND_NEWLINE))
                    count += 1
        if not count:
            raise DataError("has no text")
        notes = tuple(
            text if n == 1 else f"{text} (and {n - 1:,} more like it)"
            for text, n in self._notes.values()
        )
        return Ingested(self._name, sha256, kind, count, characters, notes)

    def _blocks(self, kind: str) -> Iterator[Block]:
        if kind in _STREAMED:
            return _STREAMED[kind](self._path, self._read, self._note)
        return self._worker.blocks(self._path, kind, self._note)

    def _note(self, text: str) -> None:
        # Those that differ by a number alone are told once.
        first, n = self._notes.get(sign := re.sub(r"\d+", "#", text), (text, 0))
        self._notes[sign] = first, n + 1

    def _read(self, more: int) -> None:
        self._done += more
        self._on_done(self._done)


def _tell(observe: Observe | None, before: int, total: int, done: int) -> None:
    if observe:
        observe("ingest", before + done, total)


def _found(
    sources: Sequence[Path], out: Path
) -> tuple[list[tuple[Path, str, int]], Counter[str], list[Rejected]]:
    """(path, its name in `out`, bytes) of each document, in order; kinds that are not read; what
    cannot be opened."""
    found: dict[str, tuple[Path, str, int]] = {}
    skipped: Counter[str] = Counter()
    rejected: list[Rejected] = []
    for source in sources:
        if not source.exists():
            raise DataError("no such file or folder", where=str(source))
        if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
            what = f"lies inside the source {source}"
            raise UsageError(what, where=str(out), hint="name another folder")
        for path in _files(source):
            inside = path.relative_to(source.parent if len(sources) > 1 else source)
            name = inside.as_posix() if source.is_dir() else path.name
            while name in found:
                name = f"again/{name}"
            kind = _SUFFIXES.get(path.suffix.lower())
            try:
                name.encode()
                with open_regular(path, DataError):
                    size = path.stat().st_size
            except UnicodeEncodeError:
                rejected.append(Rejected(ascii(name), "has a name that is not UTF-8; rename it"))
                continue
            except (ItuneError, OSError) as error:
                told = error.message if isinstance(error, ItuneError) else str(error)
                rejected.append(Rejected(name, one_line(told)))
                continue
            if kind is None and source.is_dir():
                skipped[path.suffix.lower() or path.name] += 1
            elif kind is None:
                rejected.append(Rejected(name, f"is of a kind that is not read: {path.suffix}"))
            else:
                found[name] = (path, name, size)
    return list(found.values()), skipped, rejected


def _files(source: Path) -> Iterator[Path]:
    """The files of a folder, by name; hidden ones aside, and no link to a folder is followed."""
    if not source.is_dir():
        yield source
        return
    for folder, folders, names in os.walk(source):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder) / name for name in sorted(names) if not name.startswith("."))


def _kind_of(path: Path) -> str:
    """The kind by its name, if its first bytes agree. Raises DataError."""
    kind = _SUFFIXES[path.suffix.lower()]
    with open_regular(path, DataError) as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise DataError("is empty")
    for sign, what, kinds in _SIGNS:
        is_so = sign in head if kind == "pdf" == next(iter(kinds), "") else head.startswith(sign)
        if is_so:
            if kind in kinds:
                return kind
            raise DataError(f"is no {kind}: it is {what}")
    if kind in _SIGNED:
        begins = head[:12].decode("ascii", "replace")
        raise DataError(f"is no {kind}: it begins with {begins!r}")
    return kind


def _require(kinds: Iterable[str]) -> None:
    """Raise UsageError where what reads one of these kinds is not installed."""
    needed = {kind: "pypdfium2" if kind == "pdf" else "lxml" for kind in kinds}
    missing = {
        name: kind for kind, name in needed.items() if importlib.util.find_spec(name) is None
    }
    if missing:
        listed, names = listing(sorted(missing.values())), " ".join(sorted(missing))
        hint = f"pip install {names} (the extra mlx-itune[documents])"
        raise UsageError(f"reading {listed} needs {names}", hint=hint)
