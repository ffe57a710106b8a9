"""HTML and SVG as values: text becomes markup only through `element`, so data stays data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from html import escape as _html_escape

from mlx_itune.kit.errors import one_line

# Control characters but newline and tab, bidirectional marks and overrides, line separators, half
# surrogates: none of them may change how the rest of a page reads, or whether it can be written.
_STRANGE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_VOID = frozenset({"meta", "link", "br", "hr", "input", "img", "col"})


class Html(str):
    """Markup that is already safe; a plain str never is."""

    __slots__ = ()


def escape(text: str) -> Html:
    """`text` as it may stand in an element or an attribute; strange characters become visible."""
    visible = _STRANGE.sub(lambda found: one_line(found.group()), text)
    # Attributes stand in double quotes, so a single one can stay as it is.
    return Html(_html_escape(visible, quote=False).replace('"', "&quot;"))


def element(
    tag: str, attributes: Mapping[str, str | float | bool] | None = None, *children: str
) -> Html:
    """One element. A plain str among `children` is escaped, Html stands as it is.

    An attribute that is True stands without a value, one that is False not at all; numbers are
    rounded to a hundredth, which is finer than any screen.
    """
    head = tag + "".join(_attribute(name, value) for name, value in (attributes or {}).items())
    if tag in _VOID:
        return Html(f"<{head}>")
    return Html(f"<{head}>{join(children)}</{tag}>")


def join(parts: Iterable[str]) -> Html:
    """Html of all `parts` one after another; a plain str among them is escaped."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts))


def _attribute(name: str, value: str | float | bool) -> str:
    if value is True or value is False:
        return f" {name}" if value else ""
    if isinstance(value, str):
        return f' {name}="{escape(value)}"'
    return f' {name}="{f"{value:.2f}".rstrip("0").rstrip(".") if value % 1 else f"{value:.0f}"}"'
