"""Pages: well-formed, loading nothing, and deaf to what data says."""

from __future__ import annotations

import base64
import hashlib
from html.parser import HTMLParser

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
