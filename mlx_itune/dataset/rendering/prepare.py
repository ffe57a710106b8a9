"""Conversations -> examples that fit, and an account of every assistant turn that did not.

Examples are kept between runs: the second run on the same data starts at once. A folder per (files,
tokenizer, template, mask policy), found by a hash of all of them and verified by checksums before
use. What cannot be kept (no space, no permission) is simply made again. Each split is a folder,
written as examples come and memory-mapped when they are read:

| file | content, little-endian |
|---|---|
| `ids.bin`, `weights.bin` | input_ids int32 and weights float32, example after example |
| `notes.bin` | JSON [origin, tags, spans] per example |
| `ends.bin` | int64 pairs: where each example ends in the tokens, and in the notes |
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import date
from itertools import tee
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import orjson
from numpy.typing import NDArray

from mlx_itune import __version__
from mlx_itune.dataset.conversation import Conversation, is_text, place_of
from mlx_itune.dataset.how import Account, Reading
from mlx_itune.dataset.rendering.render import (
    Learn,
    TokenizedExample,
    render,
    render_many,
    turn_weights,
)
from mlx_itune.dataset.sources import Source, Splits, load_splits, split_paths
from mlx_itune.dataset.tokens.tokenizer import BUILT_IN, ChatTokenizer
from mlx_itune.kit.cache import cache_root
from mlx_itune.kit.errors import DataError, StorageError
from mlx_itune.kit.files import sha256_file, staged_directory
from mlx_itune.kit.json_files import read_bytes
from mlx_itune.kit.wording import brief, count, listing

TooLong = Literal["split", "truncate", "drop", "error"]


@dataclass
class PrepareReport:
    """What came in and what came out; adds up row by row while rows are prepared. turns =
    turns_whole + turns_truncated + turns_dropped, always. The lists hold origins of rows;
    `dropped`: wholly or in part; `control_text`: rows that spell out a control token."""

    rows: int = 0
    examples: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    turns: int = 0
    turns_whole: int = 0
    turns_truncated: int = 0
    turns_dropped: int = 0
    split: list[str] = field(default_factory=list)
    truncated: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    nothing_to_learn: list[str] = field(default_factory=list)
    control_text: list[str] = field(default_factory=list)
    # In how many rows is what the template shows nowhere, and no system prompt; their system
    # prompts ("" is none), as far as there are two.
    unshown: dict[str, int] = field(default_factory=dict)
    # How many tokens are of which source.
    source_tokens: dict[str, int] = field(default_factory=dict)
    no_system: int = 0
    systems: list[str] = field(default_factory=list)

    def add(
        self,
        origin: str,
        turns: int,
        examples: Sequence[TokenizedExample],
        truncated: int,
        **marks: bool,
    ) -> None:
        """Count what became of one conversation with so many turns to learn, some `truncated`.
        `marks` says of other lists whether it belongs there."""
        spans = sum(len(example.spans) for example in examples)
        self.rows += 1
        self.examples += len(examples)
        self.tokens += sum(len(example.input_ids) for example in examples)
        self.supervised_tokens += sum(int(np.count_nonzero(e.weights)) for e in examples)
        for example in examples:
            source = example.tags.get("source") or Path(place_of(origin)[0]).stem
            tokens = self.source_tokens.get(source, 0) + len(example.input_ids)
            self.source_tokens[source] = tokens
        self.turns += turns
        self.turns_whole += spans - truncated
        self.turns_truncated += truncated
        self.turns_dropped += turns - spans
        marks |= {"truncated": truncated > 0, "dropped": turns > spans}
        marks["nothing_to_learn"] = not turns
        for name in (name for name, is_so in marks.items() if is_so):
            getattr(self, name).append(origin)

    def see(self, row: Conversation, tokenizer: ChatTokenizer) -> None:
        """Count what a row has that is not shown, and its system prompt."""
        for what in tokenizer.unshown(row):
            self.unshown[what] = self.unshown.get(what, 0) + 1
        system = row.turns[0].content if row.turns[0].role == "system" else ""
        self.no_system += not system and not is_text(row.tags)
        if len(self.systems) < 2 and system not in self.systems:
            self.systems.append(system)

    def about_length(self, limit: int) -> Iterator[str]:
        """A line for each way in which rows that are too long were shortened."""
        for replies, rows, what in (
            (0, self.split, "cut between exchanges: longer than"),
            (self.turns_truncated, self.truncated, "cut short: longer than"),
            (self.turns_dropped, self.dropped, "left out: no room within"),
        ):
            if rows:
                of = f"{count(replies, 'reply', 'replies')} of " if replies else ""
                yield f"{of}{count(len(rows), 'row')} {what} {limit:,} tokens"

    def about_template(self, tokenizer: ChatTokenizer) -> Iterator[str]:
        """A line for each kind of thing that rows have and the template does not show, and one for
        the words that it puts in instead of a system prompt."""
        for what, number in self.unshown.items():
            remedy = tokenizer.remedy(what)
            more = f"; {remedy} shows it" if remedy else ""
            have = f"{count(number, 'row')} {'has' if number == 1 else 'have'} it"
            yield f"{what}: {have}, this template shows none{more}"
        own = tokenizer.dialect.own_words if tokenizer.name not in BUILT_IN else None
        if self.no_system and own:
            rows = f"{count(self.no_system, 'row')} without a system prompt"
            told = f"words of its own into {rows}: {brief(own, 80)!r}"
            yield f"the template puts {told}; --system TEXT says others"
        if tokenizer.broken_marks:
            marks = listing(map(repr, tokenizer.broken_marks))
            yield f"the template writes {marks}, which this tokenizer reads letter by letter"


@dataclass(frozen=True)
class Preparation:
    """Examples in the order of their rows, and the account of them."""

    examples: Sequence[TokenizedExample]
    report: PrepareReport


def prepare(
    conversations: Iterable[Conversation],
    tokenizer: ChatTokenizer,
    *,
    max_length_tokens: int = 2048,
    learn: Learn = "all",
    too_long: TooLong = "split",
    overlap: int = 0,
) -> Preparation:
    """Render every conversation and bring what is too long within `max_length_tokens`. `split` cuts
    between exchanges and truncates only a single one that is still too long; `truncate` keeps the
    start; `drop` leaves the row out. Raises DataError for rows that the template refuses (all are
    counted), for `error` and a long row, or when nothing is left to learn."""
    report = PrepareReport()
    how: Any = (max_length_tokens, learn, too_long, overlap)
    examples = _prepared(conversations, tokenizer, report, *how)
    return Preparation(tuple(examples), report)


def _prepared(
    conversations: Iterable[Conversation],
    tokenizer: ChatTokenizer,
    report: PrepareReport,
    max_length_tokens: int = 2048,
    learn: Learn = "all",
    too_long: TooLong = "split",
    overlap: int = 0,
) -> Iterator[TokenizedExample]:
    """The examples of `prepare` one after another, holding a few rows at a time. Raises what
    `prepare` raises, when the last row is done."""
    refused: list[DataError] = []
    long: list[str] = []
    rows, to_render = tee(conversations)
    for row, parts in zip(rows, render_many(to_render, tokenizer, learn), strict=True):
        if isinstance(parts, DataError):
            refused.append(parts)
            parts = ()
        longest = max((len(part.input_ids) for part in parts), default=0)
        pieces = [parts]
        if longest > max_length_tokens and too_long == "split":
            pieces = _pieces(row, parts, tokenizer, max_length_tokens, learn, overlap)
        elif longest > max_length_tokens and too_long != "truncate":
            long.append(f"{row.origin} ({longest} tokens)")
            pieces = []
        whole = [part for piece in pieces for part in piece]
        examples = [cut for part in whole if (cut := _cut(part, max_length_tokens)).spans]
        report.add(
            row.origin,
            sum(len(part.spans) for part in parts),
            examples,
            split=len(pieces) > 1,
            truncated=sum(a < max_length_tokens < b for part in whole for a, b in part.spans),
            control_text=any(map(tokenizer.control_text.spelled_by, row.turns)),
        )
        report.see(row, tokenizer)
        yield from examples
    if refused:
        first, others = refused[0], len(refused) - 1
        what = first.message + (f"; so it does {others} more rows" if others else "")
        hint = first.hint or "`mlx-itune data check --model ...` lists them all"
        raise DataError(what, where=first.where, hint=hint)
    if long and too_long == "error":
        raise DataError(
            f"{len(long)} rows are longer than {max_length_tokens} tokens: " + ", ".join(long[:3]),
            hint="raise --max-length or choose --too-long split, truncate or drop",
        )
    if not report.rows:
        raise DataError("no rows, so there is nothing to learn")
    if not report.examples:
        reasons = []
        if report.dropped:
            reasons.append(f"{len(report.dropped)} rows do not fit in {max_length_tokens} tokens")
        if report.nothing_to_learn:
            reasons.append(f"{len(report.nothing_to_learn)} rows have no turn to learn")
        raise DataError("nothing is left to learn: " + ", ".join(reasons))


def _pieces(
    conversation: Conversation,
    parts: tuple[TokenizedExample, ...],
    tokenizer: ChatTokenizer,
    limit: int,
    learn: Learn,
    overlap: int,
) -> list[tuple[TokenizedExample, ...]]:
    """The conversation cut between exchanges, packed from its end, so that late turns keep as much
    context as fits; the system turn stands before every piece."""
    weights = turn_weights(conversation, learn)
    # Pieces are rendered as marked, so that "last" still means the last turn of the whole.
    turns = tuple(
        replace(turn, weight=weight) if turn.role == "assistant" else turn
        for turn, weight in zip(conversation.turns, weights, strict=True)
    )
    system = turns[:1] if turns[0].role == "system" else ()
    starts = [n for n, turn in enumerate(turns) if turn.role == "user"]
    every = tuple(starts)
    if len(starts) < 2:
        return [parts]

    def piece(first: int, end: int, behind: int) -> tuple[TokenizedExample, ...]:
        """What begins at a turn, behind so many exchanges before it, which are not learned."""
        start = every[max(0, every.index(first) - behind)]
        led = (replace(turn, weight=0.0) if turn.weight else turn for turn in turns[start:first])
        cut = replace(conversation, turns=(*system, *led, *turns[first:end]))
        return render(cut, tokenizer, "marked")

    def fits(parts: tuple[TokenizedExample, ...]) -> bool:
        return all(len(part.input_ids) <= limit for part in parts)

    found: list[tuple[TokenizedExample, ...]] = []
    end = len(turns)
    while starts:
        first = starts.pop()
        tried = (piece(first, end, behind) for behind in range(overlap, 0, -1))
        best = next(filter(fits, tried), None) or piece(first, end, 0)
        while starts:
            longer = piece(starts[-1], end, overlap)
            if not fits(longer):
                break
            first, best = starts.pop(), longer
        if best:
            found.insert(0, best)
        end = first
    return found


def _cut(part: TokenizedExample, limit: int) -> TokenizedExample:
    """Its first `limit` tokens at most; what follows the last learned one is context for nothing"""
    spans = tuple((start, min(end, limit)) for start, end in part.spans if start < limit)
    end = spans[-1][1] if spans else 0
    return replace(part, input_ids=part.input_ids[:end], weights=part.weights[:end], spans=spans)


_FORMAT = 6
_KEPT_BYTES = 8 * 10**9


@dataclass(frozen=True)
class Tokenized:
    """The training and validation examples of a data set (`valid` is None without rows), the files
    they come from, and whether they were kept from an earlier run."""

    train: Preparation
    valid: Preparation | None
    sources: tuple[Source, ...]
    kept: bool
    told: Account = field(default_factory=Account)


def tokenized(
    data: Path,
    tokenizer: ChatTokenizer,
    *,
    seed: int = 0,
    how: Reading | None = None,
    **policy: Any,
) -> Tokenized:
    """The examples of a data file or folder; `policy` as for `prepare`.

    Raises what `load_splits` and `prepare` raise.
    """
    how = how or Reading()
    root = cache_root()
    facts = {"seed": seed, **how.facts(), **policy}
    folder = root / "tokenized" / _key(data, tokenizer, facts) if root else None
    if folder is not None and (found := _load(folder)) is not None:
        return found
    splits = load_splits(data, seed=seed, how=how)
    if not any(any(turn_weights(row, policy.get("learn", "all"))) for row in splits.valid):
        # Nothing could be measured on them.
        splits = replace(splits, valid=())
    if folder is not None:
        try:
            _store(folder, splits, tokenizer, policy, how.told)
        except (StorageError, OSError):
            pass
        else:
            if (found := _load(folder)) is not None:
                _forget_oldest(folder.parent)
                return replace(found, kept=False)
    train = prepare(splits.train, tokenizer, **policy)
    valid = prepare(splits.valid, tokenizer, **policy) if splits.valid else None
    return Tokenized(train, valid, splits.sources, kept=False, told=how.told)


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
    splits: Splits,
    tokenizer: ChatTokenizer,
    policy: Mapping[str, Any],
    told: Account,
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with staged_directory(folder) as stage:
        reports: dict[str, PrepareReport] = {}
        for name, rows in (("train", splits.train), ("valid", splits.valid)):
            if rows:
                (stage / name).mkdir()
                reports[name] = PrepareReport()
                examples = _prepared(rows, tokenizer, reports[name], **policy)
                write_examples(stage / name, examples)
        files = sorted(stage.glob("*/*.bin"))
        meta = {
            "told": told,
            "sources": splits.sources,
            "reports": reports,
            "sha256": {f"{file.parent.name}/{file.name}": sha256_file(file) for file in files},
        }
        (stage / "meta.json").write_bytes(orjson.dumps(meta))


def _load(folder: Path) -> Tokenized | None:
    """What a folder keeps; None if it is not there or not what was written."""
    try:
        meta = orjson.loads(read_bytes(folder / "meta.json"))
        if any(sha256_file(folder / name) != digest for name, digest in meta["sha256"].items()):
            raise ValueError("a file has changed")
        parts = {
            name: Preparation(StoredExamples(folder / name), PrepareReport(**values))
            for name, values in meta["reports"].items()
        }
        os.utime(folder)
        sources = tuple(Source(**source) for source in meta["sources"])
        told = Account.of(meta["told"])
        return Tokenized(parts["train"], parts.get("valid"), sources, kept=True, told=told)
    except (OSError, StorageError):
        return None
    except (ValueError, KeyError, TypeError):
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _forget_oldest(root: Path) -> None:
    try:
        folders = sorted(root.iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)
        kept_bytes = 0
        for number, folder in enumerate(folders):
            kept_bytes += sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
            if number and kept_bytes > _KEPT_BYTES:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return
