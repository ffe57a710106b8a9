"""Exemplars for few-shot prompts: a bounded pool of training rows, and a token budget."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator, Sequence

from mlx_itune.dataset.templating.choose import stream
from mlx_itune.dataset.templating.rows import Values

# Enough rows that a prompt seldom meets the same exemplar twice, few enough to stay in memory.
_POOL_ROWS = 10_000
_POOL_CHARS = 32_000_000
# A row with more characters than this per token of the budget is never an exemplar.
_CHARS_PER_TOKEN = 16

# How many tokens each text has.
Measure = Callable[[Sequence[str]], Sequence[int]]


class ExemplarPool:
    """Rows of the training split that prompts may show, a seeded sample once there are many.

    Which rows it holds depends on the rows, not on their order: those with the smallest hashes.
    Rows that differ only in case and spacing count as one.
    """

    def __init__(
        self,
        seed: int,
        task: str,
        budget_tokens: int,
        *,
        max_rows: int = _POOL_ROWS,
        max_chars: int = _POOL_CHARS,
    ) -> None:
        self._key = hashlib.blake2b(f"{seed} {task} pool".encode(), digest_size=32).digest()
        self._longest = budget_tokens * _CHARS_PER_TOKEN
        self._max_rows = max_rows
        self._max_chars = max_chars
        # Largest hash first, so that the row to give up is always at hand.
        self._heap: list[tuple[int, int]] = []
        self._rows: dict[int, tuple[bytes, Values]] = {}
        self._chars = 0
        self._limit = 2**128
        self._order: list[tuple[int, Values]] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, values: Values) -> int:
        """The hash by which the pool knows a row; rows of one likeness share it."""
        digest = hashlib.blake2b(values.likeness(), digest_size=16, key=self._key).digest()
        return int.from_bytes(digest, "big")

    def add(self, values: Values) -> None:
        """Offer a row of the training split."""
        size = values.size()
        name = self.name(values)
        if size > self._longest or name >= self._limit:
            return
        content = values.content()
        there = self._rows.get(name)
        if there is not None:
            # Of equal rows in several spellings, one that no order of reading can change.
            if content < there[0]:
                self._chars += size - there[1].size()
                self._rows[name] = (content, values)
        else:
            self._rows[name] = (content, values)
            heapq.heappush(self._heap, (-name, name))
            self._chars += size
        while len(self._rows) > self._max_rows or self._chars > self._max_chars:
            # Whatever hashes higher than a row that had to go stays out for good.
            self._limit = heapq.heappop(self._heap)[1]
            self._chars -= self._rows.pop(self._limit)[1].size()
        self._order = None

    def remove(self, values: Values) -> None:
        """Keep out a row of another split, however it is spelled; to be called after any `add`."""
        if self._rows.pop(self.name(values), None) is not None:
            self._order = None

    def candidates(self, values: Values, number: int) -> Iterator[Values]:
        """Rows other than `values`, each once, in an order that is a function of `number`."""
        if self._order is None:
            self._order = [(name, self._rows[name][1]) for name in sorted(self._rows)]
        if not self._order:
            return
        own = self.name(values)
        tried: set[int] = set()
        numbers = stream(number)
        # In a small pool random indices repeat more and more: then the rest in turn.
        for _ in range(2 * min(len(self._order), 64)):
            tried_now = next(numbers) % len(self._order)
            if tried_now not in tried:
                tried.add(tried_now)
                name, candidate = self._order[tried_now]
                if name != own:
                    yield candidate
        start = next(numbers)
        for step in range(len(self._order)):
            index = (start + step) % len(self._order)
            if index not in tried and self._order[index][0] != own:
                yield self._order[index][1]


class FewShot:
    """One prompt while exemplars are taken out of it until it fits."""

    def __init__(self, exemplars: list[str], separator: str, query: str) -> None:
        self.exemplars = exemplars
        self._separator = separator
        self._query = query

    def text(self) -> str:
        """The prompt with the exemplars it has now."""
        return self._separator.join([*self.exemplars, self._query])

    def drop_longest(self) -> None:
        """Take out the exemplar that frees the most room."""
        longest = max(range(len(self.exemplars)), key=lambda n: len(self.exemplars[n]))
        del self.exemplars[longest]


def fit(prompts: Sequence[FewShot], budget_tokens: int, measure: Measure) -> None:
    """Take exemplars out of each prompt until it has at most `budget_tokens`, or none is left."""
    over = [prompt for prompt in prompts if prompt.exemplars]
    while over:
        counts = measure([prompt.text() for prompt in over])
        over = [p for p, count in zip(over, counts, strict=True) if count > budget_tokens]
        for prompt in over:
            prompt.drop_longest()
        over = [prompt for prompt in over if prompt.exemplars]
