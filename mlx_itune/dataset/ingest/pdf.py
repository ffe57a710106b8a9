"""PDF -> blocks, by PDFium: lines with their place and size; of those, headings and paragraphs.
What runs along at the edges of pages goes; pages that are pictures are named."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from mlx_itune.dataset.ingest.passages import Block, Kind
from mlx_itune.kit.errors import DataError
from mlx_itune.kit.files import open_regular
from mlx_itune.kit.wording import count

_TAIL_BYTES = 2048
_MOST_PAGES, _MOST_CHARACTERS = 20_000, 100_000_000
# Rows of lines at either edge of a page that may be a running header or footer.
_EDGE = 2
_SENTENCE_END = re.compile(r"[.!?:;][\"')\]\u201d\u2019]*$")
_BULLETS = "•‣▪●○◦·–*-"
_ITEM = re.compile(rf"(?:[{_BULLETS}]|\(?(?:\d{{1,3}}|[a-z])[.)])\s")
_HYPHENATED = re.compile(r"([^\W\d_]{2,})[-\u2010]\n([^\W\d_]{2,})")
# Before these parts of words a hyphen at the end of a line is one of spelling.
_COMPOUNDS = frozenset("self well non ex half all cross long short high low real one two".split())
_NUMBER = re.compile(r"[^\w\n]*\d+[^\w\n]*")
_ROMAN = re.compile(r"[ivxlc]+", re.IGNORECASE)
# PDFium has no line end behind a hyphen at which a word goes on, but a sign in its place.
_LINE = re.compile("[^\r\n\x02\ufffe]+[\x02\ufffe]?")
_DIVIDED = re.compile("[\x02\ufffe]")
# Letters that have no character: private use, replacement, controls.
_NO_LETTERS = re.compile("[\ue000-\uf8ff\ufffd\0-\x01\x03-\x08]")


class _Line(NamedTuple):
    """In points from the lower left; weight: of its letters, 400 is usual, the lighter end counts;
    cells: what stands far apart in it, with the places where they begin."""

    text: str
    page: int
    left: float
    right: float
    bottom: float
    height: float
    weight: int
    cells: tuple[tuple[float, str], ...]


def read_pdf(path: Path, note: Callable[[str], None]) -> Iterator[Block]:
    """Headings, paragraphs and rows with their pages. Raises DataError for a document that is
    encrypted, damaged, cut off, or pictures alone."""
    import pypdfium2

    with open_regular(path, DataError) as file:
        file.seek(max(file.seek(0, 2) - _TAIL_BYTES, 0))
        if b"%%EOF" not in file.read():
            raise DataError("is cut off: its end is missing", hint="get a whole copy")
    try:
        document = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise DataError("is encrypted", hint="save it without a password") from error
        raise DataError(f"is damaged: {error}") from error
    if len(document) > _MOST_PAGES:
        raise DataError(f"has more than {_MOST_PAGES:,} pages", hint="divide it")
    pages: list[list[_Line]] = []
    silent: list[int] = []
    characters = 0
    for number in range(1, len(document) + 1):
        try:
            lines = [*_lines(document[number - 1], number)]
        except pypdfium2.PdfiumError:
            lines = []
        text = "".join(line.text for line in lines)
        if len(_NO_LETTERS.findall(text)) > 0.2 * len(text):
            lines = []
        characters += len(text)
        if characters > _MOST_CHARACTERS:
            raise DataError(f"has more than {_MOST_CHARACTERS:,} characters", hint="divide it")
        silent += [] if lines else [number]
        pages.append(lines)
    if len(silent) == len(pages):
        what = f"has no text on its {count(len(pages), 'page')}: scanned?"
        raise DataError(what, hint="recognise its text first (OCR)")
    if silent:
        note(f"{_named(silent)}: no text; scanned, empty, or letters that stand for no character")
    running = _running(pages)
    if running:
        told = count(len(running), "line")
        note(f"{told} left out: running headers, footers, page numbers")
    kept = [line for lines in pages for line in lines if line not in running]
    yield from _blocks([*_with_rows(kept)])


def _lines(page: Any, number: int) -> Iterator[_Line]:
    """In the order of the page's content, which is nearly always that of reading."""
    text_page = page.get_textpage()
    text = text_page.get_text_range()
    for found in _LINE.finditer(text):
        piece, boxes = found[0], _Boxes(text_page, found.start())
        told = _DIVIDED.sub("-", piece).strip()
        if not told:
            continue
        first, last = boxes.at(len(piece) - len(piece.lstrip())), boxes.at(len(piece.rstrip()) - 1)
        weight = min(boxes.weight(0), boxes.weight(len(piece) - 1))
        # The sign before an item, or code within a sentence, is often of another font.
        height = max(first.top - first.bottom, last.top - last.bottom, 0.1)
        yield _Line(
            told, number, first.left, last.right, first.bottom, height, weight, boxes.cells(piece)
        )
    text_page.close()
    page.close()


class _Boxes:
    """Where the characters of a line are."""

    def __init__(self, text_page: Any, start: int) -> None:
        from pypdfium2 import raw

        self._raw: Any = raw
        self._page, self._start = text_page, start

    def _index(self, at: int) -> int:
        return int(self._raw.FPDFText_GetCharIndexFromTextIndex(self._page, self._start + at))

    def at(self, at: int) -> Any:
        box = self._raw.FS_RECTF()
        self._raw.FPDFText_GetLooseCharBox(self._page, self._index(at), box)
        return box

    def weight(self, at: int) -> int:
        return int(self._raw.FPDFText_GetFontWeight(self._page, self._index(at)))

    def cells(self, text: str) -> tuple[tuple[float, str], ...]:
        """The parts of a line between which more than a letter would fit; more than half of one,
        where its other words stand closer."""
        spaces = [found.span() for found in re.finditer(r"(?<=\S) +(?=\S)", text)]
        gaps = []
        for start, end in spaces:
            before, after = self.at(start - 1), self.at(end)
            gaps.append((after.left - before.right) / max(before.top - before.bottom, 1))
        closest = min(gaps, default=0.0) if len(gaps) > 1 else 0.0
        cells, begin = [], 0
        for gap, (start, end) in zip(gaps, spaces, strict=True):
            is_wide = gap > 1.2 or (gap > 0.6 and gap > 1.8 * closest)
            if is_wide and not _ITEM.fullmatch(text[begin:end]):
                cells.append((self.at(begin).left, text[begin:start]))
                begin = end
        return (*cells, (self.at(begin).left, text[begin:].rstrip()))


def _running(pages: Sequence[Sequence[_Line]]) -> set[_Line]:
    """Lines at the edges of pages that stand in one place on three of them (of fewer, on all): the
    same, or the same but for a number that goes with the pages."""
    seen: Counter[tuple[str, int]] = Counter()
    keys: dict[_Line, set[tuple[str, int]]] = {}
    for lines in pages:
        edges = {place for rows in _edges(lines) for place in rows}
        for line in lines:
            if line.bottom in edges:
                keys[line] = {(text, round(line.bottom / 12)) for text in _spellings(line)}
                seen.update(keys[line])
    enough = max(2, min(3, sum(map(bool, pages))))
    return {
        line
        for line, found in keys.items()
        if max(seen[key] for key in found) >= (2 if _NUMBER.fullmatch(line.text) else enough)
    }


def _edges(lines: Sequence[_Line]) -> Iterator[Sequence[float]]:
    """Of the lowest and of the highest rows of a page, those that stand off from the
    others or have letters of another size."""
    heights = {line.bottom: line.height for line in lines}
    upwards = sorted(heights)
    for rows in (upwards, upwards[::-1]):
        for at, (row, inner) in enumerate(pairwise(rows[: _EDGE + 1]), 1):
            differ = abs(heights[inner] - heights[row]) > 0.15 * heights[row]
            if differ or abs(inner - row) > 1.4 * heights[row]:
                yield rows[:at]
                break


def _spellings(line: _Line) -> Iterator[str]:
    """A line as it is, and with each of its numbers as its distance from the page's."""
    yield line.text
    for number in [*re.finditer(r"\d{1,6}", line.text)][:4]:
        distance, (start, end) = int(number[0]) - line.page, number.span()
        yield f"{line.text[:start]}#{distance}{line.text[end:]}"
    if _ROMAN.fullmatch(line.text):
        values = [
            dict(zip("ivxlc", (1, 5, 10, 50, 100), strict=True))[c] for c in line.text.lower()
        ]
        signed = [v if v >= max(values[at:]) else -v for at, v in enumerate(values)]
        yield f"roman {sum(signed) - line.page}"


def _blocks(lines: Sequence[_Line]) -> Iterator[Block]:
    words = _vocabulary("\n".join(line.text for line in lines))
    sizes, weights = Counter[float](), Counter[int]()
    for line in lines:
        sizes[_size(line)] += len(line.text)
        weights[line.weight] += len(line.text)
    size, weight = (max(c, key=lambda k: c[k], default=0) for c in (sizes, weights))
    larger = sorted({s for s in sizes if s > 1.12 * size}, reverse=True)
    for group in _groups(lines):
        first, text = group[0], "\n".join(line.text for line in group)
        short = len(group) <= 3 and len(text) <= 200 and any(map(str.isalpha, text))
        is_bold = all(line.weight > 1.5 * max(weight, 1) for line in group)
        is_heading = short and "|" not in text and text[0] not in _BULLETS
        if is_heading and _size(first) > 1.12 * size:
            level = min(6, 1 + larger.index(_size(first)))
        elif is_heading and is_bold and not re.search(r"[.,;:!?]$", text):
            level = min(6, 1 + len(larger))
        else:
            level = 0
        said = " ".join(_whole(text, words).split("\n"))
        kind: Kind = "heading" if level else "table" if " | " in text else "text"
        yield Block(said, kind, level, first.page)


def _with_rows(lines: Sequence[_Line]) -> Iterator[_Line]:
    """Lines, with bars between the cells of those that are rows of a table. Words of a justified
    line may stand as far apart, but not below those of the next one."""
    starts = [[start for start, _ in line.cells[1:]] for line in lines]
    for at, line in enumerate(lines):
        beside = starts[max(at - 1, 0) : at] + starts[at + 1 : at + 2]
        alike = any(abs(a - b) < 3 for other in beside for a in other for b in starts[at])
        same = len(line.cells) > 2 and any(len(o) == len(starts[at]) for o in beside)
        is_row = alike or same
        yield line._replace(text=" | ".join(t for _, t in line.cells)) if is_row else line


def _size(line: _Line) -> float:
    return round(2 * line.height) / 2


def _groups(lines: Sequence[_Line]) -> Iterator[list[_Line]]:
    """Lines that are one paragraph, heading or row together."""
    steps = Counter(
        round(a.bottom - b.bottom, 0)
        for a, b in pairwise(lines)
        if 0 < a.bottom - b.bottom < 3 * a.height
    )
    usual = max(steps, key=lambda step: steps[step], default=0.0)
    right = max((line.right for line in lines), default=0.0)
    group: list[_Line] = []
    for line in lines:
        if group and _parts(group, line, usual, right):
            yield group
            group = []
        group.append(line)
    if group:
        yield group


def _parts(group: Sequence[_Line], line: _Line, usual: float, right: float) -> bool:
    """Whether a line begins a block of its own behind these."""
    last = group[-1]
    step = last.bottom - line.bottom
    if abs(_size(last) - _size(line)) > 0.12 * last.height or (last.weight > 1.5 * line.weight):
        return True
    if " | " in last.text or " | " in line.text or _ITEM.match(line.text):
        return True
    ends = bool(_SENTENCE_END.search(last.text))
    if line.page != last.page or step < 0:
        # The next page or column: a sentence may go on there.
        return ends or not line.text[0].islower()
    is_short = last.right < right - 8 * last.height and ends
    is_indented = line.left > last.left + 0.8 * line.height and (len(group) > 1 or ends)
    return step > max(1.3 * usual, 1.25 * line.height) or is_short or is_indented


def _whole(text: str, words: frozenset[str]) -> str:
    """Words that a line end has divided in one piece; a hyphen stays where spelling wants it, or
    where the document spells the word so elsewhere."""

    def join(found: re.Match[str]) -> str:
        first, rest = found[1], found[2]
        spelled = f"{first}-{rest}"
        keeps = first.lower() in _COMPOUNDS or spelled.lower() in words or not rest[0].islower()
        return spelled if keeps and (first + rest).lower() not in words else first + rest

    return _HYPHENATED.sub(join, text)


def _vocabulary(text: str) -> frozenset[str]:
    """The words of a text, compounds in one piece, in small letters."""
    return frozenset(re.findall(r"\w+(?:-\w+)*", text.lower()))


def _named(pages: Sequence[int]) -> str:
    """Pages as people name them: "page 3", "pages 3-5, 9"."""
    spans: list[list[int]] = []
    for page in pages:
        if spans and spans[-1][-1] == page - 1:
            spans[-1][1:] = [page]
        else:
            spans.append([page])
    told = ", ".join("-".join(map(str, span)) for span in spans)
    return f"page{'s' * (len(pages) > 1)} {told}"
