"""PDF: the text of its pages by PDFium, without running headers, joined into paragraphs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

from mlx_itune.dataset.ingest.passages import Block
from mlx_itune.kit.errors import DataError
from mlx_itune.kit.wording import count

_MOST_PAGES, _MOST_CHARACTERS = 20_000, 100_000_000
# Lines at the top and the bottom of a page that may be repeated on others.
_EDGE_LINES, _LEAST_PAGES, _LEAST_SHARE = 2, 3, 0.4
_NUMBER = re.compile(r"\W*(?:page|seite|p\.|s\.)?\s*\d+(?:\s*(?:of|von|/|sur|de)\s*\d+)?\W*", re.I)
_ITEM = re.compile(r"(?:[•‣▪●○◦–*-]|\(?\d{1,3}[.)])\s")
# PDFium's sign for a hyphen at the end of a line, and hyphens that it leaves alone.
_HYPHENS = "\ufffe\u0002\u00ad"
_SHORT, _SHORT_SENTENCE = 0.75, 0.9
_LARGE, _MOST_HEADING = 1.15, 200


class _Line(NamedTuple):
    text: str
    page: int
    size: float


def read_pdf(path: Path, note: Callable[[str], None]) -> Iterator[Block]:
    """Paragraphs with their pages; large lines are headings. Raises DataError for one that is
    encrypted, damaged, or has no text."""
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise DataError("is encrypted", hint="save it without a password") from error
        raise DataError(f"is damaged: {error}") from error
    if len(document) > _MOST_PAGES:
        raise DataError(f"has more than {_MOST_PAGES:,} pages", hint="divide it")
    pages: list[list[_Line]] = []
    characters, silent = 0, 0
    for number in range(len(document)):
        try:
            lines = _lines_of(document[number], number + 1)
        except pypdfium2.PdfiumError:
            lines = []
        characters += sum(len(line.text) for line in lines)
        if characters > _MOST_CHARACTERS:
            raise DataError(f"has more than {_MOST_CHARACTERS:,} characters", hint="divide it")
        silent += not lines
        pages.append(lines)
    if silent == len(pages):
        what = f"has no text on its {count(len(pages), 'page')}: scanned?"
        raise DataError(what, hint="recognise its text first (OCR)")
    if silent:
        note(f"{silent} of {count(len(pages), 'page')} without text: scanned or empty")
    running = _running(pages)
    if running:
        left_out = sum(len(each) for each in running.values())
        note(f"{count(left_out, 'line')} left out: running headers, footers, page numbers")
    kept = [
        [line for n, line in enumerate(lines) if n not in running.get(p, ())]
        for p, lines in enumerate(pages)
    ]
    yield from _blocks(kept)


def _lines_of(page: object, number: int) -> list[_Line]:
    from pypdfium2 import raw

    text = page.get_textpage()  # type: ignore[attr-defined]
    said = text.get_text_range()
    lines, at = [], 0
    for line in said.split("\n"):
        # Where its first letter is, for the size of its letters.
        first = at + len(line) - len(line.lstrip())
        if stripped := line.strip():
            lines.append(_Line(stripped, number, raw.FPDFText_GetFontSize(text.raw, first)))
        at += len(line) + 1
    text.close()
    page.close()  # type: ignore[attr-defined]
    return lines


def _running(pages: list[list[_Line]]) -> dict[int, set[int]]:
    """By page, which lines are on many pages at the same edge, or are its number."""

    def edges(lines: list[_Line]) -> Iterator[tuple[int, tuple[bool, str]]]:
        for n, line in enumerate(lines):
            at_top, at_end = n < _EDGE_LINES, n >= len(lines) - _EDGE_LINES
            if at_top or at_end:
                yield n, (at_top, re.sub(r"\d+", "#", line.text.casefold()))

    seen = Counter(sign for lines in pages for sign in {sign for _, sign in edges(lines)})
    least = max(_LEAST_PAGES, _LEAST_SHARE * len(pages))
    found: dict[int, set[int]] = {}
    for number, lines in enumerate(pages):
        for n, sign in edges(lines):
            is_number = len(pages) > 1 and _NUMBER.fullmatch(lines[n].text)
            if seen[sign] >= least or is_number:
                found.setdefault(number, set()).add(n)
    return found


def _blocks(pages: list[list[_Line]]) -> Iterator[Block]:
    # The size of most letters is the body's.
    sizes = [
        each.size for lines in pages for each in lines for _ in range(len(each.text) // 20 + 1)
    ]
    body = median(sizes) if sizes else 0.0
    large = sorted({round(s, 1) for s in sizes if s > _LARGE * body}, reverse=True)
    text, page, was_full = "", 0, False
    for lines in pages:
        widths = sorted(len(line.text) for line in lines)
        width = widths[int(0.9 * len(widths))] if widths else 0
        for line in lines:
            is_heading = line.size > _LARGE * body and len(line.text) <= _MOST_HEADING
            goes_on = was_full and not _ITEM.match(line.text) and not is_heading
            if text and not goes_on:
                yield Block(text, page=page)
                text = ""
            if is_heading:
                level = min(large.index(round(line.size, 1)) + 1, 6)
                yield Block(line.text, "heading", level, line.page)
                was_full = False
                continue
            page = page if text else line.page
            text = _joined(text, line.text)
            # The last line of a paragraph is shorter than those above it.
            least = _SHORT_SENTENCE if line.text[-1] in ".!?:" else _SHORT
            was_full = len(line.text) >= least * width
    if text:
        yield Block(text, page=page)


def _joined(text: str, line: str) -> str:
    """Two lines as one; a word that was cut between them is whole again."""
    if not text:
        return line
    if text[-1] in _HYPHENS:
        return text[:-1] + line
    if text[-1] in "-‐" and text[-2:-1].isalpha() and line[:1].islower():
        return text[:-1] + line
    return f"{text} {line}"
