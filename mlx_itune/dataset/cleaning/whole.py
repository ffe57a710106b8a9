"""Steps that need to see every row before they can decide about one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack

import numpy as np

from mlx_itune.dataset.checking.drift import SystemPrompts
from mlx_itune.dataset.checking.duplicates import Duplicates
from mlx_itune.dataset.checking.gather import gather, keep_scratch
from mlx_itune.dataset.checking.similarity import THRESHOLD
from mlx_itune.dataset.cleaning.outcome import KEPT, Dropped, Outcome, changed
from mlx_itune.dataset.cleaning.spool import Row, Spool
from mlx_itune.dataset.conversation import Conversation, Turn

_CHUNK_ROWS = 256
Told = Iterator[tuple[Row, Outcome]]


class WholeStep:
    """A step over all rows: gives each row with what becomes of it, in order.

    `pairs` counts what was repeated by (source of the repeat, source of the first).
    """

    def __init__(self) -> None:
        self.pairs: Counter[tuple[str, str]] = Counter()

    def run(self, rows: Iterable[Row]) -> Told:
        """Every row and its outcome; `rows` are read to the end first."""
        with ExitStack() as stack:
            spool = stack.enter_context(Spool())
            decide = self.decide(rows, spool, stack)
            for number, row in enumerate(spool):
                yield row, decide(number, row)

    def decide(
        self, rows: Iterable[Row], spool: Spool, stack: ExitStack
    ) -> Callable[[int, Row], Outcome]:
        """Spool the rows; afterwards say what becomes of each."""
        raise NotImplementedError


class DropRepeats(WholeStep):
    """Keep the first of rows that say the same: `exact`ly, `near`ly, or in their first `pair`."""

    def __init__(self, kind: str, threshold: float = THRESHOLD) -> None:
        super().__init__()
        self._kind, self._threshold = kind, threshold

    def decide(
        self, rows: Iterable[Row], spool: Spool, stack: ExitStack
    ) -> Callable[[int, Row], Outcome]:
        near = self._kind == "near"
        keep_scratch()
        found = stack.enter_context(Duplicates(near=near, threshold=self._threshold))
        for chunk in _chunks(rows, spool):
            gathered = gather([row.now for row in chunk])
            hashes = gathered.exact
            if self._kind == "pair":
                hashes = [_first_pair(row.now) for row in chunk]
            found.add(hashes, gathered.words if near else None)
        repeats = np.full(len(spool), -1, np.int64)
        percent = np.zeros(len(spool), np.uint8)
        if near:
            for matches in found.matches(spool.conversations):
                best = matches[0]
                repeats[best.later] = best.earlier
                percent[best.later] = int(100 * best.similarity) * (best.kind == "near")
        else:
            later, first = found.exact()
            repeats[later] = first

        def outcome(number: int, row: Row) -> Outcome:
            if repeats[number] < 0:
                return KEPT
            earlier = spool.row(int(repeats[number])).before
            self.pairs[source_of(row.before), source_of(earlier)] += 1
            return Dropped(self._detail(int(percent[number]), earlier.origin))

        return outcome

    def _detail(self, percent: int, origin: str) -> str:
        if self._kind == "pair":
            return f"begins like {origin}"
        return f"{percent} % the same as {origin}" if percent else f"repeats {origin}"


class UnifySystem(WholeStep):
    """Write system prompts that differ in spelling only the way that most rows do."""

    def decide(
        self, rows: Iterable[Row], spool: Spool, stack: ExitStack
    ) -> Callable[[int, Row], Outcome]:
        prompts = SystemPrompts()
        for row in rows:
            spool.append(row)
            if row.now.turns[0].role == "system":
                prompts.add(row.now.turns[0].content, row.now.origin, 0)
        usual = prompts.usual()

        def outcome(number: int, row: Row) -> Outcome:
            first, *rest = row.now.turns
            text = usual.get(first.content) if first.role == "system" else None
            if text is None:
                return KEPT
            turns = (Turn("system", text), *rest)
            now = row.now
            return changed(
                Conversation(turns, now.origin, now.tools, now.tags, checked=True),
                "system prompt spelled as in most rows",
            )

        return outcome


def source_of(row: Conversation) -> str:
    """The `source` that a row names, or else its file."""
    return row.tags.get("source") or row.origin.rpartition(":")[0].replace("\\", "/").split("/")[-1]


def _first_pair(row: Conversation) -> int:
    said = [turn.content for turn in row.turns if turn.role != "system"][:2]
    return hash(tuple(said))


def _chunks(rows: Iterable[Row], spool: Spool) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    for row in rows:
        spool.append(row)
        chunk.append(row)
        if len(chunk) == _CHUNK_ROWS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
