"""What a data set is made of, counted in one pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import tee

import numpy as np

from mlx_itune.dataset.conversation import ROLES, Conversation, Fault, place_of
from mlx_itune.dataset.rendering.render import Learn, render_many
from mlx_itune.dataset.statistics.counters import (
    Distribution,
    NameCounts,
    Ranking,
    clipped,
    distribution,
    main_script,
)
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.kit.errors import DataError

# Tags that name where a row comes from, and what it asks for; the first one present counts.
SOURCE_TAGS = ("source", "dataset", "task_source")
TASK_TAGS = ("task", "task_name", "category", "task_type", "topic")
NO_TAG = "(none)"

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
_FAULTS_KEPT = 20
_REFUSED_KEPT = 5
_MOST_TAGS = 32
_SYSTEM_CHARS = 200


@dataclass(frozen=True)
class RoleStats:
    """The turns of one role: how many, and their lengths."""

    turns: int
    share: float
    characters: Distribution
    words: Distribution


@dataclass(frozen=True)
class SplitStats:
    """One split or file: accepted rows, turns and, with a tokenizer, its tokens."""

    rows: int
    turns: int
    tokens: int | None
    supervised_tokens: int | None


@dataclass(frozen=True)
class ToolStats:
    """Rows that offer tools, rows that call them, the calls and the functions called."""

    rows_offering: int
    rows_calling: int
    calls: int
    functions: Ranking


@dataclass(frozen=True)
class SystemStats:
    """Rows with a system turn, and the texts of those turns."""

    rows: int
    prompts: Ranking


@dataclass(frozen=True)
class WeightStats:
    """Assistant turns with a weight of their own, by value, and rows where all of them are 0."""

    turns: int
    values: Mapping[str, int]
    rows_all_zero: int


@dataclass(frozen=True)
class LimitStats:
    """What --max-length would meet: rows over it, and the share of all tokens beyond it."""

    tokens: int
    rows_over: int
    tokens_beyond_share: float


@dataclass(frozen=True)
class TokenStats:
    """Token counts of rows and of examples (some templates give a row several). `over` counts rows
    by the length that their longest example exceeds, `padding` is that of random batches by their
    size (cut to the limit, if any), `share_percent` each row's learned share."""

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


@dataclass(frozen=True)
class Stats:
    """All that `count` found. Groups (`sources`, `tasks`) rank by rows, then hold characters,
    tokens and learned tokens; `tags` holds every other tag by name."""

    rows: int
    rejected: int
    faults: tuple[str, ...]
    splits: Mapping[str, SplitStats]
    turns: Distribution
    roles: Mapping[str, RoleStats]
    sources: Ranking
    tasks: Ranking
    tags: Mapping[str, Ranking]
    scripts: Mapping[str, int]
    tools: ToolStats
    system: SystemStats
    weights: WeightStats
    tokens: TokenStats | None


def count(
    files: Iterable[tuple[str, Iterable[Conversation | Fault]]],
    *,
    tokenizer: ChatTokenizer | None = None,
    learn: Learn = "all",
    max_length_tokens: int | None = None,
) -> Stats | None:
    """Statistics of (split name, rows) pairs; None if not one row was accepted. With a tokenizer
    rows are tokenized as for training, before anything is cut to a length."""
    counts = _Counts()
    tokens = _TokenCounts(tokenizer, learn, max_length_tokens) if tokenizer else None
    for split, rows in files:
        accepted = counts.accepted(rows)
        for row, *sizes in tokens.counted(accepted) if tokens else ((row,) for row in accepted):
            counts.add(split, row, sizes)
    return counts.stats(tokens.stats() if tokens else None) if counts.rows else None


class _Counts:
    def __init__(self) -> None:
        self.rows = self._rejected = self._offering = self._calling = self._all_zero = 0
        self._faults: list[str] = []
        self._splits: dict[str, list[int]] = {}
        self._turns: Counter[int] = Counter()
        self._characters: dict[str, Counter[int]] = {role: Counter() for role in ROLES}
        self._words: dict[str, Counter[int]] = {role: Counter() for role in ROLES}
        self._sources, self._tasks = NameCounts(4), NameCounts(4)
        self._tags: dict[str, NameCounts] = {}
        self._scripts: Counter[str] = Counter()
        self._functions, self._system, self._weights = NameCounts(), NameCounts(), NameCounts()

    def accepted(self, rows: Iterable[Conversation | Fault]) -> Iterator[Conversation]:
        """The conversations among `rows`; broken rows are counted, each once."""
        broken = ""
        for row in rows:
            if isinstance(row, Conversation):
                yield row
            elif row.severity == "error":
                self._rejected += row.where != broken
                broken = row.where
                if len(self._faults) < _FAULTS_KEPT:
                    self._faults.append(str(row))

    def add(self, split: str, row: Conversation, tokens: Sequence[int]) -> None:
        """Count one row of so many tokens and learned tokens (none without a tokenizer)."""
        self.rows += 1
        self._turns[len(row.turns)] += 1
        for turn in row.turns:
            self._characters[turn.role][len(turn.content)] += 1
            self._words[turn.role][len(turn.content.split())] += 1
        sums = self._splits.setdefault(split, [0, 0, 0, 0])
        for n, amount in enumerate((1, len(row.turns), *tokens)):
            sums[n] += amount
        self._scripts[main_script(turn.content for turn in row.turns)] += 1
        amounts = (1, sum(len(turn.content) for turn in row.turns), *tokens)
        self._sources.add(_first_tag(row.tags, SOURCE_TAGS), amounts)
        self._tasks.add(_first_tag(row.tags, TASK_TAGS), amounts)
        for name, value in row.tags.items():
            if name == "origin" and place_of(value)[1]:
                continue  # each row of a data folder has its own
            if name in self._tags or len(self._tags) < _MOST_TAGS:
                self._tags.setdefault(name, NameCounts()).add(clipped(value))
        if row.turns[0].role == "system":
            self._system.add(clipped(row.turns[0].content, _SYSTEM_CHARS))
        self._offering += bool(row.tools)
        calls = [call for turn in row.turns for call in turn.tool_calls]
        self._calling += bool(calls)
        for call in calls:
            self._functions.add(clipped(str(call["function"]["name"])))
        weights = [turn.weight for turn in row.turns if turn.role == "assistant"]
        for weight in weights:
            if weight is not None:
                self._weights.add(f"{weight:g}")
        self._all_zero += bool(weights) and not any(weight != 0 for weight in weights)

    def stats(self, tokens: TokenStats | None) -> Stats:
        turns = distribution(self._turns)
        functions, system = self._functions.ranking(), self._system.ranking(10)
        weights = self._weights.ranking(12)
        values = {item.name: item.amounts[0] for item in weights.top}
        return Stats(
            rows=self.rows,
            rejected=self._rejected,
            faults=tuple(self._faults),
            splits={
                name: SplitStats(rows, count, *((total, learned) if tokens else (None, None)))
                for name, (rows, count, total, learned) in self._splits.items()
            },
            turns=turns,
            roles={
                role: RoleStats(
                    self._words[role].total(),
                    self._words[role].total() / turns.sum,
                    distribution(self._characters[role]),
                    distribution(self._words[role]),
                )
                for role in ROLES
                if self._words[role]
            },
            sources=self._sources.ranking(),
            tasks=self._tasks.ranking(),
            tags={name: counts.ranking(10) for name, counts in sorted(self._tags.items())},
            scripts=dict(self._scripts.most_common()),
            tools=ToolStats(self._offering, self._calling, functions.total, functions),
            system=SystemStats(system.total, system),
            weights=WeightStats(weights.total, values, self._all_zero),
            tokens=tokens,
        )


def _first_tag(tags: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((clipped(tags[name]) for name in names if name in tags), NO_TAG)


class _TokenCounts:
    """Renders rows and keeps their lengths."""

    def __init__(self, tokenizer: ChatTokenizer, learn: Learn, limit: int | None) -> None:
        self._tokenizer, self._learn, self._limit = tokenizer, learn, limit
        self._rows: Counter[int] = Counter()
        self._examples: Counter[int] = Counter()
        self._supervised: Counter[int] = Counter()
        self._share: Counter[int] = Counter()
        self._longest: Counter[int] = Counter()
        self._control_text = self._nothing = 0
        self._refused: list[str] = []

    def counted(self, rows: Iterable[Conversation]) -> Iterator[tuple[Conversation, int, int]]:
        """Each row with its tokens and learned tokens; zeros where nothing would be trained."""
        rows, to_render = tee(rows)
        rendered = render_many(to_render, self._tokenizer, self._learn)
        for row, examples in zip(rows, rendered, strict=True):
            self._control_text += any(map(self._tokenizer.control_text.spelled_by, row.turns))
            if isinstance(examples, DataError):
                self._refused.append(str(examples))
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
                f"no row can be trained on: the chat template refuses {len(self._refused):,}, "
                f"{self._nothing:,} have nothing to learn",
                hint=self._refused[0] if self._refused else "try --learn all",
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
            refused_rows=len(self._refused),
            refused=tuple(self._refused[:_REFUSED_KEPT]),
        )

    def _over(self, length: int) -> int:
        return sum(rows for longest, rows in self._longest.items() if longest > length)


def padding_shares(lengths: Counter[int], limit: int | None) -> dict[str, float]:
    """The expected share of padding in random batches of each size. The longest of n draws exceeds
    v unless all n do not, so its mean follows from the distribution."""
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
