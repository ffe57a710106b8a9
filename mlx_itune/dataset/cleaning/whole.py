"""Steps that need to see every row before they can decide about one."""

from __future__ import annotations

import pickle
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing

from mlx_itune.dataset.checking.check import SystemPrompts
from mlx_itune.dataset.checking.near_duplicates import THRESHOLD, Duplicates
from mlx_itune.dataset.cleaning.outcome import Dropped, Outcome, with_turns
from mlx_itune.dataset.cleaning.rows import Row
from mlx_itune.dataset.conversation import Conversation
from mlx_itune.kit.files import storage_errors


class Spool:
    """Rows in a temporary file: written once, read in order or by number.

    The file is our own and gone afterwards, so that pickle is safe here; 8 bytes per row stay in
    memory.
    """

    def __init__(self) -> None:
        with storage_errors(tempfile.gettempdir()):
            self._file = tempfile.TemporaryFile(prefix="mlx-itune-clean-")  # noqa: SIM115
        self._starts = array("Q")
        self.close = self._file.close

    def append(self, row: Row) -> None:
        """Write one row at the end."""
        with storage_errors(tempfile.gettempdir()):
            self._starts.append(self._file.seek(0, 2))
            pickle.dump(row, self._file, protocol=pickle.HIGHEST_PROTOCOL)

    def row(self, number: int) -> Row:
        """One row, by number from 0."""
        self._file.seek(self._starts[number])
        found: Row = pickle.load(self._file)
        return found

    def __iter__(self) -> Iterator[Row]:
        return map(self.row, range(len(self._starts)))


class WholeStep:
    """A step over all rows: gives each row with what becomes of it, in order.

    `pairs` counts what was repeated by (source of the repeat, source of the first).
    """

    def __init__(self) -> None:
        self.pairs: Counter[tuple[str, str]] = Counter()

    def run(self, rows: Iterable[Row]) -> Iterator[tuple[Row, Outcome]]:
        """Every row and its outcome; `rows` are read to the end first."""
        with closing(Spool()) as spool:
            decide = self.decide(rows, spool)
            for number, row in enumerate(spool):
                yield row, decide(number, row)

    def decide(self, rows: Iterable[Row], spool: Spool) -> Callable[[int, Row], Outcome]:
        """Spool the rows; afterwards say what becomes of each."""
        raise NotImplementedError


class DropRepeats(WholeStep):
    """Keep the first of rows that say the same: `exact`ly, `near`ly, or in their first `pair`."""

    def __init__(self, kind: str, threshold: float = THRESHOLD) -> None:
        super().__init__()
        self._kind, self._threshold = kind, threshold

    def decide(self, rows: Iterable[Row], spool: Spool) -> Callable[[int, Row], Outcome]:
        repeats = self._repeats(rows, spool)

        def outcome(number: int, row: Row) -> Outcome:
            if number not in repeats:
                return None
            first, percent = repeats[number]
            earlier = spool.row(first).before
            self.pairs[source_of(row.before), source_of(earlier)] += 1
            if self._kind == "pair":
                return Dropped(f"begins like {earlier.origin}")
            said = f"{percent} % the same as" if percent < 100 else "repeats"
            return Dropped(f"{said} {earlier.origin}")

        return outcome

    def _repeats(self, rows: Iterable[Row], spool: Spool) -> dict[int, tuple[int, int]]:
        """Of each repeated row the number of the one before it, and how alike they are in %."""
        repeats: dict[int, tuple[int, int]] = {}
        pairs: dict[int, int] = {}
        with closing(
            Duplicates(near=self._kind == "near", threshold=self._threshold)
        ) as duplicates:
            for number, row in enumerate(rows):
                spool.append(row)
                if self._kind == "pair":
                    first: int | None = pairs.setdefault(_first_pair(row.now), number)
                else:
                    first = duplicates.add(row.now)
                if first is not None and first != number:
                    repeats[number] = first, 100
            for best, *_ in duplicates.near():
                repeats[best.later] = best.earlier, int(100 * best.similarity)
        return repeats


class UnifySystem(WholeStep):
    """Write system prompts that differ in spelling only the way that most rows do."""

    def decide(self, rows: Iterable[Row], spool: Spool) -> Callable[[int, Row], Outcome]:
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
                return None
            said = "system prompt spelled as in most rows"
            return with_turns(row.now, (type(first)("system", text), *rest), said)

        return outcome


def source_of(row: Conversation) -> str:
    """The `source` that a row names, or else its file."""
    return row.tags.get("source") or row.origin.rpartition(":")[0].replace("\\", "/").split("/")[-1]


def _first_pair(row: Conversation) -> int:
    said = [turn.content for turn in row.turns if turn.role != "system"][:2]
    return hash(tuple(said))
