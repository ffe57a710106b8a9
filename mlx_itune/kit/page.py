"""Self-contained HTML pages: text becomes markup only through `element`, so data stays data. A page
loads nothing, runs nothing and sends nothing: its Content-Security-Policy allows the one style
sheet inside it, by hash; a page with a script allows that, and asks nobody but its own server."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape as _html_escape
from pathlib import Path

from mlx_itune.kit.errors import one_line

# Control characters but newline and tab, bidirectional marks and overrides, line separators, half
# surrogates: none of them may change how the rest of a page reads, or whether it can be written.
_STRANGE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)


class Html(str):
    """Markup that is already safe; a plain str never is."""

    __slots__ = ()

    def __html__(self) -> str:
        """Itself, to templates that escape everything else."""
        return str(self)


def escape(text: str) -> Html:
    """`text` as it may stand in an element or an attribute; strange characters become visible."""
    visible = _STRANGE.sub(lambda found: one_line(found.group()), text)
    # Attributes stand in double quotes, so a single one can stay as it is.
    return Html(_html_escape(visible, quote=False).replace('"', "&quot;"))


def element(
    tag: str, attributes: Mapping[str, str | float | bool] | None = None, *children: str
) -> Html:
    """One element. A plain str among `children` is escaped, Html stands as it is. An attribute that
    is True stands without a value, one that is False not at all."""
    head = tag + "".join(_attribute(name, value) for name, value in (attributes or {}).items())
    return Html(f"<{head}>" if tag == "input" else f"<{head}>{join(children)}</{tag}>")


def join(parts: Iterable[str]) -> Html:
    """Html of all `parts` one after another; a plain str among them is escaped."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts))


def _attribute(name: str, value: str | float | bool) -> str:
    if value is True or value is False:
        return f" {name}" if value else ""
    if isinstance(value, str):
        return f' {name}="{escape(value)}"'
    return f' {name}="{f"{value:.2f}".rstrip("0").rstrip(".") if value % 1 else f"{value:.0f}"}"'


def page(
    title: str,
    body: Html,
    *,
    subtitle: str = "",
    style: str = "",
    script: str = "",
    refresh_s: int | None = None,
) -> str:
    """A whole HTML document: `title` as its heading, `subtitle` under it, then `body`. script: what
    runs once it is read; refresh_s: after so many seconds a browser reads the file again."""
    sheet = read_style(__file__) + style
    policy = f"default-src 'none'; style-src {hash_of(sheet)}; base-uri 'none'; form-action 'none'"
    if script:
        policy += f"; script-src {hash_of(script)}; connect-src 'self'"
        script = f"<script>{script}</script>"
    heading = element("h1", None, title)
    if subtitle:
        heading = join([heading, element("p", {"class": "subtitle"}, subtitle)])
    again = f'<meta http-equiv="refresh" content="{refresh_s}">' if refresh_s else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">{again}
<title>{escape(title)}</title><style>{sheet}</style></head>
<body><main><header>{heading}</header>{body}</main>{script}</body>
</html>
"""


def hash_of(text: str) -> str:
    """What lets a browser use an inline text: the hash that its policy names."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def read_style(module_file: str) -> str:
    """The style sheet beside a module, called as it is."""
    return Path(module_file).with_suffix(".css").read_text(encoding="utf-8")


def section(heading: str, *body: Html, note: str = "") -> Html:
    """A part of a page under a heading, with one muted line of explanation."""
    explained = [element("p", {"class": "note"}, note)] if note else []
    return element("section", None, element("h2", None, heading), *explained, *body)


def cards(facts: Sequence[tuple[str, str]]) -> Html:
    """Headline numbers, as (name, value)."""
    made = (
        element("div", None, element("dt", None, name), element("dd", None, value))
        for name, value in facts
    )
    return element("dl", {"class": "cards"}, *made)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, words: Collection[int] = ()
) -> Html:
    """A table: the first column names a row; the others are numbers, those in `words` text."""

    def cell(tag: str, number: int, text: str) -> Html:
        kind: dict[str, str] = {"class": "words"} if number in words else {}
        if tag == "th" or not number:
            kind["scope"] = "col" if tag == "th" else "row"
        return element(tag if number else "th", kind, text)

    head = element("tr", None, *(cell("th", n, column) for n, column in enumerate(columns)))
    body = (element("tr", None, *(cell("td", n, text) for n, text in enumerate(r))) for r in rows)
    made = element("table", None, element("thead", None, head), element("tbody", None, *body))
    return element("div", {"class": "scroll"}, made)


def said(label: str, text: str, kind: str = "") -> Html:
    """What somebody said, beside its label; `text` may be Html. kind: of the style sheet."""
    name = element("span", {"class": "label"}, label)
    return element("div", {"class": f"said {kind}".strip()}, name, element("pre", None, text))


def folded(summary: str, *body: Html) -> Html:
    """Details that open on a click."""
    return element("details", None, element("summary", None, summary), *body)


def grid(*items: Html, kind: str = "") -> Html:
    """Items side by side where the window is wide enough. kind: "charts" are narrower."""
    return element("div", {"class": f"grid {kind}".strip()}, *items)
