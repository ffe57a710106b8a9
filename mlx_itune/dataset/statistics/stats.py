"""What a data set is made of, counted in one pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mlx_itune.dataset.conversation import ROLES, Conversation
from mlx_itune.dataset.faults import Fault, place_of
from mlx_itune.dataset.rendering.render import Learn
from mlx_itune.dataset.statistics.counters import (
    Distribution,
    NameCounts,
    Ranking,
    clipped,
    distribution,
)
from mlx_itune.dataset.statistics.script import main_script
from mlx_itune.dataset.statistics.token_stats import TokenCounts, TokenStats
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer

# Tags that name where a row comes from, and what it asks for; the first one present counts.
SOURCE_TAGS = ("source", "dataset", "task_source")
TASK_TAGS = ("task", "task_name", "category", "task_type", "topic")
NO_TAG = "(none)"

_FAULTS_KEPT = 20
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
    """Statistics of (split name, rows) pairs; None if not one row was accepted.

    Broken rows are counted, the first few kept. With a tokenizer every row is rendered and
    tokenized as for training, before anything is cut to a length.
    """
    counts = _Counts()
    tokens = TokenCounts(tokenizer, learn, max_length_tokens) if tokenizer else None
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
