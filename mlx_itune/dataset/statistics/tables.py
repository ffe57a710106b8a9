"""Statistics as facts and tables: what the terminal prints and what the page shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mlx_itune.dataset.statistics.counters import Distribution, Ranking
from mlx_itune.dataset.statistics.stats import NO_TAG, Stats
from mlx_itune.kit.wording import count, percent

QUANTILES = ("min", "p5", "p50", "p90", "p95", "p99", "max")


@dataclass(frozen=True)
class Table:
    """Rows of texts under `columns`, the first of them a name. `shares`: one per row, for a bar.
    `wordy`: columns that are text and not numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    shares: Sequence[float] = ()
    note: str = ""
    wordy: frozenset[int] = frozenset()


def facts(stats: Stats) -> Iterator[tuple[str, str]]:
    """The headline numbers, as (name, value)."""
    yield "rows", f"{stats.rows:,}"
    yield "turns", f"{stats.turns.sum:,}"
    if stats.rejected:
        yield "broken rows", f"{stats.rejected:,} (left out here)"
    if tokens := stats.tokens:
        yield "tokens", f"{tokens.total:,} (template {tokens.template})"
        yield "learned tokens", f"{tokens.supervised:,} ({percent(tokens.supervised_share)})"
        yield "median tokens per row", f"{tokens.per_row.p50:,}"
        if limit := tokens.limit:
            over = f"{count(limit.rows_over, 'row')}, {percent(limit.tokens_beyond_share)}"
            yield f"beyond {limit.tokens:,} tokens", f"{over} of all tokens"
        for name, rows in (
            ("control text", tokens.control_text_rows),
            ("nothing to learn", tokens.nothing_to_learn_rows),
            ("refused by the template", tokens.refused_rows),
        ):
            if rows:
                yield name, count(rows, "row")
    if stats.system.rows:
        texts = f"{_distinct(stats.system.prompts)} texts"
        yield "system prompts", f"{texts} in {count(stats.system.rows, 'row')}"
    tools = stats.tools
    if tools.rows_offering or tools.calls:
        calls = f"{count(tools.calls, 'call')} in {count(tools.rows_calling, 'row')}"
        yield "tools", f"offered in {count(tools.rows_offering, 'row')}, {calls}"
    if stats.weights.turns:
        yield "turns with a weight", f"{stats.weights.turns:,}"
    if stats.weights.rows_all_zero:
        yield "all turns of weight 0", count(stats.weights.rows_all_zero, "row")


def distributions(stats: Stats) -> Iterator[tuple[str, Distribution]]:
    """Every distribution under its name."""
    if tokens := stats.tokens:
        yield "tokens per row", tokens.per_row
        if tokens.examples != tokens.per_row.count:
            yield "tokens per example", tokens.per_example
        yield "learned tokens per row", tokens.supervised_per_row
        yield "learned share of a row, %", tokens.share_percent
    yield "turns per conversation", stats.turns
    for role, found in stats.roles.items():
        yield f"characters per {role} turn", found.characters
        yield f"words per {role} turn", found.words


def tables(stats: Stats) -> Iterator[Table]:
    """The tables, those without a row left out."""
    return (table for table in _tables(stats) if table.rows)


def _tables(stats: Stats) -> Iterator[Table]:
    tokens = stats.tokens
    yield _splits(stats)
    yield Table(
        "Lengths",
        ("length", "count", "mean", *QUANTILES),
        [
            [name, f"{found.count:,}", f"{found.mean:,.1f}"]
            + [f"{getattr(found, key):,}" for key in QUANTILES]
            for name, found in distributions(stats)
        ],
        note="Tokens are those of rows as they are trained on, before anything is cut to a length. "
        "p50 is the median. Words are runs of characters between spaces.",
    )
    if tokens:
        over = {int(length): rows for length, rows in tokens.over.items() if rows}
        if tokens.limit:
            over[tokens.limit.tokens] = tokens.limit.rows_over
        longer = [(f"over {length:,} tokens", rows) for length, rows in sorted(over.items())]
        yield _counted("Long rows", ("length", "rows"), longer, tokens.per_row.count)
        yield Table(
            "Padding",
            ("rows in a batch", *tokens.padding),
            [["padding", *map(percent, tokens.padding.values())]],
            note="Of random batches, each padded to its longest row; an estimate from the lengths.",
        )
    roles = [(role, found.turns) for role, found in stats.roles.items()]
    yield _counted("Roles", ("role", "turns"), roles, stats.turns.sum)
    yield _group("Sources", "source", stats.sources, stats)
    yield _group("Tasks", "task", stats.tasks, stats)
    yield _counted("Writing", ("writing system", "rows"), stats.scripts.items(), stats.rows)
    tools = _amounts(stats.tools.functions)
    yield _counted("Tool calls", ("function", "calls"), tools, stats.tools.calls)
    weights = stats.weights.values.items()
    yield _counted("Turn weights", ("weight", "assistant turns"), weights, stats.weights.turns)
    prompts = _amounts(stats.system.prompts)
    yield _counted("System prompts", ("system prompt", "rows"), prompts, stats.rows)
    yield _tags(stats.tags)


def _splits(stats: Stats) -> Table:
    columns = ["split or file", "rows", "turns"]
    rows = [[name, f"{s.rows:,}", f"{s.turns:,}"] for name, s in stats.splits.items()]
    if stats.tokens:
        columns += ["tokens", "learned tokens"]
        for row, split in zip(rows, stats.splits.values(), strict=True):
            row += [f"{split.tokens:,}", f"{split.supervised_tokens:,}"]
    return Table("Splits", columns, rows)


def _counted(
    title: str,
    columns: tuple[str, str],
    counts: Iterable[tuple[str, int]],
    total: int,
) -> Table:
    listed = list(counts)
    shares = [amount / total for _, amount in listed]
    rows = [
        [name, f"{amount:,}", percent(share)]
        for (name, amount), share in zip(listed, shares, strict=True)
    ]
    return Table(title, (*columns, f"of {columns[1]}"), rows, shares)


def _amounts(ranking: Ranking) -> list[tuple[str, int]]:
    named = [(item.name, item.amounts[0]) for item in ranking.top]
    return [*named, ("all others", ranking.other[0])] if ranking.other[0] else named


def _group(title: str, name: str, ranking: Ranking, stats: Stats) -> Table:
    if [item.name for item in ranking.top] == [NO_TAG]:
        return Table(title, (), ())
    columns = [name, "rows", "of rows", "characters"]
    totals = []
    if tokens := stats.tokens:
        columns += ["tokens", "of tokens", "learned tokens", "of learned"]
        totals = [tokens.total, tokens.supervised]
    entries = [(item.name, item.amounts) for item in ranking.top]
    if ranking.other[0]:
        entries.append(("all others", ranking.other))
    rows = []
    for label, (row_count, characters, *counts) in entries:
        row = [label, f"{row_count:,}", percent(row_count / stats.rows), f"{characters:,}"]
        for amount, total in zip(counts, totals, strict=False):
            row += [f"{amount:,}", percent(amount / total)]
        rows.append(row)
    return Table(title, columns, rows, [amounts[0] / stats.rows for _, amounts in entries])


def _tags(tags: Mapping[str, Ranking]) -> Table:
    rows = [
        [
            name,
            _distinct(ranking),
            ", ".join(f"{item.name} ({item.amounts[0]:,})" for item in ranking.top[:3])
            if ranking.top[0].amounts[0] > 1
            else "each value once",
        ]
        for name, ranking in tags.items()
    ]
    columns = ("field", "different values", "most frequent")
    return Table("Other fields", columns, rows, wordy=frozenset({2}))


def _distinct(ranking: Ranking) -> str:
    return f"{ranking.distinct:,}" if ranking.exact else f"over {ranking.distinct:,}"
