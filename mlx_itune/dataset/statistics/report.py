"""Statistics as facts and tables, for the terminal and for a page that has plots too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from mlx_itune.dataset.statistics.counters import Distribution, Ranking
from mlx_itune.dataset.statistics.stats import NO_TAG, Stats
from mlx_itune.kit.page import Html, cards, element, folded, grid, join, page, read_style, section
from mlx_itune.kit.page import table as html_table
from mlx_itune.kit.wording import count, percent

_WIDTH, _HEIGHT, _TOP, _BOTTOM = 350, 176, 30, 150
_UNFOLDED = 12
QUANTILES = ("min", "p5", "p50", "p90", "p95", "p99", "max")


@dataclass(frozen=True)
class Table:
    """Rows of texts, first a name; `shares` for bars; columns in `wordy` are no numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    shares: Sequence[float] = ()
    note: str = ""
    wordy: Sequence[int] = ()


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
    sizes = {"tokens": tokens.total, "learned tokens": tokens.supervised} if tokens else {}
    splits = (
        (name, (s.rows, s.turns, s.tokens or 0, s.supervised_tokens or 0))
        for name, s in stats.splits.items()
    )
    plain = dict.fromkeys(("rows", "turns", *sizes))
    yield _amounts("Splits", "split or file", plain, splits)
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
        longer = [(f"over {length:,} tokens", (rows,)) for length, rows in sorted(over.items())]
        yield _amounts("Long rows", "length", {"rows": tokens.per_row.count}, longer)
        yield Table(
            "Padding",
            ("rows in a batch", *tokens.padding),
            [["padding", *map(percent, tokens.padding.values())]],
            note="Of random batches, each padded to its longest row; an estimate from the lengths.",
        )
    roles = ((role, (found.turns,)) for role, found in stats.roles.items())
    yield _amounts("Roles", "role", {"turns": stats.turns.sum}, roles)
    for title, name, groups in (
        ("Sources", "source", stats.sources),
        ("Tasks", "task", stats.tasks),
    ):
        named = () if [item.name for item in groups.top] == [NO_TAG] else _entries(groups)
        yield _amounts(title, name, {"rows": stats.rows, "characters": None, **sizes}, named)
    scripts = ((name, (rows,)) for name, rows in stats.scripts.items())
    yield _amounts("Writing", "writing system", {"rows": stats.rows}, scripts)
    called = _entries(stats.tools.functions)
    yield _amounts("Tool calls", "function", {"calls": stats.tools.calls}, called)
    weights = ((value, (turns,)) for value, turns in stats.weights.values.items())
    yield _amounts("Turn weights", "weight", {"assistant turns": stats.weights.turns}, weights)
    prompts = _entries(stats.system.prompts)
    yield _amounts("System prompts", "system prompt", {"rows": stats.rows}, prompts)
    yield Table(
        "Other fields",
        ("field", "different values", "most frequent"),
        [[name, _distinct(values), _most_frequent(values)] for name, values in stats.tags.items()],
        wordy=(2,),
    )


def _amounts(
    title: str,
    name: str,
    totals: Mapping[str, int | None],
    entries: Iterable[tuple[str, Sequence[int]]],
) -> Table:
    """Names with amounts; one of a total has its share beside it, the first of them as a bar."""
    columns, rows, shares = [name], [], []
    for column, total in totals.items():
        columns += [column] if total is None else [column, f"of {column.removesuffix(' tokens')}"]
    for label, amounts in entries:
        row = [label]
        for total, amount in zip(totals.values(), amounts, strict=False):
            row += [f"{amount:,}"] if total is None else [f"{amount:,}", percent(amount / total)]
        rows.append(row)
        first = next(iter(totals.values()))
        shares += [amounts[0] / first] if first else []
    return Table(title, columns, rows, shares)


def _entries(ranking: Ranking) -> list[tuple[str, Sequence[int]]]:
    named = [(item.name, item.amounts) for item in ranking.top]
    return [*named, ("all others", ranking.other)] if ranking.other[0] else [*named]


def _most_frequent(values: Ranking) -> str:
    named = ", ".join(f"{item.name} ({item.amounts[0]:,})" for item in values.top[:3])
    return "each value once" if values.top[0].amounts[0] == 1 else named


def _distinct(ranking: Ranking) -> str:
    return f"{ranking.distinct:,}" if ranking.exact else f"over {ranking.distinct:,}"


def stats_page(stats: Stats, *, data: str) -> str:
    """A self-contained page of everything in `stats`."""
    tokens = stats.tokens
    limit = [("limit", tokens.limit.tokens)] if tokens and tokens.limit else []
    plots = [
        _histogram(name, found, limit if name == "tokens per row" else ())
        for name, found in distributions(stats)
        if not name.startswith("words")
    ]
    parts = [
        cards([*facts(stats)]),
        section("Distributions", grid(*plots, kind="charts")),
        *_sections(stats),
    ]
    subtitle = f"{stats.rows:,} rows"
    if tokens:
        subtitle += f", tokenized with template {tokens.template}, learning {tokens.learn} turns"
    title = f"Data statistics: {data}"
    return page(title, join(parts), subtitle=subtitle, style=read_style(__file__))


def _sections(stats: Stats) -> Iterable[Html]:
    for made in tables(stats):
        rows = [[*row] for row in made.rows]
        columns, words = [*made.columns], [*made.wordy]
        if made.shares:
            words.append(len(columns))
            columns.append("")
            rows = [[*row, _bar(share)] for row, share in zip(rows, made.shares, strict=True)]
        parts = [html_table(columns, rows[:_UNFOLDED], words=words)]
        if rest := rows[_UNFOLDED:]:
            parts.append(folded(f"{len(rest):,} more", html_table(columns, rest, words=words)))
        yield section(made.title, *parts, note=made.note)


def _bar(share: float) -> Html:
    bar = element("rect", {"x": 0, "y": 0, "width": max(100 * share, 0.5), "height": 10})
    return element("svg", {"class": "bar", "viewBox": "0 0 100 10"}, bar)


def _histogram(name: str, found: Distribution, limit: Iterable[tuple[str, int]]) -> Html:
    """Bars over round edges, one more for what lies beyond, and lines at the median and the p95."""
    bins = found.histogram
    first, last = bins.edges[0], bins.edges[-1]
    step = _WIDTH / (len(bins.counts) + 2 * bool(bins.beyond))
    end = step * len(bins.counts)
    tallest = max(*bins.counts, bins.beyond)
    drawn: list[Html] = []
    bars = [
        (n * step, times, f"{low:,}" if high - low == 1 else f"{low:,} to {high - 1:,}")
        for n, (times, (low, high)) in enumerate(
            zip(bins.counts, pairwise(bins.edges), strict=True)
        )
    ]
    for x, times, told in [*bars, (_WIDTH - step, bins.beyond, f"{last:,} or more")]:
        if times:
            high = max(times / tallest * (_BOTTOM - _TOP), 0.5)
            box = {"x": x, "y": _BOTTOM - high, "width": step - 1, "height": high}
            kind = "" if x < end else "beyond"
            title = element("title", None, f"{told}: {times:,}")
            drawn.append(element("rect", {**box, "class": kind}, title))
    spread = [("p50", found.p50), ("p95", found.p95)] if found.min < found.max else []
    for row, (label, value) in enumerate([*spread, *limit]):
        if first <= value < last:
            x = (value - first + 0.5) / (last - first) * end
            line = {"x1": x, "x2": x, "y1": _TOP - 4, "y2": _BOTTOM}
            kind = "end" if x > _WIDTH / 2 else ""
            drawn.append(element("line", {**line, "class": "mark"}))
            drawn.append(_text(x, _TOP - 8 + 12 * row, f"{label} {value:,}", kind))
    axis = {"x1": 0, "x2": end, "y1": _BOTTOM, "y2": _BOTTOM}
    drawn += [
        _text(0, _BOTTOM + 16, f"{first:,}"),
        _text(end, _BOTTOM + 16, f"{last:,}", "end"),
        _text(0, _TOP - 8, f"{tallest:,}"),
        element("line", {**axis, "class": "axis"}),
    ]
    view = {"viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "role": "img", "aria-label": name}
    heading = element("p", {"class": "plot-name"}, name[:1].upper() + name[1:])
    return element("figure", {"class": "chart"}, heading, element("svg", view, *drawn))


def _text(x: float, y: float, text: str, kind: str = "") -> Html:
    return element("text", {"x": x, "y": y, "class": kind}, text)
