"""Token lengths of rows as training would see them, before anything is cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import tee

import numpy as np

from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.rendering.render import Learn, render_many
from mlx_itune.dataset.statistics.counters import Distribution, distribution
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.kit.errors import DataError

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
_REFUSED_KEPT = 5


@dataclass(frozen=True)
class LimitStats:
    """What --max-length would meet: rows over it, and the share of all tokens beyond it."""

    tokens: int
    rows_over: int
    tokens_beyond_share: float


@dataclass(frozen=True)
class TokenStats:
    """Token counts of rows and of examples (some templates give a row several).

    `over` counts rows whose longest example has more tokens than the key; `padding` is the share
    of padding if random batches of the key's size were padded to their longest example (cut to the
    limit, where there is one); `share_percent` spreads each row's learned share.
    """

    template: str
    learn: str
    total: int
    supervised: int
    supervised_share: float
    examples: int
    per_row: Distribution
    per_example: Distribution
    supervised_per_row: Distribution
    share_percent: Distribution
    over: Mapping[str, int]
    limit: LimitStats | None
    padding: Mapping[str, float]
    control_text_rows: int
    nothing_to_learn_rows: int
    refused_rows: int
    refused: tuple[str, ...]


class TokenCounts:
    """Renders rows and keeps their lengths: `counted` them, then `stats`."""

    def __init__(self, tokenizer: ChatTokenizer, learn: Learn, limit: int | None) -> None:
        self._tokenizer, self._learn, self._limit = tokenizer, learn, limit
        self._rows: Counter[int] = Counter()
        self._examples: Counter[int] = Counter()
        self._supervised: Counter[int] = Counter()
        self._share: Counter[int] = Counter()
        self._longest: Counter[int] = Counter()
        self._control_text = self._nothing = self._refused = 0
        self._refused_kept: list[str] = []

    def counted(self, rows: Iterable[Conversation]) -> Iterator[tuple[Conversation, int, int]]:
        """Each row with its tokens and learned tokens; zeros where nothing would be trained."""
        rows, to_render = tee(rows)
        rendered = render_many(to_render, self._tokenizer, self._learn)
        for row, examples in zip(rows, rendered, strict=True):
            self._control_text += any(map(self._tokenizer.spells_control, row.turns))
            if isinstance(examples, DataError):
                self._refused += 1
                if len(self._refused_kept) < _REFUSED_KEPT:
                    self._refused_kept.append(str(examples))
                yield row, 0, 0
                continue
            lengths = [len(example.input_ids) for example in examples]
            total = sum(lengths)
            learned = sum(int(np.count_nonzero(example.weights)) for example in examples)
            if not learned:
                self._nothing += 1
                yield row, 0, 0
                continue
            self._rows[total] += 1
            self._examples.update(lengths)
            self._supervised[learned] += 1
            self._share[round(100 * learned / total)] += 1
            self._longest[max(lengths)] += 1
            yield row, total, learned

    def stats(self) -> TokenStats:
        """All of it. Raises DataError if not one row could be trained on."""
        if not self._rows:
            raise DataError(
                f"no row can be trained on: the chat template refuses {self._refused:,}, "
                f"{self._nothing:,} have nothing to learn",
                hint=self._refused_kept[0] if self._refused_kept else "try --learn all",
            )
        per_row, supervised = distribution(self._rows), distribution(self._supervised)
        limit = None
        if most := self._limit:
            beyond = sum(n * max(0, size - most) for size, n in self._examples.items())
            limit = LimitStats(most, self._over(most), beyond / per_row.sum)
        return TokenStats(
            template=self._tokenizer.name,
            learn=self._learn,
            total=per_row.sum,
            supervised=supervised.sum,
            supervised_share=supervised.sum / per_row.sum,
            examples=self._examples.total(),
            per_row=per_row,
            per_example=distribution(self._examples),
            supervised_per_row=supervised,
            share_percent=distribution(self._share),
            over={str(length): self._over(length) for length in LENGTHS},
            limit=limit,
            padding=padding_shares(self._examples, self._limit),
            control_text_rows=self._control_text,
            nothing_to_learn_rows=self._nothing,
            refused_rows=self._refused,
            refused=tuple(self._refused_kept),
        )

    def _over(self, length: int) -> int:
        return sum(rows for longest, rows in self._longest.items() if longest > length)


def padding_shares(lengths: Counter[int], limit: int | None) -> dict[str, float]:
    """The expected share of padding in random batches of each size.

    The longest of n draws exceeds v unless all n do not: its mean follows from the distribution
    alone, and the padding is what that mean exceeds the mean length by.
    """
    columns = zip(*sorted(lengths.items()), strict=True)
    values, counts = (np.array(column, float) for column in columns)
    values = np.minimum(values, limit or np.inf)
    at_most = np.cumsum(counts) / counts.sum()
    mean = float(values @ counts / counts.sum())
    shares = {}
    for size in BATCH_SIZES:
        chance = np.diff(at_most**size, prepend=0.0)
        shares[str(size)] = max(0.0, 1 - mean / float(values @ chance))
    return shares
