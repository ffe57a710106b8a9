"""Charts as inline SVG: pure functions from numbers to markup, coloured by the page's style sheet.

Every chart has a title, labelled axes with round ticks, and a tooltip with the exact number on
each mark. Numbers that are not finite are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from mlx_itune.kit.axes import Scale, compact, nice_ticks, round_scale
from mlx_itune.kit.page import Html, element, join

WIDTH = 560
_HEIGHT = 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 34, 44
_COLOURS = 6
_POINTS = 600
_WIDEST_BAR = 44
_BAR, _BAR_GAP, _NAME_WIDTH = 18, 8, 168
_CHAR_WIDTH = 6.6

Points = Sequence[tuple[float, float]]


def histogram(
    edges: Sequence[float],
    counts: Sequence[int],
    *,
    title: str,
    x_label: str,
    y_label: str = "rows",
    beyond: int = 0,
    marks: Sequence[tuple[str, float]] = (),
    colour: int = 1,
) -> Html:
    """Bars of `counts` between consecutive `edges`, and one more for what lies `beyond` them.

    `marks` are values (a median, a limit) drawn as labelled lines where they are within the edges.
    """
    if not counts or not sum(counts) + beyond:
        return _empty(title)
    plot_right = WIDTH - _RIGHT - (58 if beyond else 0)
    # Bars of single whole numbers stand over their number, not to the right of it.
    single = _all_whole(edges) and edges[-1] - edges[0] == len(counts)
    shift = 0.5 if single else 0.0
    x = Scale(edges[0] - shift, edges[-1] - shift, _LEFT, plot_right)
    y = round_scale(0, max(*counts, beyond, 1), _HEIGHT - _BOTTOM, _TOP + 14, whole=True)
    parts = [_y_axis(y, y_label), _x_axis(x, x_label, whole=_all_whole(edges))]
    for (low, high), count in zip(pairwise(edges), counts, strict=True):
        if count:
            left, right = x(low - shift), x(high - shift)
            width = min(right - left - (1 if right - left > 4 else 0), _WIDEST_BAR)
            told = f"{_range(low, high)}: {count:,} {y_label}"
            at = left if width < _WIDEST_BAR else (left + right - width) / 2
            parts.append(_bar(at, y(count), width, y(0) - y(count), told, colour))
    if beyond:
        left = plot_right + 30
        told = f"{edges[-1]:,.10g} or more: {beyond:,} {y_label}"
        parts.append(_bar(left, y(beyond), 24, y(0) - y(beyond), told, colour, "beyond"))
        parts.append(_text(left + 12, y(0) + 16, "more", "tick mid"))
    parts += _marks([m for m in marks if edges[0] <= m[1] <= edges[-1]], x, y)
    return _figure(title, _HEIGHT, parts)


def line_chart(
    series: Mapping[str, Points], *, title: str, x_label: str, y_label: str, from_zero: bool = False
) -> Html:
    """A line per name through its (x, y) points, with a legend where there are several."""
    drawn = {name: _thinned(_finite(points)) for name, points in series.items()}
    drawn = {name: points for name, points in drawn.items() if points}
    if not drawn:
        return _empty(title)
    xs = [x for points in drawn.values() for x, _ in points]
    ys = [y for points in drawn.values() for _, y in points]
    several = len(drawn) > 1
    top = _TOP + (34 if several else 14)
    x = Scale(min(xs), max(xs), _LEFT, WIDTH - _RIGHT)
    y = round_scale(min(0.0, *ys) if from_zero else min(ys), max(ys), _HEIGHT - _BOTTOM, top)
    parts = [_y_axis(y, y_label), _x_axis(x, x_label, whole=_all_whole(xs))]
    for number, (name, points) in enumerate(drawn.items()):
        colour = number % _COLOURS + 1
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
        last = points[-1]
        told = f"{name}: {last[1]:.4g} at {last[0]:,.10g}"
        parts.append(
            element("polyline", {"points": path, "class": f"line s{colour}"}, _tooltip(told))
        )
        if len(points) <= 40:
            parts += [
                element(
                    "circle",
                    {"cx": x(a), "cy": y(b), "r": 2.6, "class": f"dot f{colour}"},
                    _tooltip(f"{name}: {b:.4g} at {a:,.10g}"),
                )
                for a, b in points
            ]
    if several:
        parts.append(_legend(list(drawn), _TOP + 2))
    return _figure(title, _HEIGHT, parts)


def bar_chart(
    items: Sequence[tuple[str, Sequence[float]]],
    *,
    title: str,
    x_label: str,
    series: Sequence[str] = ("",),
    percent: bool = False,
    shares_of: float | None = None,
    colour: int = 1,
) -> Html:
    """Horizontal bars from zero, one group per (name, values) with a bar for each of `series`.

    With `percent` the values are shares of 1 and are written as such; single bars have their share
    of `shares_of`, or of their sum, written after the amount.
    """
    items = [(name, [v if math.isfinite(v) else 0.0 for v in values]) for name, values in items]
    if not items:
        return _empty(title)
    many = len(series)
    thick = _BAR if many == 1 else 13
    step = thick * many + _BAR_GAP
    top = _TOP + (24 if many > 1 else 4)
    height = top + step * len(items) + _BOTTOM
    left = 20 + min(_NAME_WIDTH, max(_text_width(name) for name, _ in items))
    largest = max((v for _, values in items for v in values), default=0)
    whole = not percent and _all_whole([v for _, values in items for v in values])
    total = shares_of or sum(values[0] for _, values in items)
    written = [
        [_percent(v) if percent else _amount(v, total, many) for v in values] for _, values in items
    ]
    room = 8 + max(_text_width(text) for texts in written for text in texts)
    x = round_scale(0, largest, left, WIDTH - room, whole=whole, tight=True)
    parts = [_x_axis(x, x_label, whole=whole, at=height - _BOTTOM, percent=percent, grid=top)]
    for row, (name, values) in enumerate(items):
        at = top + row * step
        label = _clip(name, left - 20)
        centre = at + thick * many / 2 + 4
        parts.append(_text(left - 8, centre, label, "name", _tooltip(name)))
        for number, value in enumerate(values):
            told = (
                f"{name}{f', {series[number]}' if series[number] else ''}: {written[row][number]}"
            )
            place = at + number * thick
            hue = number % _COLOURS + 1 if many > 1 else colour
            parts.append(_bar(x(0), place, x(value) - x(0), thick - (many > 1), told, hue))
            parts.append(_text(x(value) + 6, place + thick / 2 + 4, written[row][number], "value"))
    if many > 1:
        parts.append(_legend(series, _TOP))
    return _figure(title, height, parts)


def _figure(title: str, height: float, parts: Sequence[Html]) -> Html:
    heading = _text(0, 14, title, "title")
    box = {"viewBox": f"0 0 {WIDTH} {height:.0f}", "role": "img", "aria-label": title}
    return element("figure", {"class": "chart"}, element("svg", box, heading, join(parts)))


def _empty(title: str) -> Html:
    return _figure(title, 90, [_text(WIDTH / 2, 56, "nothing to show", "tick mid")])


def _y_axis(y: Scale, label: str) -> Html:
    ticks = nice_ticks(y.low, y.high, 4, whole=y.whole)
    lines = [_line(_LEFT, y(t), WIDTH - _RIGHT, y(t), "zero" if t == 0 else "grid") for t in ticks]
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 0
    labels = [_text(_LEFT - 7, y(t) + 4, compact(t, step), "tick end") for t in ticks]
    unit = _text(_LEFT - 7, min(y(t) for t in ticks) - 14, label, "axis end")
    if _text_width(label) > _LEFT - 10:
        unit = _text(0, min(y(t) for t in ticks) - 14, label, "axis")
    return join([*lines, *labels, unit])


def _x_axis(
    x: Scale,
    label: str,
    *,
    whole: bool,
    at: float = _HEIGHT - _BOTTOM,
    percent: bool = False,
    grid: float | None = None,
) -> Html:
    ticks = nice_ticks(x.low, x.high, 6 if x.right - x.left > 300 else 4, whole=whole)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 0
    parts = [_line(x.left, at, x.right, at, "zero")]
    for tick in ticks:
        written = f"{100 * tick:.3g} %" if percent else compact(tick, step)
        if grid is not None:
            parts.append(_line(x(tick), grid, x(tick), at, "zero" if tick == 0 else "grid"))
        parts.append(_line(x(tick), at, x(tick), at + 4, "zero"))
        parts.append(_text(x(tick), at + 16, written, "tick mid"))
    parts.append(_text((x.left + x.right) / 2, at + 35, label, "axis mid"))
    return join(parts)


def _marks(marks: Sequence[tuple[str, float]], x: Scale, y: Scale) -> list[Html]:
    parts: list[Html] = []
    # Labels share one line above the bars; a second and third line take those that would collide.
    ends = [-math.inf] * 3
    for name, value in sorted(marks, key=lambda mark: mark[1]):
        written = f"{name} {compact(value)}"
        width = _text_width(written) * 0.9
        start = min(max(x(value) - width / 2, x.left), WIDTH - width)
        row = next((n for n, end in enumerate(ends) if end + 8 < start), len(ends) - 1)
        ends[row] = start + width
        at = y.right - 4 + 11 * row
        parts.append(_line(x(value), at + 3, x(value), y.left, "mark"))
        parts.append(_text(start, at, written, "mark-name"))
    return parts


def _bar(
    left: float, top: float, width: float, height: float, told: str, colour: int, kind: str = ""
) -> Html:
    # Half a unit keeps the smallest non-zero count visible.
    box: dict[str, str | float | bool] = {
        "x": left,
        "y": top if height >= 0.5 else top - 0.5 + height,
        "width": max(width, 0.5),
        "height": max(height, 0.5),
        "class": f"bar f{colour} {kind}".strip(),
    }
    return element("rect", box, _tooltip(told))


def _legend(names: Sequence[str], at: float) -> Html:
    parts, left = [], float(_LEFT)
    for number, name in enumerate(names):
        shown = _clip(name, 150)
        swatch = {"x": left, "y": at - 9, "width": 10, "height": 10}
        parts.append(element("rect", {**swatch, "class": f"f{number % _COLOURS + 1}"}))
        parts.append(_text(left + 15, at, shown, "tick"))
        left += _text_width(shown) + 34
    return join(parts)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Html:
    return element("line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "class": kind})


def _text(x: float, y: float, text: str, kind: str, *children: Html) -> Html:
    return element("text", {"x": x, "y": y, "class": kind}, text, *children)


def _tooltip(text: str) -> Html:
    return element("title", None, text)


def _range(low: float, high: float) -> str:
    if _all_whole([low, high]):
        return f"{low:,.0f}" if high - low <= 1 else f"{low:,.0f} to {high - 1:,.0f}"
    return f"{low:.4g} to {high:.4g}"


def _amount(value: float, total: float, many: int) -> str:
    shown = f"{value:,.0f}" if value < 1e6 and _all_whole([value]) else compact(value)
    return f"{shown} ({_percent(value / total)})" if many == 1 and total else shown


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 or not share else "< 0.1 %"


def _text_width(text: str) -> float:
    return _CHAR_WIDTH * len(text)


def _clip(text: str, width: float) -> str:
    fits = int(width / _CHAR_WIDTH + 1e-6)
    return text if len(text) <= fits else text[: fits - 1] + "…"


def _all_whole(values: Sequence[float]) -> bool:
    return all(float(value).is_integer() for value in values)


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most a few hundred points: the lowest and highest of each stretch keep its shape."""
    if len(points) <= _POINTS:
        return points
    size = -(-2 * len(points) // _POINTS)
    kept = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        extremes = {
            min(range(len(stretch)), key=lambda n: stretch[n][1]),
            max(range(len(stretch)), key=lambda n: stretch[n][1]),
        }
        kept += [stretch[n] for n in sorted(extremes)]
    return [points[0], *kept[1:-1], points[-1]]
