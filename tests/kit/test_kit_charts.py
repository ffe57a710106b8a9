"""Charts and pages: well-formed, labelled, within their box, and deaf to what data says."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest

from mlx_itune.kit.axes import Scale, compact, nice_ticks, round_scale
from mlx_itune.kit.charts import WIDTH, line_chart
from mlx_itune.kit.page import (
    Html,
    cards,
    element,
    escape,
    folded,
    grid,
    join,
    page,
    section,
    table,
)

HOSTILE = "</script><img src=x onerror=alert(1)>\" ' & \x00 \u202e ]]> <!-- </style> --> \ud800"
ROUND = re.compile(r"-?[125](\.0*)?(e[+-]?\d+)?")


def svg(chart: str) -> ET.Element:
    """The chart's SVG, read by an XML parser: a stray `<` or `&` fails here."""
    return ET.fromstring(chart).find("svg")  # type: ignore[return-value]


def words(chart: str) -> list[str]:
    return [text.text or "" for text in svg(chart).iter("text")]


def numbers(node: ET.Element) -> Iterator[float]:
    for name in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height"):
        if name in node.attrib:
            yield float(node.attrib[name])


def assert_drawn_inside(chart: str) -> None:
    drawing = svg(chart)
    height = float(drawing.attrib["viewBox"].split()[3])
    for node in drawing.iter():
        assert all(math.isfinite(number) for number in numbers(node)), node.attrib
    for bar in drawing.iter("rect"):
        left, width = float(bar.attrib["x"]), float(bar.attrib["width"])
        assert left >= 0 and left + width <= WIDTH + 0.01, bar.attrib
        top, tall = float(bar.attrib["y"]), float(bar.attrib["height"])
        assert top >= 0 and top + tall <= height + 0.01, bar.attrib
    for line in drawing.iter("polyline"):
        for pair in line.attrib["points"].split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= WIDTH and 0 <= y <= height


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 7), (0, 1), (13, 9871), (-3, 4), (0, 2_000_000_000), (0.0012, 0.0019), (-1e300, 1e300)],
)
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    ticks = nice_ticks(low, high, 5)
    assert 2 <= len(ticks) <= 11
    span = high - low if math.isfinite(high - low) else high
    assert all(low - 1e-9 * span <= tick <= high + 1e-9 * span for tick in ticks)
    step = ticks[1] - ticks[0]
    assert ROUND.fullmatch(f"{step:.3e}".replace(".000", "")), step


def test_ticks_of_counts_are_whole() -> None:
    assert nice_ticks(0, 3, 5, whole=True) == [0, 1, 2, 3]
    assert nice_ticks(4, 4) == [4]


def test_a_scale_of_one_value_stands_in_the_middle() -> None:
    assert Scale(3, 3, 0, 10)(3) == 5
    assert round_scale(0, 0, 0, 10).high > 0


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (950, "950"), (1234, "1,234"), (12_500, "12.5k"), (3_100_000, "3.1M"), (2e9, "2G")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert compact(value) == text


def test_ticks_that_differ_are_written_differently() -> None:
    for low, high in ((0, 50_000), (0, 25_000), (1_000_000, 1_000_400), (0, 0.003), (0, 3e-6)):
        ticks = nice_ticks(low, high, 5)
        step = ticks[1] - ticks[0]
        written = [compact(tick, step) for tick in ticks]
        assert len(set(written)) == len(written), written


@pytest.mark.parametrize(
    "chart",
    [
        line_chart({}, title="t", x_label="x", y_label="y"),
        line_chart({"a": [(0, math.nan), (1, math.inf)]}, title="t", x_label="x", y_label="y"),
    ],
)
def test_nothing_to_show_is_said(chart: str) -> None:
    assert "nothing to show" in words(chart)


@pytest.mark.parametrize(
    "chart",
    [
        line_chart({"a": [(3, 5.0)]}, title="t", x_label="x", y_label="y"),
        line_chart({"a": [(0, 0.0), (1, 0.0)]}, title="t", x_label="x", y_label="y"),
        line_chart({"a": [(0, -1e300), (1e300, 1e300)]}, title="t", x_label="x", y_label="y"),
        line_chart(
            {"a": [(0, 1e-9), (1, 3e-9), (2, math.nan)]}, title="t", x_label="x", y_label=""
        ),
    ],
)
def test_odd_numbers_stay_in_the_picture(chart: str) -> None:
    assert_drawn_inside(chart)


def test_a_line_keeps_its_extremes_when_thinned() -> None:
    points = [(float(n), 1.0) for n in range(50_000)]
    points[31_234] = (31_234.0, 9.0)
    chart = line_chart({"loss": points}, title="Loss", x_label="step", y_label="nats")
    (line,) = svg(chart).iter("polyline")
    pairs = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    assert len(pairs) <= 700
    assert min(y for _, y in pairs) < 0.4 * max(y for _, y in pairs)


def test_several_lines_have_a_legend_and_colours_of_their_own() -> None:
    chart = line_chart(
        {"train": [(0, 1), (1, 2)], "valid": [(0, 2), (1, 1)]},
        title="Loss",
        x_label="step",
        y_label="nats",
    )
    assert {"train", "valid", "step", "nats"} <= set(words(chart))
    assert len({line.attrib["class"] for line in svg(chart).iter("polyline")}) == 2


def test_a_chart_is_named_for_those_who_cannot_see_it() -> None:
    drawing = svg(line_chart({}, title="Turns by role", x_label="x", y_label="y"))
    assert drawing.attrib["role"] == "img"
    assert drawing.attrib["aria-label"] == "Turns by role"


def test_names_out_of_data_stay_text() -> None:
    for chart in (
        line_chart({HOSTILE: [(0, 1)], "b": [(0, 2)]}, title="t", x_label="x", y_label=HOSTILE),
    ):
        tags = {node.tag for node in ET.fromstring(chart).iter()}
        assert tags <= {"figure", "svg", "text", "rect", "line", "title", "polyline", "circle"}


def test_text_is_escaped_and_markup_is_not_escaped_twice() -> None:
    inner = element("b", {"title": '"&<'}, "a < b")
    assert inner == '<b title="&quot;&amp;&lt;">a &lt; b</b>'
    assert element("p", None, inner) == f"<p>{inner}</p>"
    assert join(["<", Html("<br>")]) == "&lt;<br>"
    assert isinstance(join([inner]), Html)


def test_strange_characters_become_visible() -> None:
    assert escape("a\x00b\u202ec\ud800\x1b[0m\r") == "a\\x00b\\u202ec\\ud800\\x1b[0m\\r"
    assert escape("é\n\t👩\u200d👧") == "é\n\t👩\u200d👧"


class Reader(HTMLParser):
    """Everything a browser would see: elements with attributes, and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.style = ""
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.style += data
        else:
            self.text.append(data)


def read(document: str) -> Reader:
    reader = Reader()
    reader.feed(document)
    reader.close()
    return reader


def whole_page() -> str:
    body = join(
        [
            cards([(HOSTILE, HOSTILE)]),
            section(HOSTILE, grid(table([HOSTILE], [[HOSTILE]])), note=HOSTILE),
            folded(HOSTILE, element("p", None, HOSTILE)),
        ]
    )
    return page(HOSTILE, body, subtitle=HOSTILE)


def test_a_page_holds_no_element_or_attribute_out_of_data() -> None:
    seen = read(whole_page())
    tags = {tag for tag, _ in seen.tags}
    assert not tags & {"script", "img", "link", "iframe", "object", "base", "form"}
    attributes = {name for _, attributes in seen.tags for name in attributes}
    assert attributes <= {"lang", "charset", "http-equiv", "content", "name", "class", "scope"}
    assert "".join(seen.text).count("onerror=alert(1)") == 11


def test_a_page_loads_nothing_and_allows_its_own_style_alone() -> None:
    document = whole_page()
    seen = read(document)
    (policy,) = (a["content"] for _, a in seen.tags if a.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(seen.style.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    assert "url(" not in seen.style and "@import" not in seen.style
    assert "prefers-color-scheme:dark" in seen.style
    assert document.index("Content-Security-Policy") < document.index("<style>")
    document.encode("utf-8")
