"""A chunk of rows, laid out for what looks at all of them at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import orjson

from mlx_itune.dataset.checking.chunk import Words, split_words
from mlx_itune.dataset.checking.minhash import MIN_WORDS
from mlx_itune.dataset.checking.screening import TURN
from mlx_itune.dataset.conversation import Conversation

CHUNK_ROWS = 256
CHUNK_CHARS = 1 << 18
# glibc gives freed memory above a threshold back to the system at once, and numpy's scratch
# arrays would be faulted in page by page for every chunk. Freeing one big block raises it.
_SCRATCH_BYTES = 16 << 20


@dataclass(frozen=True, eq=False)
class Chunk:
    """Rows with the hash of each whole text, their words, and what each system turn says.

    Words are those of all turns but the system's, which TURN stands between.
    """

    rows: Sequence[Conversation]
    exact: list[int]
    words: Words
    systems: list[str]


def keep_scratch() -> None:
    """Let the allocator keep what the chunks' arrays need."""
    block = bytearray(_SCRATCH_BYTES)
    del block


def chunks(rows: Iterable[Conversation]) -> Iterator[Chunk]:
    """The rows in chunks of a few hundred, none much larger than a few hundred kilobytes."""
    held: list[Conversation] = []
    size = 0
    for row in rows:
        held.append(row)
        size += len(row.turns[-1].content)
        if len(held) >= CHUNK_ROWS or size >= CHUNK_CHARS:
            yield gather(held)
            held, size = [], 0
    if held:
        yield gather(held)


def gather(rows: Sequence[Conversation]) -> Chunk:
    """One chunk of these rows."""
    texts: list[str] = []
    exact: list[int] = []
    systems: list[str] = []
    for row in rows:
        turns = row.turns
        system = ""
        if turns[0].role == "system":
            system, turns = turns[0].content, turns[1:]
        said = [turn.content for turn in turns]
        calls = [turn.tool_calls for turn in turns if turn.tool_calls]
        text = TURN.join(said)
        if calls or row.tools:
            exact.append(hash((system, text, _json(calls), _json(row.tools))))
            # What is called tells rows apart whose texts are the same or empty.
            text = TURN.join([*said, *map(_json, calls)])
        else:
            exact.append(hash((system, text)))
        texts.append(text)
        systems.append(system)
    words = split_words([_utf8(text) for text in texts])
    for number in (words.counts < MIN_WORDS).nonzero()[0].tolist():
        # Too short to be nearly like another, so that spelling must not keep copies apart.
        plain = " ".join(texts[number].lower().split())
        exact[number] = hash((systems[number], plain))
    return Chunk(rows, exact, words, systems)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _json(value: object) -> str:
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    except TypeError:  # integers beyond 64 bits
        return repr(value)
