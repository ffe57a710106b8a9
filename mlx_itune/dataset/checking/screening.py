"""Which rows of a chunk a lint looks at: words and signs are found in numpy, the rest by regex."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mlx_itune.dataset.checking.chunk import U8, U32, Index, Words, split_words
from mlx_itune.dataset.checking.lints import Lint
from mlx_itune.dataset.conversation import Conversation

# Stands between the turns of a row's text; a lone control character that no word contains.
TURN = "\x1e"

_TURN_BYTE = np.uint8(ord(TURN))
_TABLE_SHIFT = np.uint32(16)


@dataclass(frozen=True)
class Find:
    """A lint's hit: the row in its chunk, the turn (from 0) and the text that was found."""

    row: int
    turn: int
    lint: Lint
    text: str


class _Lookup:
    """Words of interest -> the lints that name them."""

    def __init__(self) -> None:
        self.lints: dict[int, set[int]] = defaultdict(set)
        self._table = np.zeros(1 << 16, np.bool_)

    def add(self, word: str, lint: int) -> None:
        words = split_words([word.encode()])
        self.lints[int(words.keys[0])].add(lint)
        self._table[words.hashes >> _TABLE_SHIFT] = True

    def hits(self, hashes: U32) -> Index:
        """Positions of words that are, or look like, ones of interest."""
        # take() with the platform's own index type is twice as fast as other ways to look up.
        return np.flatnonzero(self._table.take((hashes >> _TABLE_SHIFT).astype(np.intp)))


class Screen:
    """A list of lints, made ready to look at many rows."""

    def __init__(self, lints: Sequence[Lint]) -> None:
        self.lints = tuple(lints)
        self.short_chars = max((x.max_chars for x in lints if x.max_chars is not None), default=-1)
        self._words, self._opens = _Lookup(), _Lookup()
        self._signs: dict[int, list[tuple[np.uint64, np.uint64, int]]] = defaultdict(list)
        self._always: list[int] = []
        self._short: list[int] = []
        for number, lint in enumerate(lints):
            self._index(number, lint)

    def _index(self, number: int, lint: Lint) -> None:
        for text in lint.texts:
            head = text.encode()[:8]
            mask = np.uint64((1 << 8 * len(head)) - 1)
            wanted = np.uint64(int.from_bytes(head, "little"))
            sign = (mask, wanted, number)
            if sign not in self._signs[head[0]]:
                self._signs[head[0]].append(sign)
        if lint.max_chars is not None:
            self._short.append(number)
            return
        for phrase in lint.phrases:
            runs = "".join(c if c.isalnum() else " " for c in phrase).split()
            if not runs:
                self._always.append(number)
                continue
            self._words.add(max(runs, key=len), number)
        if not (lint.pattern or lint.start):
            return
        for word in lint.words:
            self._words.add(word, number)
        for word in lint.opens:
            self._opens.add(word, number)
        if not (lint.words or lint.opens):
            self._always.append(number)

    def find(self, rows: Sequence[Conversation], words: Words) -> Iterator[Find]:
        """The first hit of each lint in each row, leaving system turns out.

        `words` are those of the rows' texts, in which turns are joined by TURN.
        """
        wanted: set[tuple[int, int]] = set()
        places, signs = self._sign_places(words.raw)
        turns = places[signs == _TURN_BYTE]
        self._by_word(words, turns, wanted)
        self._by_sign(words, places, signs, wanted)
        wanted.update((row, number) for row in range(len(rows)) for number in self._always)
        wanted.update((row, n) for row in self._with_short_turn(words, turns) for n in self._short)
        for row, number in sorted(wanted):
            lint = self.lints[number]
            for turn, said in enumerate(rows[row].turns):
                if said.role in lint.where and said.role != "system":
                    found = lint.find(said.role, said.content)
                    if found is not None:
                        yield Find(row, turn, lint, found)
                        break

    def find_in(self, role: str, text: str) -> Iterator[tuple[Lint, str]]:
        """Every lint that objects to one text, tried in full."""
        for lint in self.lints:
            found = lint.find(role, text)
            if found is not None:
                yield lint, found

    def _with_short_turn(self, words: Words, turns: Index) -> list[int]:
        """Rows with a turn of at most as many bytes as `short_chars` characters can have."""
        if not self._short:
            return []
        edges = np.concatenate([words.offsets, turns + 1])
        edges.sort()
        short = np.flatnonzero(np.diff(edges) <= 4 * self.short_chars + 1)
        rows = np.searchsorted(words.offsets, edges[short], side="right") - 1
        return [int(row) for row in np.unique(rows)]

    def _by_word(self, words: Words, turns: Index, wanted: set[tuple[int, int]]) -> None:
        places = self._words.hits(words.hashes)
        self._note(self._words, words, places, wanted)
        if self._opens.lints:
            first = np.concatenate([words.first[:-1], np.searchsorted(words.starts, turns)])
            first = first[first < len(words.keys)]
            places = first[self._opens.hits(words.hashes[first])]
            self._note(self._opens, words, places, wanted)

    def _note(
        self, lookup: _Lookup, words: Words, places: Index, wanted: set[tuple[int, int]]
    ) -> None:
        if not len(places):
            return
        rows = np.searchsorted(words.first, places, side="right") - 1
        for row, key in zip(rows.tolist(), words.keys[places].tolist(), strict=True):
            for number in lookup.lints.get(key, ()):
                wanted.add((row, number))

    def _sign_places(self, raw: U8) -> tuple[Index, U8]:
        """Where the signs stand that exact texts start with, or turns end with; and which."""
        found = raw == _TURN_BYTE
        for sign in self._signs:
            found |= raw == np.uint8(sign)
        places = np.flatnonzero(found)
        return places, raw[places]

    def _by_sign(
        self, words: Words, places: Index, signs: U8, wanted: set[tuple[int, int]]
    ) -> None:
        window = np.ndarray((len(words.raw) - 8,), np.dtype("<u8"), words.raw, strides=(1,))
        for sign, heads in self._signs.items():
            here = places[signs == np.uint8(sign)]
            ahead = window[here]
            for mask, head, number in heads if len(here) else ():
                hits = here[ahead & mask == head]
                if len(hits):
                    rows = np.searchsorted(words.offsets, hits, side="right") - 1
                    wanted.update((row, number) for row in rows.tolist())
