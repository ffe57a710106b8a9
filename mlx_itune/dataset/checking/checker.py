"""Every fault of every row in one streaming pass; duplicates and drift when all was seen."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from mlx_itune.dataset.checking.columns import Columns
from mlx_itune.dataset.checking.drift import SystemPrompts
from mlx_itune.dataset.checking.duplicates import Duplicates, Match
from mlx_itune.dataset.checking.gather import (
    CHUNK_CHARS,
    CHUNK_ROWS,
    Chunk,
    gather,
    keep_scratch,
)
from mlx_itune.dataset.checking.leakage import in_split_order, split_of
from mlx_itune.dataset.checking.lengths import token_faults
from mlx_itune.dataset.checking.lints import Lint, excerpt, load_lints
from mlx_itune.dataset.checking.refetch import Reading
from mlx_itune.dataset.checking.screening import Screen
from mlx_itune.dataset.checking.similarity import THRESHOLD
from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.faults import Fault, Severity, place_of
from mlx_itune.dataset.rendering.render import Learn
from mlx_itune.dataset.sources import expand
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer

_MATCHES_AT_ONCE = 1 << 14
_RARE_KEPT = 1 << 12
# A few hits are worth a look however few rows there are.
_RARE_ALWAYS = 3
_LINE_BITS = np.uint64(40)
_LINE_MASK = np.uint64((1 << 40) - 1)


class Check:
    """Iterate once over the faults; the totals are right when that is done.

    `duplicate_sources` counts the repeated rows by (source of the repeat, source of the first);
    a row's source is its `source` tag, or else its file.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        format: str | None = None,
        columns: Mapping[str, str] | None = None,
        kind: str | None = None,
        tokenizer: ChatTokenizer | None = None,
        learn: Learn = "all",
        max_length_tokens: int = 2048,
        near_duplicates: bool = True,
        threshold: float = THRESHOLD,
        lints: Sequence[Lint] | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> None:
        self.rows = self.accepted = self.rejected = self.warnings = 0
        self.counts: Counter[str] = Counter()
        self.duplicate_sources: Counter[tuple[str, str]] = Counter()
        self.notes: list[str] = []
        self.paths = in_split_order(expand(paths))
        self._splits = [split_of(path) for path in self.paths]
        self._reading = Reading(format, columns, kind)
        self._tokenizer, self._learn, self._max_length = tokenizer, learn, max_length_tokens
        self._near, self._threshold = near_duplicates, threshold
        self._screen = Screen(_with_controls(load_lints() if lints is None else lints, tokenizer))
        self.on_bytes = on_bytes
        self._systems = SystemPrompts()
        self._system_finds: dict[str, list[tuple[Lint, str]]] = {}
        self._rare: dict[str, list[Fault]] = {}
        self._rare_counts: Counter[str] = Counter()
        self._sources: dict[str, int] = {}
        # The number of the first accepted row of each file.
        self._first: list[int] = []

    def __iter__(self) -> Iterator[Fault]:
        keep_scratch()
        collects = gc.isenabled()
        # Rows hold no cycles, and there are thousands of them alive at any time: the collector
        # would walk through them again and again.
        gc.disable()
        try:
            yield from self._counted()
        finally:
            if collects:
                gc.enable()

    def _counted(self) -> Iterator[Fault]:
        with (
            Duplicates(near=self._near, threshold=self._threshold) as duplicates,
            Columns(2) as places,
        ):
            for fault in self._faults(duplicates, places):
                self.counts[fault.code] += 1
                self.warnings += fault.severity == "warning"
                yield fault

    def _faults(self, duplicates: Duplicates, places: Columns) -> Iterator[Fault]:
        for number, path in enumerate(self.paths):
            self._first.append(places.rows)
            yield from self._file(number, path, duplicates, places)
        yield from self._rare_faults()
        yield from self._systems.faults()
        if self._systems.too_many:
            self.notes.append("there are too many different system prompts to compare them all")
        yield from self._repeats(duplicates, places)

    def _file(
        self, number: int, path: Path, duplicates: Duplicates, places: Columns
    ) -> Iterator[Fault]:
        broken: list[Fault] = []
        held: list[Conversation] = []
        size = 0
        for item in self._reading.rows(path, on_bytes=self.on_bytes):
            if isinstance(item, Fault):
                broken.append(item)
            else:
                held.append(item)
                size += len(item.turns[-1].content)
            if len(held) >= CHUNK_ROWS or size >= CHUNK_CHARS or len(broken) >= CHUNK_ROWS:
                yield from self._some(number, path, held, broken, duplicates, places)
                held, broken, size = [], [], 0
        yield from self._some(number, path, held, broken, duplicates, places)

    def _some(
        self,
        number: int,
        path: Path,
        held: Sequence[Conversation],
        broken: Sequence[Fault],
        duplicates: Duplicates,
        places: Columns,
    ) -> Iterator[Fault]:
        for fault in broken:
            if fault.severity == "error":
                self.rows += 1
                self.rejected += 1
            yield fault
        if held:
            chunk = gather(held)
            lines = [place_of(row.origin)[1] for row in held]
            self._keep(number, path, chunk, lines, duplicates, places)
            yield from self._chunk(str(path), chunk, lines)

    def _keep(
        self,
        number: int,
        path: Path,
        chunk: Chunk,
        lines: list[int],
        duplicates: Duplicates,
        places: Columns,
    ) -> None:
        self.rows += len(lines)
        self.accepted += len(lines)
        duplicates.add(chunk.exact, chunk.words if self._near else None)
        where = np.empty((len(lines), 2), np.uint64)
        where[:, 0] = lines
        where[:, 0] |= np.uint64(number) << _LINE_BITS
        sources, name = self._sources, path.name
        where[:, 1] = [
            sources.setdefault(row.tags.get("source") or name, len(sources)) for row in chunk.rows
        ]
        places.append(where)

    def _chunk(self, file: str, chunk: Chunk, lines: list[int]) -> Iterator[Fault]:
        for find in self._screen.find(chunk.rows, chunk.words):
            role = chunk.rows[find.row].turns[find.turn].role
            place = f"turn {find.turn + 1} ({role})"
            yield from self._lint(find.lint, place, find.text, file, lines[find.row])
        for system, count in Counter(chunk.systems).items():
            if not system:
                continue
            first = chunk.systems.index(system)
            self._systems.add(system, file, lines[first], count)
            finds = self._in_system(system)
            for said, line in zip(chunk.systems, lines, strict=True) if finds else ():
                for lint, text in finds if said == system else ():
                    yield from self._lint(lint, "turn 1 (system)", text, file, line)
        if self._tokenizer is not None:
            for found in token_faults(chunk.rows, self._tokenizer, self._learn, self._max_length):
                if found.is_error:
                    self.accepted -= 1
                    self.rejected += 1
                severity: Severity = "error" if found.is_error else "warning"
                yield Fault(file, lines[found.row], found.code, found.message, found.hint, severity)

    def _in_system(self, text: str) -> list[tuple[Lint, str]]:
        found = self._system_finds.get(text)
        if found is None:
            if len(self._system_finds) > 1000:
                self._system_finds.clear()
            found = self._system_finds[text] = list(self._screen.find_in("system", text))
        return found

    def _lint(self, lint: Lint, place: str, text: str, file: str, line: int) -> Iterator[Fault]:
        message = f"{lint.message}: {excerpt(text)} in {place}"
        fault = Fault(file, line, lint.code, message, lint.hint, "warning")
        if lint.rare is None:
            yield fault
            return
        self._rare_counts[lint.code] += 1
        kept = self._rare.setdefault(lint.code, [])
        if len(kept) < _RARE_KEPT:
            kept.append(fault)

    def _rare_faults(self) -> Iterator[Fault]:
        share = {lint.code: lint.rare for lint in self._screen.lints if lint.rare is not None}
        for code, kept in self._rare.items():
            if self._rare_counts[code] <= max(_RARE_ALWAYS, share[code] * self.accepted):
                yield from kept
                left = self._rare_counts[code] - len(kept)
                if left:
                    self.notes.append(f"{left} more rows have {code}")

    def _repeats(self, duplicates: Duplicates, places: Columns) -> Iterator[Fault]:
        held: list[list[Match]] = []

        def told() -> Iterator[Fault]:
            rows = np.unique([row for group in held for m in group for row in (m.later, m.earlier)])
            where = places.pick(0, rows.astype(np.intp)).tolist()
            source = places.pick(1, rows.astype(np.intp)).tolist()
            at = {
                row: (place >> 40, place & int(_LINE_MASK), name)
                for row, place, name in zip(rows.tolist(), where, source, strict=True)
            }
            for group in held:
                yield self._repeat(group, at)
            held.clear()

        fetch = _Fetch(self, places)
        for group in duplicates.matches(fetch):
            held.append(group)
            if len(held) >= _MATCHES_AT_ONCE:
                yield from told()
        if held:
            yield from told()
        if duplicates.cut_short:
            self.notes.append("there are too many near duplicates to compare all; see the closest")

    def _repeat(self, group: list[Match], at: Mapping[int, tuple[int, int, int]]) -> Fault:
        file, line, source = at[group[0].later]
        split = self._splits[file]

        def leaks(match: Match) -> bool:
            other = self._splits[at[match.earlier][0]]
            return split is not None and other is not None and split != other

        match = next(filter(leaks, group), group[0])
        other_file, other_line, other_source = at[match.earlier]
        names = list(self._sources)
        self.duplicate_sources[names[source], names[other_source]] += 1
        earlier = f"{self.paths[other_file]}:{other_line}"
        code, message = _TOLD[match.kind]
        said = message.format(earlier=earlier, percent=int(100 * match.similarity))
        hint = f"keep one of them (data clean --steps {_STEP[match.kind]})"
        if leaks(match):
            code = "near-leak" if match.kind == "near" else "leak"
            said = f"this {split} row {said}, a {self._splits[other_file]} row"
            hint = f"keep it out of one of the two ({hint[hint.index('data') : -1]})"
        return Fault(str(self.paths[file]), line, code, said, hint, "warning")


_TOLD = {
    "exact": ("duplicate", "repeats {earlier}"),
    "spelling": ("respelled-duplicate", "repeats {earlier} but for case, spacing or system prompt"),
    "near": ("near-duplicate", "is {percent} % the same as {earlier}"),
}
_STEP = {"exact": "exact-duplicates", "spelling": "near-duplicates", "near": "near-duplicates"}


class _Fetch:
    """Conversations by row number, read from their files once more."""

    def __init__(self, check: Check, places: Columns) -> None:
        self._check, self._places = check, places

    def __call__(self, rows: Sequence[int]) -> Iterator[tuple[int, Conversation]]:
        check = self._check
        index = np.array(rows, np.intp)
        lines = (self._places.pick(0, index) & _LINE_MASK).tolist()
        starts = [*check._first, self._places.rows]
        for number, path in enumerate(check.paths):
            begin, end = np.searchsorted(index, [starts[number], starts[number + 1]]).tolist()
            if begin == end:
                continue
            ordinals = (index[begin:end] - starts[number]).tolist()
            for ordinal, row in check._reading.again(path, ordinals, lines[begin:end]):
                yield starts[number] + ordinal, row


def check(paths: Sequence[Path], **options: object) -> Check:
    """The faults of every row of `paths` (files or folders), as an iterable with totals.

    Options are those of `Check`. Raises DataError for a path that is missing or unreadable.
    """
    return Check(paths, **options)  # type: ignore[arg-type]


def _with_controls(lints: Sequence[Lint], tokenizer: ChatTokenizer | None) -> list[Lint]:
    """The lints, and one for the tokenizer's own control strings."""
    if tokenizer is None:
        return list(lints)
    known = {text for lint in lints for text in lint.texts}
    texts = [str(tokenizer.hf.convert_ids_to_tokens(i)) for i in sorted(tokenizer.control_ids)]
    own = tuple(
        text for text in texts if len(text) > 2 and not text.isalnum() and text not in known
    )
    if not own:
        return list(lints)
    template = next((lint for lint in lints if lint.code == "template-text"), None)
    made = Lint(
        code="control-token",
        message="a control token of this model stands inside the content",
        hint=template.hint if template else "give turns, not rendered text",
        where=frozenset(("system", "user", "assistant", "tool")),
        texts=own,
    )
    return [*lints, made]
