"""Charts as inline SVG: pure functions from numbers to markup, coloured by the page's style sheet.

Every chart has a title, labelled axes with round ticks, and a tooltip with the exact number on
each mark. Numbers that are not finite are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mlx_itune.kit.axes import Scale, compact, nice_ticks, round_scale
from mlx_itune.kit.page import Html, element, join

WIDTH = 560
_HEIGHT = 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 34, 44
_COLOURS = 6
_POINTS = 600
_CHAR_WIDTH = 6.6

Points = Sequence[tuple[float, float]]


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


def _x_axis(x: Scale, label: str, *, whole: bool) -> Html:
    at = _HEIGHT - _BOTTOM
    ticks = nice_ticks(x.low, x.high, 6, whole=whole)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 0
    parts = [_line(x.left, at, x.right, at, "zero")]
    for tick in ticks:
        parts.append(_line(x(tick), at, x(tick), at + 4, "zero"))
        parts.append(_text(x(tick), at + 16, compact(tick, step), "tick mid"))
    parts.append(_text((x.left + x.right) / 2, at + 35, label, "axis mid"))
    return join(parts)


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
