"""Word, PowerPoint and EPUB: XML and HTML in a ZIP archive, read with bounds.

ECMA-376 part 1 (WordprocessingML 17, PresentationML 19), EPUB 3.3 section 4.
"""

from __future__ import annotations

import posixpath
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mlx_itune.dataset.ingest.html import read_html
from mlx_itune.dataset.ingest.passages import Block
from mlx_itune.kit.errors import DataError

_MEMBER_BYTES, _ALL_BYTES = 128 << 20, 512 << 20
_HEADING = re.compile(r"(heading|title|subtitle)\s*([1-9])?", re.IGNORECASE)
# Word on the web calls it otherwise.
_MAIN, _DOCUMENT = "word/document.xml", re.compile(r"word/document\d*\.xml")
_SKIPPED = frozenset(("Fallback", "del", "moveFrom", "instrText", "delText"))


class Archive:
    """The members of a ZIP file, each and all of bounded size. Raises DataError for what is none,
    or is encrypted."""

    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise DataError(f"is damaged: {error}") from error
        self.names = set(self._zip.namelist())
        self._read_bytes = 0

    def read(self, name: str) -> bytes:
        """A member's bytes."""
        if name not in self.names:
            raise DataError(f"is damaged: {name} is missing")
        about = self._zip.getinfo(name)
        if about.flag_bits & 1:
            raise DataError("is encrypted", hint="save it without a password")
        try:
            with self._zip.open(about) as member:
                data = member.read(_MEMBER_BYTES + 1)
        except Exception as error:
            raise DataError(f"is damaged: {name}: {error}") from error
        self._read_bytes += len(data)
        if len(data) > _MEMBER_BYTES or self._read_bytes > _ALL_BYTES:
            raise DataError(f"unpacks to more than {_ALL_BYTES >> 20} MB", hint="divide it")
        return data

    def tree(self, name: str) -> Any:
        """A member's XML; no entity is followed."""
        from lxml import etree

        parser = etree.XMLParser(
            resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False,
            remove_comments=True, remove_pis=True,
        )  # fmt: skip
        try:
            return etree.fromstring(self.read(name), parser)
        except etree.XMLSyntaxError as error:
            raise DataError(f"is damaged: {name}: {error}") from error

    def related(self, name: str) -> dict[str, str]:
        """The members that a member refers to, by the reference's id."""
        folder, _, own = name.rpartition("/")
        listed = f"{folder}/_rels/{own}.rels" if folder else f"_rels/{own}.rels"
        if listed not in self.names:
            return {}
        return {
            each.get("Id", ""): posixpath.normpath(posixpath.join(folder, target)).lstrip("/")
            if not (target := each.get("Target", "")).startswith("/")
            else target.lstrip("/")
            for each in self.tree(listed)
            if each.get("TargetMode") != "External"
        }


def read_docx(path: Path) -> Iterator[Block]:
    """Headings, paragraphs, tables; a footnote stands behind the paragraph that refers to it.
    Headers and footers of pages are parts of their own, and not read. Raises DataError."""
    archive = Archive(path)
    main = next((n for n in archive.related("").values() if _DOCUMENT.fullmatch(n)), _MAIN)
    levels = _heading_levels(archive)
    notes = {
        f"{kind}:{_attribute(note, 'id')}": _text(note)
        for kind in ("footnote", "endnote")
        if f"word/{kind}s.xml" in archive.names
        for note in archive.tree(f"word/{kind}s.xml")
        if _attribute(note, "type") not in ("separator", "continuationSeparator")
    }
    body = next((each for each in archive.tree(main) if _local(each) == "body"), None)
    for element in _unwrapped(body if body is not None else ()):
        if _local(element) == "tbl":
            yield Block("\n".join(_rows(element, "tr", "tc")), "table")
        elif _local(element) == "p":
            level = levels.get(_style(element), 0)
            yield Block(_text(element), "heading", level) if level else Block(_text(element))
        for reference in element.iter():
            kind = _local(reference).removesuffix("Reference")
            if note := notes.get(f"{kind}:{_attribute(reference, 'id')}"):
                yield Block(note)


def read_pptx(path: Path) -> Iterator[Block]:
    """Slide by slide: its title, texts and tables, and what the speaker notes. Raises
    DataError."""
    archive = Archive(path)
    main = "ppt/presentation.xml"
    related = archive.related(main)
    slides = [
        related.get(each.get(key, ""), "")
        for each in archive.tree(main).iter()
        if _local(each) == "sldId"
        for key in each.attrib
        if key.endswith("}id")
    ]
    for page, slide in enumerate(slides, 1):
        for shape in _shapes(archive.tree(slide)):
            yield shape._replace(page=page)
        for name in archive.related(slide).values():
            if "/notesSlides/" in name:
                for shape in _shapes(archive.tree(name), notes=True):
                    yield shape._replace(page=page)


def read_epub(path: Path) -> Iterator[Block]:
    """Its documents in the order of reading. Raises DataError."""
    archive = Archive(path)
    if "META-INF/encryption.xml" in archive.names and "META-INF/rights.xml" in archive.names:
        raise DataError("is protected by DRM")
    container = archive.tree("META-INF/container.xml")
    roots = (e.get("full-path", "") for e in container.iter() if _local(e) == "rootfile")
    package = next(roots, "")
    book = archive.tree(package)
    # Its page of contents says nothing that the chapters do not.
    items = {
        e.get("id"): e.get("href", "")
        for e in book.iter()
        if _local(e) == "item" and "nav" not in e.get("properties", "").split()
    }
    for reference in book.iter():
        if _local(reference) == "itemref" and (href := items.get(reference.get("idref"))):
            href = unquote(href)
            yield from read_html(archive.read(posixpath.join(posixpath.dirname(package), href)))


def _local(element: Any) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _attribute(element: Any, name: str) -> str:
    return next((v for k, v in element.attrib.items() if k.rpartition("}")[2] == name), "")


def _unwrapped(elements: Any) -> Iterator[Any]:
    """Without the wrappers of content controls and tracked insertions."""
    for element in elements:
        if _local(element) in ("sdt", "sdtContent", "ins", "smartTag", "customXml", "moveTo"):
            yield from _unwrapped(element)
        else:
            yield element


def _text(element: Any) -> str:
    """What a paragraph says: its runs, with tabs and breaks; not what was deleted."""
    from lxml import etree

    said: list[str] = []
    walker = etree.iterwalk(element, events=("start", "end"))
    for event, each in walker:
        name = _local(each)
        if event == "start" and name in _SKIPPED:
            walker.skip_subtree()
        elif event == "start" and name == "t":
            said.append(each.text or "")
        elif event == "start" and name in ("tab", "br", "cr", "noBreakHyphen"):
            said.append({"tab": "\t", "noBreakHyphen": "-"}.get(name, "\n"))
        elif event == "end" and name == "p" and each is not element:
            said.append("\n")
    return "".join(said).strip()


def _rows(table: Any, row: str, cell: str) -> Iterator[str]:
    for line in _unwrapped(table):
        if _local(line) == row:
            cells = (each for each in _unwrapped(line) if _local(each) == cell)
            yield " | ".join(" ".join(_text(each).split()) for each in cells)


def _style(paragraph: Any) -> str:
    for each in paragraph.iter():
        if _local(each) == "pStyle":
            return _attribute(each, "val")
    return ""


def _heading_levels(archive: Archive) -> dict[str, int]:
    """The level of each style that is one of headings, by its id, which is translated."""
    if "word/styles.xml" not in archive.names:
        return {}
    levels: dict[str, int] = {}
    for style in archive.tree("word/styles.xml"):
        names = (_attribute(each, "val") for each in style if _local(each) == "name")
        bases = (_attribute(each, "val") for each in style if _local(each) == "basedOn")
        if found := _HEADING.fullmatch(next(names, "")):
            below = {"title": 0, "subtitle": 1}.get(found[1].lower(), int(found[2] or 1))
            levels[_attribute(style, "styleId")] = 1 + below
        elif base := levels.get(next(bases, "")):
            levels[_attribute(style, "styleId")] = base
    return levels


def _shapes(slide: Any, *, notes: bool = False) -> Iterator[Block]:
    """The texts of a slide; of notes, without the slide's number and picture."""
    for shape in slide.iter():
        if _local(shape) == "tbl":
            yield Block("\n".join(_rows(shape, "tr", "tc")), "table")
        if _local(shape) != "sp":
            continue
        kind = next((e.get("type", "") for e in shape.iter() if _local(e) == "ph"), "")
        if kind in ("sldNum", "dt", "ftr", "hdr", "sldImg"):
            continue
        body = next((each for each in shape if _local(each) == "txBody"), None)
        lines = [_text(each) for each in body if _local(each) == "p"] if body is not None else []
        text = "\n".join(line for line in lines if line)
        is_title = kind in ("title", "ctrTitle") and not notes
        yield Block(text, "heading", 1) if is_title else Block(text)
