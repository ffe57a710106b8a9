"""Steps that need to see every row before they can decide about one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing

from mlx_itune.dataset.checking.drift import SystemPrompts
from mlx_itune.dataset.checking.near_duplicates import THRESHOLD, Duplicates
from mlx_itune.dataset.cleaning.outcome import KEPT, Dropped, Outcome, changed
from mlx_itune.dataset.cleaning.spool import Row, Spool
from mlx_itune.dataset.conversation import Conversation, Turn

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
        found = stack.enter_context(closing(Duplicates(near=near, threshold=self._threshold)))
        pairs: dict[int, int] = {}
        # Of each repeated row the one before it, and how alike they are in per cent.
        repeats: dict[int, tuple[int, int]] = {}
        for number, row in enumerate(rows):
            spool.append(row)
            if self._kind == "pair":
                first: int | None = pairs.setdefault(_first_pair(row.now), number)
            else:
                first = found.add(row.now)
            if first is not None and first != number:
                repeats[number] = first, 100
        for best, *_ in found.near():
            repeats[best.later] = best.earlier, int(100 * best.similarity)

        def outcome(number: int, row: Row) -> Outcome:
            if number not in repeats:
                return KEPT
            repeated, percent = repeats[number]
            earlier = spool.row(repeated).before
            self.pairs[source_of(row.before), source_of(earlier)] += 1
            return Dropped(self._detail(percent, earlier.origin))

        return outcome

    def _detail(self, percent: int, origin: str) -> str:
        if self._kind == "pair":
            return f"begins like {origin}"
        return f"{percent} % the same as {origin}" if percent < 100 else f"repeats {origin}"


class UnifySystem(WholeStep):
    """Write system prompts that differ in spelling only the way that most rows do."""

    def decide(
        self, rows: Iterable[Row], spool: Spool, stack: ExitStack
    ) -> Callable[[int, Row], Outcome]:
        prompts = SystemPrompts()
        for row in rows:
            spool.append(row)
            if row.now.turns[0].role == "system":
                prompts.add(row.now.turns[0].content, row.now.origin)
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
