"""The page of ``data stats``: what a data set is made of, in plots and tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from mlx_itune.dataset.statistics.stats import NO_TAG, Stats
from mlx_itune.dataset.statistics.tallies import Distribution, Ranking
from mlx_itune.dataset.statistics.token_stats import TokenStats
from mlx_itune.kit.charts import bar_chart, histogram
from mlx_itune.kit.page import Html, cards, folded, grid, join, page, section, table

_ROLE_COLOURS = {"system": 4, "user": 1, "assistant": 3, "tool": 2}
_BARS = 12
_QUANTILES = ("min", "p5", "p50", "p90", "p95", "p99", "max")


def stats_page(stats: Stats, *, data: str) -> str:
    """A self-contained page of everything in `stats`."""
    tokens = stats.tokens
    parts = [cards(_facts(stats)), _splits(stats)]
    if tokens:
        parts += [_token_lengths(tokens), _limits(tokens)]
    parts += [_turns(stats), _groups(stats), _writing(stats), _system(stats), _tags(stats)]
    subtitle = f"{stats.rows:,} rows"
    if tokens:
        subtitle += f", tokenized with template {tokens.template}, learning {tokens.learn} turns"
    return page(f"Data statistics: {data}", join(parts), subtitle=subtitle)


def _facts(stats: Stats) -> list[tuple[str, str]]:
    facts = [("rows", f"{stats.rows:,}"), ("turns", f"{stats.turns.sum:,}")]
    if stats.rejected:
        facts.append(("broken rows", f"{stats.rejected:,}"))
    if tokens := stats.tokens:
        facts += [
            ("tokens", f"{tokens.total:,}"),
            ("learned tokens", f"{tokens.supervised:,}"),
            ("learned share", f"{tokens.supervised_share:.1%}"),
            ("median tokens per row", f"{tokens.per_row.p50:,}"),
        ]
    return facts


def _splits(stats: Stats) -> Html:
    counted = stats.tokens is not None
    columns = ["split or file", "rows", "turns", *(["tokens", "learned tokens"] if counted else [])]
    rows = [
        [
            name,
            f"{split.rows:,}",
            f"{split.turns:,}",
            *([f"{split.tokens:,}", f"{split.supervised_tokens:,}"] if counted else []),
        ]
        for name, split in stats.splits.items()
    ]
    return section("Splits", table(columns, rows))


def _token_lengths(tokens: TokenStats) -> Html:
    limit = [("limit", float(tokens.limit.tokens))] if tokens.limit else []
    plots = [
        _plot(tokens.per_row, "Tokens per row", "tokens", extra=limit),
        _plot(tokens.supervised_per_row, "Learned tokens per row", "learned tokens", colour=3),
        _plot(tokens.share_percent, "Learned share of a row", "% of the row's tokens", colour=3),
    ]
    if tokens.examples != tokens.per_row.count:
        plots.append(_plot(tokens.per_example, "Tokens per example", "tokens", y_label="examples"))
    lengths = {
        "tokens per row": tokens.per_row,
        "tokens per example": tokens.per_example,
        "learned tokens per row": tokens.supervised_per_row,
    }
    return section(
        "Tokens",
        grid(*plots),
        folded("The numbers", _distributions(lengths)),
        note="Rows as they are trained on, before anything is cut to a length. The paler last bar "
        "holds everything longer. p50 is the median.",
    )


def _limits(tokens: TokenStats) -> Html:
    rows = tokens.per_row.count
    over = dict(tokens.over)
    if tokens.limit:
        over[str(tokens.limit.tokens)] = tokens.limit.rows_over
    longer = [
        (f"{int(length):,} tokens", [float(count)])
        for length, count in sorted(over.items(), key=lambda item: int(item[0]))
    ]
    kept = [item for n, item in enumerate(longer) if not n or longer[n - 1][1][0]]
    padding = [(f"batch of {size}", [share]) for size, share in tokens.padding.items()]
    facts = [
        ("rows whose text spells a control token", tokens.control_text_rows),
        ("rows with nothing to learn", tokens.nothing_to_learn_rows),
        ("rows the template refuses", tokens.refused_rows),
    ]
    listed = [[name, f"{count:,}"] for name, count in facts if count]
    found = [table(["", "rows"], listed)] if listed else []
    cut = ""
    if tokens.limit:
        cut = (
            f" At --max-length {tokens.limit.tokens:,}, {tokens.limit.rows_over:,} rows "
            f"are over it, with {tokens.limit.tokens_beyond_share:.1%} of all tokens beyond it."
        )
    return section(
        "Length limits and padding",
        grid(
            bar_chart(kept, title="Rows longer than", x_label="rows", shares_of=rows),
            bar_chart(
                padding,
                title="Padding if random batches were padded to their longest row",
                x_label="share of all positions",
                percent=True,
                colour=6,
            ),
        ),
        *found,
        note="Padding is an estimate from the lengths alone, for batches drawn at random." + cut,
    )


def _turns(stats: Stats) -> Html:
    roles = [(role, [float(found.turns)]) for role, found in stats.roles.items()]
    plots = [
        _plot(stats.turns, "Turns per conversation", "turns", percentiles=("p50",)),
        bar_chart(roles, title="Turns by role", x_label="turns"),
        *(
            _plot(
                found.characters,
                f"Characters per {role} turn",
                "characters",
                y_label="turns",
                colour=_ROLE_COLOURS[role],
            )
            for role, found in stats.roles.items()
        ),
    ]
    lengths = {"turns per conversation": stats.turns}
    for role, found in stats.roles.items():
        lengths[f"characters per {role} turn"] = found.characters
        lengths[f"words per {role} turn"] = found.words
    return section(
        "Turns and roles",
        grid(*plots),
        folded("The numbers", _distributions(lengths)),
        note="Words are runs of characters between spaces.",
    )


def _groups(stats: Stats) -> Html:
    plots, tables = [], []
    for kind, ranking in (("Sources", stats.sources), ("Tasks", stats.tasks)):
        if [item.name for item in ranking.top] == [NO_TAG]:
            continue
        plots.append(_group_chart(ranking, kind, stats))
        tables.append(folded(f"All amounts by {kind.lower()[:-1]}", _group_table(ranking, stats)))
    if not plots:
        return Html("")
    return section("Sources and tasks", grid(*plots), *tables)


def _group_chart(ranking: Ranking, title: str, stats: Stats) -> Html:
    by = 2 if stats.tokens else 1
    totals = [stats.rows, sum(item.amounts[by] for item in ranking.top) + ranking.other[by]]
    items = [
        (item.name, [item.amounts[0] / totals[0], item.amounts[by] / max(totals[1], 1)])
        for item in ranking.top[:_BARS]
    ]
    rest = [item.amounts for item in ranking.top[_BARS:]] + [ranking.other]
    left = [sum(amounts[n] for amounts in rest) for n in (0, by)]
    if left[0]:
        items.append(("all others", [left[0] / totals[0], left[1] / max(totals[1], 1)]))
    return bar_chart(
        items,
        title=title,
        x_label="share of the whole",
        series=("rows", "tokens" if stats.tokens else "characters"),
        percent=True,
    )


def _group_table(ranking: Ranking, stats: Stats) -> Html:
    columns = ["", "rows", "share", "characters"]
    columns += ["tokens", "learned tokens"] if stats.tokens else []
    entries = [(item.name, item.amounts) for item in ranking.top]
    if ranking.other[0]:
        entries.append(("all others", ranking.other))
    rows = []
    for name, amounts in entries:
        told = [f"{amounts[0]:,}", f"{amounts[0] / stats.rows:.1%}", f"{amounts[1]:,}"]
        told += [f"{amount:,}" for amount in amounts[2:]] if stats.tokens else []
        rows.append([name, *told])
    return table(columns, rows)


def _writing(stats: Stats) -> Html:
    plots = [
        bar_chart(
            [(name, [float(rows)]) for name, rows in list(stats.scripts.items())[:_BARS]],
            title="Main writing system of a row",
            x_label="rows",
        )
    ]
    if stats.tools.calls:
        functions = [(item.name, [float(item.amounts[0])]) for item in stats.tools.functions.top]
        plots.append(bar_chart(functions[:_BARS], title="Tool calls", x_label="calls"))
    if stats.weights.turns:
        weights = [(f"weight {name}", [float(n)]) for name, n in stats.weights.values.items()]
        plots.append(
            bar_chart(weights, title="Assistant turns with a weight of their own", x_label="turns")
        )
    facts = [
        ("rows that offer tools", stats.tools.rows_offering),
        ("rows that call tools", stats.tools.rows_calling),
        ("rows whose turns all have weight 0", stats.weights.rows_all_zero),
    ]
    listed = [[name, f"{count:,}", f"{count / stats.rows:.1%}"] for name, count in facts if count]
    found = [table(["", "rows", "share"], listed)] if listed else []
    return section("Writing, tools and weights", grid(*plots), *found)


def _system(stats: Stats) -> Html:
    system = stats.system
    if not system.rows:
        return Html("")
    rows = [
        [item.name, f"{item.amounts[0]:,}", f"{item.amounts[0] / stats.rows:.1%}"]
        for item in system.prompts.top
    ]
    return section(
        "System prompts",
        table(["prompt", "rows", "share"], rows),
        note=f"{system.rows:,} of {stats.rows:,} rows have one; {_distinct(system.prompts)} "
        "different texts. Long ones are cut here and end in a short hash.",
    )


def _tags(stats: Stats) -> Html:
    if not stats.tags:
        return Html("")
    rows = [
        [
            name,
            _distinct(ranking),
            ", ".join(f"{item.name} ({item.amounts[0]:,})" for item in ranking.top[:3])
            if ranking.top and ranking.top[0].amounts[0] > 1
            else "each value once",
        ]
        for name, ranking in stats.tags.items()
    ]
    return section(
        "Other fields", table(["field", "different values", "most frequent"], rows, words={2})
    )


def _plot(
    found: Distribution,
    title: str,
    x_label: str,
    *,
    y_label: str = "rows",
    colour: int = 1,
    percentiles: Sequence[str] = ("p50", "p95"),
    extra: Iterable[tuple[str, float]] = (),
) -> Html:
    bins = found.histogram
    marks = [(name, float(getattr(found, name))) for name in percentiles if found.min < found.max]
    return histogram(
        bins.edges,
        bins.counts,
        title=title,
        x_label=x_label,
        y_label=y_label,
        beyond=bins.beyond,
        marks=[*marks, *extra],
        colour=colour,
    )


def _distributions(found: Mapping[str, Distribution]) -> Html:
    def told() -> Iterator[list[str]]:
        for name, numbers in found.items():
            quantiles = [f"{getattr(numbers, key):,}" for key in _QUANTILES]
            yield [name, f"{numbers.count:,}", f"{numbers.mean:,.1f}", *quantiles]

    return table(["", "count", "mean", *_QUANTILES], told())


def _distinct(ranking: Ranking) -> str:
    return f"{ranking.distinct:,}" if ranking.exact else f"about {ranking.distinct:,}"
