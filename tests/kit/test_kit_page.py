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


def test_text_is_escaped_once_and_strange_characters_become_visible() -> None:
    inner = element("b", {"title": '"&<'}, "a < b")
    assert inner == '<b title="&quot;&amp;&lt;">a &lt; b</b>'
    assert element("p", None, inner) == f"<p>{inner}</p>"
    assert join(["<", Html("<br>")]) == "&lt;<br>"
    assert isinstance(join([inner]), Html)
    assert escape("a\x00b\u202ec\ud800\x1b[0m\r") == "a\\x00b\\u202ec\\ud800\\x1b[0m\\r"
    assert escape("é\n\t👩\u200d👧") == "é\n\t👩\u200d👧"


class Reader(HTMLParser):
    """Everything a browser would see: elements with attributes, and text."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(document)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_of_hostile_data_loads_nothing_and_allows_its_own_style_alone() -> None:
    body = join(
        [
            cards([(HOSTILE, HOSTILE)]),
            section(HOSTILE, grid(table([HOSTILE], [[HOSTILE]])), note=HOSTILE),
            folded(HOSTILE, element("p", None, HOSTILE)),
        ]
    )
    document = page(HOSTILE, body, subtitle=HOSTILE)
    document.encode("utf-8")
    seen = Reader(document)
    assert not {tag for tag, _ in seen.tags} & set(
        "script img link iframe object base form".split()
    )
    attributes = {name for _, attributes in seen.tags for name in attributes}
    assert attributes <= {"lang", "charset", "http-equiv", "content", "name", "class", "scope"}
    assert seen.text.count("onerror=alert(1)") == 11
    style = document.partition("<style>")[2].partition("</style>")[0]
    (policy,) = (a["content"] for _, a in seen.tags if a.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme:dark" in style
    assert document.index("Content-Security-Policy") < document.index("<style>")
