"""The page of ``data stats``: what a data set is made of, in plots and tables."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from mlx_itune.dataset.statistics.counters import Distribution
from mlx_itune.dataset.statistics.stats import Stats
from mlx_itune.dataset.statistics.tables import Table, distributions, facts, tables
from mlx_itune.kit.page import Html, cards, element, folded, grid, join, page, section
from mlx_itune.kit.page import table as html_table

Attributes = dict[str, str | float | bool]

_WIDTH, _HEIGHT, _TOP, _BOTTOM = 560, 190, 30, 150
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
        first = _table(made, 0, _UNFOLDED)
        rest = len(made.rows) - _UNFOLDED
        more = (
            [folded(f"{rest:,} more", _table(made, _UNFOLDED, len(made.rows)))] if rest > 0 else []
        )
        yield section(made.title, first, *more, note=made.note)


def _table(made: Table, start: int, end: int) -> Html:
    if not made.shares:
        return html_table(made.columns, made.rows[start:end], words=made.wordy)
    rows = [
        [*row, _bar(share)]
        for row, share in zip(made.rows[start:end], made.shares[start:end], strict=True)
    ]
    return html_table([*made.columns, ""], rows, words={len(made.columns)})


def _bar(share: float) -> Html:
    bar = element("rect", {"x": 0, "y": 0, "width": max(100 * share, 0.5), "height": 10})
    return element("svg", {"class": "bar", "viewBox": "0 0 100 10"}, bar)


def _histogram(name: str, found: Distribution, limit: Iterable[tuple[str, int]]) -> Html:
    """Bars over round edges, one more for what lies beyond, and lines at the median and the p95."""
    bins = found.histogram
    step = _WIDTH / (len(bins.counts) + 2 * bool(bins.beyond))
    tallest = max(*bins.counts, bins.beyond, 1)
    first, last = bins.edges[0], bins.edges[-1]

    def bar(left: float, count: int, kind: str, told: str) -> Html:
        height = max(count / tallest * (_BOTTOM - _TOP), 0.5)
        box: Attributes = {
            "x": left,
            "y": _BOTTOM - height,
            "width": step - 1,
            "height": height,
            "class": kind,
        }
        return element("rect", box, element("title", None, f"{told}: {count:,}"))

    bars = [
        bar(n * step, count, "", f"{low:,}" if high - low == 1 else f"{low:,} to {high - 1:,}")
        for n, (count, (low, high)) in enumerate(
            zip(bins.counts, pairwise(bins.edges), strict=True)
        )
        if count
    ]
    if bins.beyond:
        bars.append(bar(_WIDTH - step, bins.beyond, "beyond", f"{last:,} or more"))
    marks: list[Html] = []
    spread = [("p50", found.p50), ("p95", found.p95)] if found.min < found.max else []
    for row, (label, value) in enumerate([*spread, *limit]):
        if first <= value < last:
            at = (value - first + 0.5) / (last - first) * step * len(bins.counts)
            line: Attributes = {"x1": at, "x2": at, "y1": _TOP - 4, "y2": _BOTTOM, "class": "mark"}
            marks.append(element("line", line))
            kind = "end" if at > _WIDTH / 2 else ""
            marks.append(_text(at, _TOP - 8 + 12 * row, f"{label} {value:,}", kind))
    edge = step * len(bins.counts)
    axis = [
        _text(0, _BOTTOM + 16, f"{first:,}"),
        _text(edge, _BOTTOM + 16, f"{last:,}", "end"),
        _text(0, _TOP - 8, f"{tallest:,}"),
        element("line", {"x1": 0, "x2": edge, "y1": _BOTTOM, "y2": _BOTTOM, "class": "axis"}),
    ]
    box: Attributes = {"viewBox": f"0 0 {_WIDTH} {_HEIGHT - 14}", "role": "img", "aria-label": name}
    heading = element("p", {"class": "plot-name"}, name[:1].upper() + name[1:])
    return element(
        "figure", {"class": "plot"}, heading, element("svg", box, join([*bars, *marks, *axis]))
    )


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
