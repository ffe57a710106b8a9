"""Paths -> conversations, with every fault of every row at its file and line; rows back again."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mlx_itune.dataset.conversation import Conversation, Fault, RowFault, Turn
from mlx_itune.dataset.formats import names_positions, parse_rows
from mlx_itune.dataset.how import Reading
from mlx_itune.dataset.reading import kind_by_name, read_records
from mlx_itune.kit.errors import DataError, closest
from mlx_itune.kit.files import open_regular, sha256_file
from mlx_itune.kit.wording import listing

_VALID_SHARE = 0.05
_VALID_MAX_ROWS = 500

_SPLITS = ("train", "valid", "test")
# Kinds that a folder is searched for; a text file in a folder is more often a read-me than rows.
_FOLDER_KINDS = frozenset({"jsonl", "json", "csv", "tsv", "parquet", "xlsx"})
# What a data folder holds besides its rows.
_RECORD = "dataset.json"
_NOT_ROWS = frozenset(
    "dataset.json removed.jsonl changed.jsonl rejected.jsonl ledger.jsonl decisions.jsonl "
    "calls.jsonl grow.json passages.jsonl ingest.json".split()
)

# Keys that mean something to a reader of the canonical row; tags with these names go to `metadata`.
_RESERVED = frozenset(
    "messages conversations conversation instances instruction prompt question inputs input text "
    "tools functions system system_prompt metadata reasoning reasoning_content thinking "
    "contents chosen".split()
)


Rows = tuple[Conversation, ...]
Mend = Callable[[Mapping[str, Any], str, RowFault, Reading], Conversation | None]


@dataclass(frozen=True)
class Source:
    """A file that was read: its name, accepted rows and content hash."""

    path: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Splits:
    """What a data folder or file holds."""

    train: Rows
    valid: Rows
    test: Rows
    sources: tuple[Source, ...]


def read_rows(
    path: Path,
    *,
    how: Reading | None = None,
    mend: Mend | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> Iterator[Conversation | Fault]:
    """The conversations of a file of any kind, in order, with a Fault for each row that is none.

    All instances of a seed task have one origin. `how` forces what is otherwise found out, and is
    told what is not learned; `mend` may make a conversation of a row with a fault. Raises
    StorageError; DataError for a file of another kind; UsageError for a bad `format` or `kind`.
    """
    path = Path(path)
    how = how or Reading()
    how.told.of_file(imported=(path.parent / _RECORD).is_file())
    name = str(path)
    header = False if how.columns and names_positions(how.columns) else None
    for record in read_records(path, how, header=header, on_bytes=on_bytes):
        if isinstance(record, Fault):
            yield record
            continue
        origin = record.origin(name)
        try:
            rows = parse_rows(record.value, origin, how)
            yield from map(how.system.on, rows) if how.system else rows
        except RowFault as fault:
            mended = mend(record.value, origin, fault, how) if mend and not how.columns else None
            yield mended or fault.at(name, record.line, record.row)


def load_splits(
    data: Path,
    *,
    seed: int = 0,
    how: Reading | None = None,
) -> Splits:
    """Read a data file, or a folder of train, valid and test files, of any kind. Without a valid
    file, about 5 % of the training rows are held out by the hash of their content: equal rows stay
    on one side, whatever their order. Raises DataError when a row is broken (all are counted) or a
    file holds no row."""
    rows: dict[str, list[Conversation]] = {}
    faults: list[Fault] = []
    sources: list[Source] = []
    total = 0
    for part, path in split_paths(Path(data)).items():
        found = list(read_rows(path, how=how))
        if not found:
            raise DataError("holds no rows", where=str(path))
        good = [row for row in found if isinstance(row, Conversation)]
        faults += [row for row in found if isinstance(row, Fault)]
        total += len(found)
        rows.setdefault(part.partition("/")[0], []).extend(good)
        sources.append(Source(path.name, len(good), sha256_file(path)))
    if faults:
        # One fault of each kind and file says enough.
        kinds: dict[tuple[str, str], Fault] = {}
        for fault in faults:
            kinds.setdefault((fault.file, fault.kind), fault)
        message = f"{len(faults)} of {total} rows are broken: {listing(kinds.values())}"
        hint = "`mlx-itune data check` lists them all"
        raise DataError(message, where=str(data), hint=hint)
    train, valid, test = (tuple(rows.get(split, ())) for split in _SPLITS)
    if "valid" not in rows:
        train, valid = _hold_out(train, seed)
    return Splits(train, valid, test, tuple(sources))


def split_paths(data: Path) -> dict[str, Path]:
    """The files behind each split of a data file or folder. A folder without such names is one
    training set: "train", then "train/NAME" for further files."""
    if not data.exists():
        raise no_such(data)
    if not data.is_dir():
        return {"train": _checked(data)}
    inside = _rows_in(data)
    paths: dict[str, Path] = {}
    for split in _SPLITS:
        found = [path for path in inside if path.name.partition(".")[0] == split]
        if len(found) > 1:
            raise DataError(f"has both {found[0].name} and {found[1].name}", where=str(data))
        if found:
            paths[split] = found[0]
    if not paths and inside:
        return {"train" if n == 0 else f"train/{p.name}": p for n, p in enumerate(inside)}
    if "train" not in paths:
        raise DataError("no train.jsonl or train.json", where=str(data), hint=_found_in(data))
    return paths


def no_such(path: Path) -> DataError:
    """The error for a path that is not there: with what may have been meant in its folder."""
    missing = path
    while not missing.parent.is_dir() and missing.parent != missing:
        missing = missing.parent
    hint = None
    with suppress(OSError):
        names = [entry.name for entry in islice(missing.parent.iterdir(), 10_000)]
        if near := closest(missing.name, names):
            whole = missing.with_name(near) / path.relative_to(missing)
            hint = f"did you mean {whole if whole.exists() else missing.with_name(near)}?"
    return DataError("no such data file or folder", where=str(path), hint=hint)


def expand(paths: Sequence[Path]) -> list[Path]:
    """The files that `paths` name: themselves, or the readable files of a folder, by name. Of a
    data folder its rows only. Raises DataError for a folder with nothing to read or a name that is
    not UTF-8, StorageError for what is no regular file."""
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            files.append(_checked(path))
            continue
        inside = _rows_in(path)
        if not inside:
            raise DataError("has no file of rows", where=str(path), hint=_found_in(path))
        files += inside
    return list(dict.fromkeys(files))


def content_key(conversation: Conversation, seed: int = 0) -> int:
    """A 64-bit hash of what a conversation says, whatever file, line or tags it has."""
    messages = conversation.messages()
    for message in messages:
        # Which number a call has is not part of what is said.
        message.pop("tool_call_id", None)
    said = json.dumps([messages, conversation.tools], sort_keys=True)
    digest = hashlib.blake2b(said.encode(), digest_size=8, key=str(seed).encode()[:64])
    return int.from_bytes(digest.digest(), "big")


def to_row(conversation: Conversation) -> dict[str, Any]:
    """The canonical row: read again, it gives an equal conversation (its origin aside)."""
    row: dict[str, Any] = {"messages": [_message(turn) for turn in conversation.turns]}
    if conversation.tools:
        row["tools"] = list(conversation.tools)
    hidden = {key: tag for key, tag in conversation.tags.items() if key in _RESERVED}
    row.update((key, tag) for key, tag in conversation.tags.items() if key not in _RESERVED)
    if hidden:
        row["metadata"] = hidden
    return row


def said_bytes(conversation: Conversation) -> bytes:
    """What a conversation says as bytes, equal for equal ones only: fast, for hashing. Roles,
    texts, reasoning, tool calls and tools; not tags, weights, names or origin."""
    parts: list[str] = []
    for turn in conversation.turns:
        parts += (turn.role, turn.content)
        if turn.reasoning is not None:
            parts += ("reasoning", turn.reasoning)
        if turn.tool_calls:
            parts.append(json.dumps(turn.tool_calls, sort_keys=True))
    if conversation.tools:
        parts += ("tools", json.dumps(conversation.tools, sort_keys=True))
    # No text has a NUL, so nothing can be mistaken for a border.
    return "\0".join(parts).encode()


def _message(turn: Turn) -> dict[str, Any]:
    weight = {} if turn.weight is None else {"weight": turn.weight}
    message = {"role": turn.role, "content": turn.content, **weight, **turn.message()}
    message.pop("instruction", None)
    return message


def _checked(path: Path) -> Path:
    open_regular(path).close()
    try:
        str(path).encode()
    except UnicodeEncodeError:
        # Addresses of rows stand in JSON and UTF-8 files.
        where = str(path)
        raise DataError("has a name that is not UTF-8", where=where, hint="rename it") from None
    return path


def _rows_in(folder: Path) -> list[Path]:
    return sorted(
        _checked(path)
        for path in folder.iterdir()
        if kind_by_name(path) in _FOLDER_KINDS
        and path.name not in _NOT_ROWS
        and not path.name.startswith(".")
        and path.is_file()
    )


def _found_in(folder: Path) -> str:
    return f"found {listing(sorted(path.name for path in folder.iterdir()), 5) or 'nothing'}"


def _hold_out(rows: Rows, seed: int) -> tuple[Rows, Rows]:
    keys = [content_key(row, seed) for row in rows]
    copies = Counter(keys)
    held: set[int] = set()
    held_rows = 0
    for key in sorted(copies)[:-1]:
        if held and (key >= _VALID_SHARE * 2**64 or held_rows + copies[key] > _VALID_MAX_ROWS):
            break
        held.add(key)
        held_rows += copies[key]
    train = tuple(row for row, key in zip(rows, keys, strict=True) if key not in held)
    return train, tuple(row for row, key in zip(rows, keys, strict=True) if key in held)
