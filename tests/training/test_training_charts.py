"""Line charts: well-formed, labelled, within their box, and deaf to what data says."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest

from mlx_itune.training.run.curves import WIDTH, Points, Scale, compact, line_chart

HOSTILE = "</script><img src=x onerror=alert(1)>\" ' & \x00 \u202e ]]> <!-- </style> --> \ud800"
ROUND = re.compile(r"-?[125](\.0*)?(e[+-]?\d+)?")


def svg(series: dict[str, Points], y_label: str = "y") -> ET.Element:
    """The chart's SVG, read by an XML parser: a stray `<` or `&` fails here."""
    chart = line_chart(series, title="Loss by step", x_label="x", y_label=y_label)
    return ET.fromstring(chart).find("svg")  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 7), (0, 1), (13, 9871), (-3, 4), (0, 2_000_000_000), (0.0012, 0.0019), (-1e300, 1e300)],
)
def test_ticks_are_round_inside_and_written_differently(low: float, high: float) -> None:
    ticks = Scale(low, high, 0, 1).ticks(5)
    assert 2 <= len(ticks) <= 11
    span = high - low if math.isfinite(high - low) else high
    assert all(low - 1e-9 * span <= tick <= high + 1e-9 * span for tick in ticks)
    step = ticks[1] - ticks[0]
    assert ROUND.fullmatch(f"{step:.3e}".replace(".000", "")), step
    assert len({compact(tick, step) for tick in ticks}) == len(ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (950, "950"), (1234, "1,234"), (12_500, "12.5k"), (3_100_000, "3.1M"), (2e9, "2G")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert compact(value) == text


@pytest.mark.parametrize(
    "points",
    [
        [(3, 5.0)],
        [(0, 0.0), (1, 0.0)],
        [(0, -1e300), (1e300, 1e300)],
        [(0, 1e-9), (1, 3e-9)],
    ],
)
def test_odd_numbers_stay_in_the_picture(points: Points) -> None:
    drawing = svg({"a": points})
    width, height = map(float, drawing.attrib["viewBox"].split()[2:])
    for node in drawing.iter():
        places = (node.attrib.get(name, "0") for name in ("x", "y", "x1", "x2", "y1", "y2"))
        assert all(math.isfinite(float(place)) for place in places), node.attrib
    (line,) = drawing.iter("polyline")
    for pair in line.attrib["points"].split():
        x, y = map(float, pair.split(","))
        assert 0 <= x <= width == WIDTH and 0 <= y <= height


def test_several_lines_have_a_legend_and_colours_of_their_own() -> None:
    drawing = svg({"train": [(0, 1), (1, 2)], "valid": [(0, 2), (1, 1)]}, "nats")
    assert {"train", "valid", "x", "nats"} <= {text.text for text in drawing.iter("text")}
    assert len({line.attrib["class"] for line in drawing.iter("polyline")}) == 2


def test_nothing_to_show_is_said_and_the_chart_has_a_name() -> None:
    drawing = svg({"a": []})
    assert "nothing to show" in {text.text for text in drawing.iter("text")}
    assert (drawing.attrib["role"], drawing.attrib["aria-label"]) == ("img", "Loss by step")


def test_names_out_of_data_stay_text() -> None:
    tags = {node.tag for node in svg({HOSTILE: [(0, 1)], "b": [(0, 2)]}, HOSTILE).iter()}
    assert tags <= {"svg", "text", "rect", "line", "title", "polyline", "circle"}
