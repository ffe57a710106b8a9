"""Exemplars for few-shot prompts: a bounded pool of training rows, and a token budget."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from math import gcd

from mlx_itune.dataset.templating.rows import Example, Values

# Enough rows that a prompt seldom meets the same exemplar twice, few enough to stay in memory.
_POOL_ROWS = 10_000
# A row with more characters than this per token of the budget is never an exemplar.
_CHARS_PER_TOKEN = 16

# How many tokens each text has.
Measure = Callable[[Sequence[str]], Sequence[int]]


class ExemplarPool:
    """Rows of the training split that prompts may show, a seeded sample once there are many.

    Which rows it holds depends on the rows, not on their order: those with the smallest hashes.
    Rows that differ only in case and spacing count as one.
    """

    def __init__(self, seed: int, task: str, budget_tokens: int, most: int = _POOL_ROWS) -> None:
        self._key = hashlib.blake2b(f"{seed} {task} pool".encode(), digest_size=32).digest()
        self._longest = budget_tokens * _CHARS_PER_TOKEN
        self._most = most
        self._rows: dict[bytes, Values] = {}
        self._order: list[bytes] | None = None

    def add(self, values: Values) -> None:
        """Offer a row of the training split."""
        name = self._name(values)
        there = self._rows.get(name)
        # Of equal rows in several spellings, one that no order of reading can change.
        if values.size() <= self._longest and (there is None or values < there):
            self._rows[name] = values
            self._order = None
            if len(self._rows) > 2 * self._most:
                self._ordered()

    def remove(self, values: Values) -> None:
        """Keep out a row of another split, however it is spelled; to be called after any `add`."""
        self._rows.pop(self._name(values), None)
        self._order = None

    def candidates(self, values: Values, number: int) -> Iterator[Values]:
        """Rows other than `values`, each once, in an order that is a function of `number`."""
        order, own = self._ordered(), self._name(values)
        if not order:
            return
        rest, start = divmod(number, len(order))
        # A step without a common divisor meets every row once.
        step = next(
            s
            for s in range(rest % len(order) + 1, rest % len(order) + 1 + len(order))
            if gcd(s, len(order)) == 1
        )
        for turn in range(len(order)):
            name = order[(start + turn * step) % len(order)]
            if name != own:
                yield self._rows[name]

    def _name(self, values: Values) -> bytes:
        return hashlib.blake2b(values.likeness(), digest_size=16, key=self._key).digest()

    def _ordered(self) -> list[bytes]:
        if self._order is None:
            self._order = sorted(self._rows)[: self._most]
            self._rows = {name: self._rows[name] for name in self._order}
        return self._order


def fit(examples: Sequence[Example], budget_tokens: int, measure: Measure) -> None:
    """Take the longest exemplar out of each prompt until it has at most `budget_tokens`."""
    over = [example for example in examples if example.exemplars]
    while over:
        counts = measure([example.text for example in over])
        over = [e for e, count in zip(over, counts, strict=True) if count > budget_tokens]
        for example in over:
            example.exemplars.remove(max(example.exemplars, key=len))
        over = [example for example in over if example.exemplars]
