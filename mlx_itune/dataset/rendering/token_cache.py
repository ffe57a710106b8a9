"""Tokenized data sets, kept between runs: the second run on the same data starts at once.

A folder per (files, tokenizer, template, mask policy), found by a hash of all of them and verified
by checksums before use. What cannot be kept (no space, no permission) is simply made again.
`MLX_ITUNE_CACHE` names another place, or `off`. Each split is a folder of examples, written as
they come and memory-mapped when they are read:

| file | content, little-endian |
|---|---|
| `ids.bin`, `weights.bin` | input_ids int32 and weights float32, example after example |
| `notes.bin` | JSON [origin, tags, spans] per example |
| `ends.bin` | int64 pairs: where each example ends in the tokens, and in the notes |
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, overload

import numpy as np
import orjson
from numpy.typing import NDArray

from mlx_itune import __version__
from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.rendering.prepare import (
    Preparation,
    PrepareReport,
    TooLong,
    prepare,
    prepare_each,
)
from mlx_itune.dataset.rendering.render import Learn, TokenizedExample
from mlx_itune.dataset.sources import Source, load_splits, split_paths
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.kit.errors import StorageError
from mlx_itune.kit.files import sha256_file, staged_directory

_FORMAT = 2
_KEPT_BYTES = 8 * 10**9


@dataclass(frozen=True)
class Tokenized:
    """The training and validation examples of a data set (`valid` is None without rows), the files
    they come from, and whether they were kept from an earlier run."""

    train: Preparation
    valid: Preparation | None
    sources: tuple[Source, ...]
    kept: bool


def tokenized(
    data: Path,
    tokenizer: ChatTokenizer,
    *,
    seed: int = 0,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    max_length_tokens: int = 2048,
    learn: Learn = "all",
    too_long: TooLong = "split",
) -> Tokenized:
    """The examples of a data file or folder. Raises what `load_splits` and `prepare` raise."""
    policy: dict[str, Any] = {
        "max_length_tokens": max_length_tokens,
        "learn": learn,
        "too_long": too_long,
    }
    root = cache_root()
    how = {"seed": seed, "format": format, "columns": columns}
    folder = root / "tokenized" / _key(data, tokenizer, {**how, **policy}) if root else None
    if folder is not None and (found := _load(folder)) is not None:
        return found
    splits = load_splits(data, seed=seed, format=format, columns=columns)
    rows = {"train": splits.train, "valid": splits.valid}
    if folder is not None:
        try:
            _store(folder, rows, splits.sources, tokenizer, policy)
        except (StorageError, OSError):
            pass
        else:
            if (found := _load(folder)) is not None:
                _forget_oldest(folder.parent)
                return dataclasses.replace(found, kept=False)
    train = prepare(splits.train, tokenizer, **policy)
    valid = prepare(splits.valid, tokenizer, **policy) if splits.valid else None
    return Tokenized(train, valid, splits.sources, kept=False)


def cache_root() -> Path | None:
    """Where mlx-itune keeps what it can make again; None where it must not."""
    named = os.environ.get("MLX_ITUNE_CACHE")
    if named is not None:
        return None if named in ("", "off", "0") else Path(named)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mlx_itune"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlx_itune"


def write_examples(folder: Path, examples: Iterable[TokenizedExample]) -> None:
    """Write `examples` into an existing `folder`, holding one at a time."""
    with ExitStack() as stack:
        ids, weights, notes, ends = (
            stack.enter_context((folder / f"{name}.bin").open("xb"))
            for name in ("ids", "weights", "notes", "ends")
        )
        for example in examples:
            ids.write(np.ascontiguousarray(example.input_ids, dtype="<i4").data)
            weights.write(np.ascontiguousarray(example.weights, dtype="<f4").data)
            notes.write(orjson.dumps([example.origin, dict(example.tags), example.spans]))
            ends.write(np.array([ids.tell() // 4, notes.tell()], dtype="<i8").tobytes())


class StoredExamples(Sequence[TokenizedExample]):
    """The examples of a folder; an example's arrays are read-only views of the files."""

    def __init__(self, folder: Path) -> None:
        self._ids = _mapped(folder / "ids.bin", "<i4")
        self._weights = _mapped(folder / "weights.bin", "<f4")
        self._notes = _mapped(folder / "notes.bin", "u1")
        ends = _mapped(folder / "ends.bin", "<i8").reshape(-1, 2)
        self._ends = np.concatenate([np.zeros((1, 2), dtype=np.int64), ends])

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> TokenizedExample: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenizedExample]: ...
    def __getitem__(self, index: int | slice) -> TokenizedExample | list[TokenizedExample]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        n = range(len(self))[index]
        (token, note), (token_end, note_end) = self._ends[n : n + 2].tolist()
        origin, tags, spans = orjson.loads(self._notes[note:note_end].data)
        return TokenizedExample(
            self._ids[token:token_end],
            self._weights[token:token_end],
            origin,
            tags,
            tuple((first, end) for first, end in spans),
        )


def _mapped(path: Path, dtype: str) -> NDArray[Any]:
    # mmap refuses an empty file.
    if not path.stat().st_size:
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)


def _key(data: Path, tokenizer: ChatTokenizer, how: Mapping[str, Any]) -> str:
    files = {split: [p.name, sha256_file(p)] for split, p in split_paths(data).items()}
    # Rows carry the path they were read from, as it was given.
    facts = [_FORMAT, __version__, str(data), files, tokenizer.fingerprint(), dict(how)]
    if "strftime_now" in tokenizer.template_text:
        facts.append(date.today().isoformat())
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _store(
    folder: Path,
    rows: Mapping[str, Sequence[Conversation]],
    sources: tuple[Source, ...],
    tokenizer: ChatTokenizer,
    policy: dict[str, Any],
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with staged_directory(folder) as stage:
        reports: dict[str, Any] = {}
        for name, part in rows.items():
            if not part:
                continue
            (stage / name).mkdir()
            report = PrepareReport()
            write_examples(stage / name, prepare_each(part, tokenizer, report, **policy))
            reports[name] = dataclasses.asdict(report)
        sums = {
            f"{file.parent.name}/{file.name}": sha256_file(file)
            for file in sorted(stage.glob("*/*.bin"))
        }
        meta = {"sources": [dataclasses.asdict(s) for s in sources], "reports": reports}
        (stage / "meta.json").write_bytes(orjson.dumps({**meta, "sha256": sums}))


def _load(folder: Path) -> Tokenized | None:
    """What a folder keeps; None if it is not there or not what was written."""
    try:
        meta = orjson.loads((folder / "meta.json").read_bytes())
        if any(sha256_file(folder / name) != digest for name, digest in meta["sha256"].items()):
            raise ValueError("a file has changed")
        parts = {
            name: Preparation(StoredExamples(folder / name), PrepareReport(**values))
            for name, values in meta["reports"].items()
        }
        os.utime(folder)
        sources = tuple(Source(**source) for source in meta["sources"])
        return Tokenized(parts["train"], parts.get("valid"), sources, kept=True)
    except (OSError, StorageError):
        return None
    except (ValueError, KeyError, TypeError):
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _forget_oldest(root: Path) -> None:
    """Remove what was used least recently, down to a few gigabytes."""
    try:
        folders = sorted(root.iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)
        kept_bytes = 0
        for number, folder in enumerate(folders):
            kept_bytes += sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
            if number and kept_bytes > _KEPT_BYTES:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return
