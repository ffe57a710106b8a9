"""HTML, as browsers, wikis, e-mails and e-books have it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from mlx_itune.dataset.ingest.passages import Block
from mlx_itune.dataset.reading.encodings import utf16
from mlx_itune.kit.errors import DataError

# What is said by no text, and what leads around a page.
_SILENT = frozenset(
    "script style noscript template head svg math iframe object select button nav footer audio "
    "video canvas".split()
)
_ROLES = frozenset(("navigation", "banner", "contentinfo", "search"))
_NO_DISPLAY = re.compile(r"display\s*:\s*none")
_INLINE = frozenset(
    "a abbr acronym b bdi bdo big cite code data del dfn em font i ins kbd label mark q s samp "
    "small span strike strong sub sup time tt u var wbr img input script style svg math button "
    "select template noscript".split()
)
_CUT_OFF = re.compile(rb"</?[a-zA-Z][^<>]*\Z")
_SPACE = re.compile(r"[ \t\r\n\f]+")


def read_html(data: bytes) -> Iterator[Block]:
    """Headings, paragraphs and tables, without what leads around the page. Raises DataError."""
    from lxml import etree, html

    if _CUT_OFF.search(data, max(len(data) - 4096, 0)):
        raise DataError("is cut off: it ends within a tag", hint="get a whole copy")
    if b"\0" in data[:4096] and utf16(data[:4096]) is None:
        raise DataError("is no HTML: it has zero bytes")
    try:
        data.decode()
        encoding: str | None = "utf-8"
    except UnicodeDecodeError:
        encoding = None
    parser = html.HTMLParser(
        encoding=encoding, remove_comments=True, remove_pis=True, no_network=True, huge_tree=False
    )
    try:
        root = html.document_fromstring(data, parser=parser)
    except (etree.LxmlError, ValueError, AssertionError) as error:
        raise DataError(f"is no HTML: {error}") from error
    yield from of_tree(root)


def of_tree(root: Any) -> Iterator[Block]:
    """The blocks of a parsed tree, whatever its namespace."""
    from lxml import etree

    text: list[str] = []
    is_kept = False

    def flush(level: int = 0) -> Iterator[Block]:
        nonlocal text
        said = "".join(text)
        said = said.strip("\n") if is_kept else _lines(said)
        text = []
        if said.strip("- \n"):
            yield Block(said, "heading", level) if level else Block(said)

    walker = etree.iterwalk(root, events=("start", "end"))
    for event, element in walker:
        name = _name(element)
        level = int(name[1]) if len(name) == 2 and name[0] == "h" and name[1] in "123456" else 0
        is_inline = name in _INLINE
        if event == "start":
            if name in _SILENT or _is_hidden(element):
                walker.skip_subtree()
            elif name == "table" and _is_of_rows(element):
                yield from flush()
                yield Block("\n".join(_rows(element)), "table")
                walker.skip_subtree()
            else:
                if name == "br":
                    text.append("\v")
                elif not is_inline:
                    yield from flush()
                    text += ["- "] if name == "li" else []
                is_kept = is_kept or name == "pre"
                text.append(_said(element.text, is_kept))
        else:
            if not is_inline and name != "br":
                yield from flush(level)
            is_kept = is_kept and name != "pre"
            text.append(_said(element.tail, is_kept))
    yield from flush()


def _is_hidden(element: Any) -> bool:
    style = element.get("style") or ""
    is_around = element.get("role") in _ROLES or "mw-editsection" in (element.get("class") or "")
    return is_around or "hidden" in element.attrib or bool(_NO_DISPLAY.search(style))


def _name(element: Any) -> str:
    return element.tag.rpartition("}")[2].lower() if isinstance(element.tag, str) else ""


def _said(text: str | None, is_kept: bool) -> str:
    return (text or "") if is_kept else _SPACE.sub(" ", text or "")


def _lines(text: str) -> str:
    """One space between words; a line for each break."""
    return "\n".join(" ".join(line.split(" ")).strip() for line in _spaced(text).split("\v"))


def _spaced(text: str) -> str:
    return _SPACE.sub(" ", text).strip()


def _is_of_rows(table: Any) -> bool:
    """Whether a table has rows, and no other table in them: those lay out a page."""
    names = {_name(each) for each in table.iterdescendants()}
    return "tr" in names and "table" not in names


def _rows(table: Any) -> Iterator[str]:
    for row in table.iter():
        name = _name(row)
        if name == "caption":
            yield _spaced("".join(row.itertext()))
        if name == "tr":
            cells = [each for each in row if _name(each) in ("td", "th")]
            said = [_spaced("".join(_pieces(cell))) for cell in cells]
            if any(said):
                yield " | ".join(said)


def _pieces(cell: Any) -> Iterator[str]:
    """The text of a cell on one line: where something but a part of the line begins, a space."""
    from lxml import etree

    walker = etree.iterwalk(cell, events=("start", "end"))
    for event, element in walker:
        if event == "start" and (_name(element) in _SILENT or _is_hidden(element)):
            walker.skip_subtree()
        elif event == "start":
            yield ("" if _name(element) in _INLINE else " ") + (element.text or "")
        elif element is not cell:
            yield ("" if _name(element) in _INLINE else " ") + (element.tail or "")
