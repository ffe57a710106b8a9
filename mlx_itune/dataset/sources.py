"""Raw files -> conversations, with every fault of every row at its file and line."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.formats import RowFault, parse_row
from mlx_itune.kit.errors import DataError
from mlx_itune.kit.files import sha256_file, storage_errors

_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"
_FAULTS_SHOWN = 3
_VALID_SHARE = 0.05
_VALID_MAX_ROWS = 500


@dataclass(frozen=True)
class Fault:
    """Why one row is refused."""

    file: str
    line: int
    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.code}: {self.message}"


@dataclass(frozen=True)
class Source:
    """A file that was read: its name, accepted rows and content hash."""

    path: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Splits:
    """What a data folder or file holds. `faults` is empty: a broken row raises instead."""

    train: tuple[Conversation, ...]
    valid: tuple[Conversation, ...]
    test: tuple[Conversation, ...]
    faults: tuple[Fault, ...]
    sources: tuple[Source, ...]


def read_rows(path: Path) -> Iterator[Conversation | Fault]:
    """Each row of a JSON-lines file or JSON array, in order; blank lines do not count as rows.

    Lines end at b"\\n" only. Raises StorageError when the file cannot be read.
    """
    path = Path(path)
    with storage_errors(path), path.open("rb") as file:
        has_bom = file.read(len(_BOM)) == _BOM
        start = len(_BOM) if has_bom else 0
        file.seek(start)
        is_array = file.read(4096).lstrip(_BLANK).startswith(b"[")
        file.seek(start)
        rows = _array(file.read(), str(path)) if is_array else _lines(file, str(path))
        if has_bom:
            # The first row is the one the mark spoils; what follows is judged as usual.
            next(rows, None)
            yield Fault(str(path), 1, "bom", "the file starts with a byte order mark")
        yield from rows


def load_splits(data: Path, *, seed: int = 0) -> Splits:
    """Read a data file, or a folder of train/valid/test (.jsonl or .json).

    Without a valid file, about 5 % of the training rows are held out by the hash of their content:
    the choice does not depend on row order, and equal rows stay on one side.
    Raises DataError when a row is broken (all are counted) or a file holds no row.
    """
    data = Path(data)
    paths = _split_paths(data) if data.is_dir() else {"train": data}
    if not data.exists():
        raise DataError("no such data file or folder", where=str(data))
    rows: dict[str, tuple[Conversation, ...]] = {}
    faults: list[Fault] = []
    sources: list[Source] = []
    total = 0
    for split, path in paths.items():
        read = list(read_rows(path))
        broken = [row for row in read if isinstance(row, Fault)]
        rows[split] = tuple(row for row in read if isinstance(row, Conversation))
        if not read:
            raise DataError("holds no rows", where=str(path))
        faults += broken
        total += len(read)
        sources.append(Source(path.name, len(rows[split]), sha256_file(path)))
    if faults:
        raise DataError(
            f"{len(faults)} of {total} rows are broken: " + " | ".join(map(str, _first(faults))),
            where=str(data),
            hint="`mlx-itune data check` lists them all",
        )
    train, valid = rows["train"], rows.get("valid", ())
    if "valid" not in rows:
        train, valid = _hold_out(train, seed)
    return Splits(train, valid, rows.get("test", ()), (), tuple(sources))


def content_key(conversation: Conversation, seed: int = 0) -> int:
    """A 64-bit hash of what a conversation says, whatever file, line or tags it has."""
    said = json.dumps([conversation.messages(), conversation.tools], sort_keys=True)
    digest = hashlib.blake2b(said.encode(), digest_size=8, key=str(seed).encode()[:64])
    return int.from_bytes(digest.digest(), "big")


def _first(faults: Sequence[Fault]) -> list[str]:
    shown = [str(fault) for fault in faults[:_FAULTS_SHOWN]]
    return [*shown, "..."] if len(faults) > _FAULTS_SHOWN else shown


def _split_paths(folder: Path) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for split in ("train", "valid", "test"):
        found = [p for p in (folder / f"{split}.jsonl", folder / f"{split}.json") if p.exists()]
        if len(found) > 1:
            raise DataError(f"has both {found[0].name} and {found[1].name}", where=str(folder))
        if found:
            paths[split] = found[0]
    if "train" not in paths:
        there = sorted(p.name for p in folder.iterdir())[:5]
        listed = ", ".join(there) if there else "nothing"
        raise DataError("no train.jsonl or train.json", where=str(folder), hint=f"found {listed}")
    return paths


def _hold_out(
    rows: tuple[Conversation, ...], seed: int
) -> tuple[tuple[Conversation, ...], tuple[Conversation, ...]]:
    keys = [content_key(row, seed) for row in rows]
    copies = Counter(keys)
    distinct = sorted(copies)
    if len(distinct) < 2:
        return rows, ()
    held: set[int] = set()
    held_rows = 0
    for key in distinct[:-1]:
        if held and (key >= _VALID_SHARE * 2**64 or held_rows + copies[key] > _VALID_MAX_ROWS):
            break
        held.add(key)
        held_rows += copies[key]
    train = tuple(row for row, key in zip(rows, keys, strict=True) if key not in held)
    return train, tuple(row for row, key in zip(rows, keys, strict=True) if key in held)


def _lines(file: BinaryIO, name: str) -> Iterator[Conversation | Fault]:
    for number, line in enumerate(file, 1):
        if line.strip(_BLANK):
            yield _row(line, name, number)


def _row(raw: bytes, name: str, line: int) -> Conversation | Fault:
    try:
        value = _DECODER.decode(_text(raw))
        return _conversation(value, name, line)
    except RowFault as fault:
        return Fault(name, line, fault.code, fault.message)
    except (ValueError, RecursionError) as error:
        return Fault(name, line, "json", _json_reason(error))


def _conversation(value: Any, name: str, line: int) -> Conversation:
    if not isinstance(value, dict):
        raise RowFault("not-an-object", "a row must be a JSON object")
    _refuse_strange_text(value)
    return parse_row(value, f"{name}:{line}")


def _array(raw: bytes, name: str) -> Iterator[Conversation | Fault]:
    """Rows of a JSON array, each with the line it starts on.

    Rows are decoded one by one, so a row that JSON can parse but we refuse does not hide the next;
    after a syntax error there is no telling where the next row starts.
    """
    try:
        text = _text(raw)
    except RowFault as fault:
        yield Fault(name, raw[: _bad_byte(raw)].count(b"\n") + 1, fault.code, fault.message)
        return
    position = _SPACE.match(text, text.index("[") + 1).end()  # type: ignore[union-attr]
    line, counted = 1, 0
    while not text.startswith("]", position):
        line, counted = line + text.count("\n", counted, position), position
        try:
            _, end = _LENIENT.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            yield Fault(name, line, "json", _json_reason(error))
            return
        try:
            # The strict decoder sees the row alone: a duplicate key spoils one row, not the file.
            yield _conversation(_DECODER.decode(text[position:end]), name, line)
        except RowFault as fault:
            yield Fault(name, line, fault.code, fault.message)
        position = _SPACE.match(text, end).end()  # type: ignore[union-attr]
        if text.startswith(",", position):
            position = _SPACE.match(text, position + 1).end()  # type: ignore[union-attr]
        elif not text.startswith("]", position):
            line += text.count("\n", counted, position)
            yield Fault(name, line, "json", "expected ',' or ']' after a row of the array")
            return
    if text[position + 1 :].strip():
        line += text.count("\n", counted, position)
        yield Fault(name, line, "json", "text follows the end of the array")


def _text(raw: bytes) -> str:
    if b"\x00" in raw:
        raise RowFault("nul", "a NUL byte")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        raise RowFault("utf-8", f"byte {error.start + 1} (0x{byte:02x}) is not UTF-8") from None


def _bad_byte(raw: bytes) -> int:
    nul = raw.find(b"\x00")
    if nul >= 0:
        return nul
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return len(raw)


def _refuse_strange_text(value: Any) -> None:
    """NUL and lone surrogates, which JSON escapes can smuggle into any string."""
    if isinstance(value, str):
        if "\x00" in value:
            raise RowFault("nul", "a NUL character in a string")
        if not value.isascii() and _SURROGATE.search(value):
            raise RowFault("surrogate", "half of a surrogate pair in a string")
    elif isinstance(value, dict):
        for key, item in value.items():
            _refuse_strange_text(key)
            _refuse_strange_text(item)
    elif isinstance(value, list):
        for item in value:
            _refuse_strange_text(item)


def _json_reason(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return "a number with too many digits"


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RowFault("duplicate-key", f"the key {twice!r} occurs twice")
    return row


def _refuse_constant(text: str) -> Any:
    raise RowFault("constant", f"{text} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
_LENIENT = json.JSONDecoder()
_SURROGATE = re.compile("[\ud800-\udfff]")
_SPACE = re.compile(r"[ \t\r\n]*")
