"""Steps that need to see every row before they can decide about one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Literal

from mlx_itune.dataset.checking.check import SystemPrompts
from mlx_itune.dataset.checking.near_duplicates import Duplicates, Spool
from mlx_itune.dataset.cleaning.rows import Outcome, Row, with_turns
from mlx_itune.dataset.conversation import Conversation, Turn

Told = Iterator[tuple[Row, Outcome | None]]
# What was repeated by (source of the repeat, source of the first).
Sources = Counter[tuple[str, str]]


def drop_repeats(
    rows: Iterable[Row],
    kind: Literal["exact", "near", "pair"],
    sources: Sources,
    threshold: float = 1.0,
) -> Told:
    """Keep the first of rows that say the same; each repeat is counted in `sources`."""
    near = kind == "near"
    repeats: dict[int, tuple[int, int]] = {}  # of each the row before it, and how alike in %
    pairs: dict[int, int] = {}
    with (
        closing(Spool[Row]()) as spool,
        closing(Duplicates(near=near, threshold=threshold)) as duplicates,
    ):
        for row in rows:
            number = spool.append(row)
            if kind == "pair":
                first: int | None = pairs.setdefault(_first_pair(row.now), number)
            else:
                first = duplicates.add(row.now)
            if first is not None and first != number:
                repeats[number] = first, 100
        for best, *_ in duplicates.near():
            repeats[best.later] = best.earlier, int(100 * best.similarity)
        for number, row in enumerate(spool):
            if number not in repeats:
                yield row, None
                continue
            first, percent = repeats[number]
            earlier = spool[first].before
            sources[source_of(row.before), source_of(earlier)] += 1
            said = f"{percent} % the same as" if percent < 100 else "repeats"
            said = "begins like" if kind == "pair" else said
            yield row, Outcome(None, f"{said} {earlier.origin}")


def unify_system(rows: Iterable[Row]) -> Told:
    """Write system prompts that differ in spelling only the way that most rows do."""
    prompts = SystemPrompts()
    with closing(Spool[Row]()) as spool:
        for row in rows:
            spool.append(row)
            if row.now.turns[0].role == "system":
                prompts.add(row.now.turns[0].content, row.now.origin)
        usual = prompts.usual()
        for row in spool:
            first, *rest = row.now.turns
            text = usual.get(first.content) if first.role == "system" else None
            said = "system prompt spelled as in most rows"
            yield row, with_turns(row.now, [Turn("system", text), *rest], said) if text else None


def source_of(row: Conversation) -> str:
    """The `source` that a row names, or else its file."""
    return row.tags.get("source") or row.origin.rpartition(":")[0].replace("\\", "/").split("/")[-1]


def _first_pair(row: Conversation) -> int:
    said = [turn.content for turn in row.turns if turn.role != "system"][:2]
    return hash(tuple(said))
