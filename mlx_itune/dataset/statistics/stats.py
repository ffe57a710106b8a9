"""What a data set is made of, gathered in one pass and in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from mlx_itune.dataset.conversation import ROLES, Conversation, Turn
from mlx_itune.dataset.faults import Fault
from mlx_itune.dataset.rendering.render import Learn
from mlx_itune.dataset.statistics.script import main_script
from mlx_itune.dataset.statistics.tallies import Distribution, NameCounter, Ranking, Tally, clipped
from mlx_itune.dataset.statistics.token_stats import TokenGatherer, TokenStats
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer

# Tags that name where a row comes from, and what it asks for; the first one present counts.
SOURCE_TAGS = ("source", "dataset", "task_source", "origin")
TASK_TAGS = ("task", "task_name", "category", "task_type", "topic")
NO_TAG = "(none)"

_ROWS_PER_CHUNK = 256
_FAULTS_KEPT = 20
_MOST_TAGS = 32
_TAG_CHARS = 120
_SYSTEM_CHARS = 200

# What is summed per source and task: rows, characters, tokens, learned tokens.
GROUP_AMOUNTS = ("rows", "characters", "tokens", "supervised_tokens")


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
    """All that `gather` found. Groups (`sources`, `tasks`) rank by rows, then hold
    characters, tokens and learned tokens; `tags` holds every other tag by name."""

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


def gather(
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
    gatherer = _Gatherer()
    tokens = TokenGatherer(tokenizer, learn, max_length_tokens) if tokenizer else None
    for split, rows in files:
        accepted = gatherer.accepted(rows)
        while chunk := list(islice(accepted, _ROWS_PER_CHUNK)):
            counts = tokens.add(chunk) if tokens else [(0, 0)] * len(chunk)
            for row, (total, learned) in zip(chunk, counts, strict=True):
                gatherer.add(split, row, total, learned)
            gatherer.flush()
    return gatherer.stats(tokens.stats() if tokens else None) if gatherer.rows else None


class _Gatherer:
    def __init__(self) -> None:
        self.rows = 0
        self._faults: list[str] = []
        self._broken: tuple[str, int] = ("", 0)
        self._rejected = 0
        self._splits: dict[str, list[int]] = {}
        self._turns = Tally()
        self._characters = {role: Tally() for role in ROLES}
        self._words = {role: Tally() for role in ROLES}
        # Lengths of the rows since the last flush.
        self._new_characters: dict[str, list[int]] = {role: [] for role in ROLES}
        self._new_words: dict[str, list[int]] = {role: [] for role in ROLES}
        self._sources = NameCounter(len(GROUP_AMOUNTS))
        self._tasks = NameCounter(len(GROUP_AMOUNTS))
        self._tags: dict[str, NameCounter] = {}
        self._scripts: Counter[str] = Counter()
        self._offering = self._calling = self._calls = 0
        self._functions = NameCounter()
        self._system_rows = 0
        self._system = NameCounter(most=1_000)
        self._weighted = self._all_zero = 0
        self._weights = NameCounter(most=200)

    def accepted(self, rows: Iterable[Conversation | Fault]) -> Iterator[Conversation]:
        """The conversations among `rows`; broken rows are counted, each once."""
        for row in rows:
            if isinstance(row, Conversation):
                yield row
            elif row.severity == "error":
                place = (row.file, row.line)
                self._rejected += place != self._broken
                self._broken = place
                if len(self._faults) < _FAULTS_KEPT:
                    self._faults.append(str(row))

    def add(self, split: str, row: Conversation, tokens: int, learned: int) -> None:
        self.rows += 1
        self._turns.add(len(row.turns))
        characters = 0
        for turn in row.turns:
            length = len(turn.content)
            characters += length
            self._new_characters[turn.role].append(length)
            self._new_words[turn.role].append(len(turn.content.split()))
        sums = self._splits.setdefault(split, [0, 0, 0, 0])
        for n, amount in enumerate((1, len(row.turns), tokens, learned)):
            sums[n] += amount
        self._scripts[main_script(turn.content for turn in row.turns)] += 1
        amounts = (1, characters, tokens, learned)
        self._sources.add(_first_tag(row.tags, SOURCE_TAGS), amounts)
        self._tasks.add(_first_tag(row.tags, TASK_TAGS), amounts)
        for name, value in row.tags.items():
            if name in self._tags or len(self._tags) < _MOST_TAGS:
                self._tags.setdefault(name, NameCounter()).add(clipped(value, _TAG_CHARS))
        self._add_tools(row)
        self._add_weights([turn for turn in row.turns if turn.role == "assistant"])
        if row.turns[0].role == "system":
            self._system_rows += 1
            self._system.add(clipped(row.turns[0].content, _SYSTEM_CHARS))

    def flush(self) -> None:
        """Take in the lengths of the rows since the last time."""
        for role in ROLES:
            self._characters[role].extend(self._new_characters[role])
            self._words[role].extend(self._new_words[role])
            self._new_characters[role].clear()
            self._new_words[role].clear()

    def _add_tools(self, row: Conversation) -> None:
        self._offering += bool(row.tools)
        calls = [call for turn in row.turns for call in turn.tool_calls]
        self._calling += bool(calls)
        self._calls += len(calls)
        for call in calls:
            function = call.get("function", call)
            name = function.get("name") if isinstance(function, Mapping) else None
            self._functions.add(clipped(str(name), _TAG_CHARS))

    def _add_weights(self, replies: list[Turn]) -> None:
        weights = [turn.weight for turn in replies if turn.weight is not None]
        self._weighted += len(weights)
        for weight in weights:
            self._weights.add(f"{weight:g}")
        self._all_zero += bool(replies) and weights.count(0) == len(replies)

    def stats(self, tokens: TokenStats | None) -> Stats:
        turns = self._turns.distribution()
        assert turns is not None, "called for at least one row"
        return Stats(
            rows=self.rows,
            rejected=self._rejected,
            faults=tuple(self._faults),
            splits={
                name: SplitStats(rows, count, *((total, learned) if tokens else (None, None)))
                for name, (rows, count, total, learned) in self._splits.items()
            },
            turns=turns,
            roles=dict(self._role_stats()),
            sources=self._sources.ranking(),
            tasks=self._tasks.ranking(),
            tags={name: counter.ranking(10) for name, counter in sorted(self._tags.items())},
            scripts=dict(self._scripts.most_common()),
            tools=ToolStats(self._offering, self._calling, self._calls, self._functions.ranking()),
            system=SystemStats(self._system_rows, self._system.ranking(10)),
            weights=WeightStats(
                self._weighted,
                {item.name: item.amounts[0] for item in self._weights.ranking(12).top},
                self._all_zero,
            ),
            tokens=tokens,
        )

    def _role_stats(self) -> Iterator[tuple[str, RoleStats]]:
        for role in ROLES:
            characters = self._characters[role].distribution()
            words = self._words[role].distribution()
            if characters and words:
                share = characters.count / self._turns.sum
                yield role, RoleStats(characters.count, share, characters, words)


def _first_tag(tags: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((clipped(tags[name], _TAG_CHARS) for name in names if name in tags), NO_TAG)
