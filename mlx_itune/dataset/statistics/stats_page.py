"""The page of ``data stats``: what a data set is made of, in plots and tables."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from mlx_itune.dataset.statistics.counters import Distribution
from mlx_itune.dataset.statistics.stats import Stats
from mlx_itune.dataset.statistics.tables import distributions, facts, tables
from mlx_itune.kit.page import Html, cards, element, folded, grid, join, page, section
from mlx_itune.kit.page import table as html_table

_WIDTH, _HEIGHT, _TOP, _BOTTOM = 560, 176, 30, 150
_UNFOLDED = 12


def stats_page(stats: Stats, *, data: str) -> str:
    """A self-contained page of everything in `stats`."""
    tokens = stats.tokens
    limit = [("limit", tokens.limit.tokens)] if tokens and tokens.limit else []
    plots = [
        _histogram(name, found, limit if name == "tokens per row" else ())
        for name, found in distributions(stats)
        if not name.startswith("words")
    ]
    parts = [cards([*facts(stats)]), section("Distributions", grid(*plots)), *_sections(stats)]
    subtitle = f"{stats.rows:,} rows"
    if tokens:
        subtitle += f", tokenized with template {tokens.template}, learning {tokens.learn} turns"
    title = f"Data statistics: {data}"
    return page(title, join(parts), subtitle=subtitle, style=_STYLE)


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
    return element("figure", {"class": "plot"}, heading, element("svg", view, *drawn))


def _text(x: float, y: float, text: str, kind: str = "") -> Html:
    return element("text", {"x": x, "y": y, "class": kind}, text)


_STYLE = """
.plot{margin:0;min-width:0}
.plot-name{font-weight:600;font-size:.9rem;margin:0}
.plot svg{display:block;width:100%;height:auto}
.plot rect,.bar rect{fill:var(--c1)}
.plot .beyond{opacity:.55}
.plot text{font-size:11.5px;fill:var(--muted)}
.plot .end{text-anchor:end}
.plot .axis{stroke:var(--muted)}
.plot .mark{stroke:var(--ink);stroke-dasharray:3 3;opacity:.75}
.bar{width:160px;height:10px;display:block}
"""
