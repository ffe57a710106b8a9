"""Blocks of a document, in order -> its text, and the passages that are slices of it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["text", "heading", "table"]
# Between two blocks of a text.
GAP = "\n\n"
_SENTENCE_ENDS = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|\n+|(?<=[。！？])")
# What a text has that no reader of JSON or of a terminal should meet.
_UNWANTED = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff]")


class Block(NamedTuple):
    """A paragraph, heading or table. level: of a heading, from 1; page: of a PDF or a slide."""

    text: str
    kind: Kind = "text"
    level: int = 0
    page: int | None = None


@dataclass(frozen=True)
class Passage:
    """`text` is the source's extracted text from character `start` to `end`. page: where it begins;
    heading: those above it, "Setup > Network"; sha256: of the source file."""

    id: str
    text: str
    source: str
    page: int | None
    heading: str | None
    start: int
    end: int
    sha256: str


class Pieces:
    """Passages of one document, made as its blocks come. `text` takes the extracted text piece by
    piece, so that neither is ever held whole."""

    def __init__(self, source: str, sha256: str, most_characters: int) -> None:
        self._source, self._sha256, self._most = source, sha256, most_characters
        self._headings: list[tuple[int, str]] = []
        self._kept: list[Block] = []
        self._start = 0

    def of(self, blocks: Iterable[Block]) -> Iterator[tuple[str, Passage | None]]:
        """(text, the passage that it is); between passages the gap alone."""
        for block in blocks:
            text = _UNWANTED.sub("", block.text).strip()
            if not text:
                continue
            block = block._replace(text=text)
            is_heading = block.kind == "heading"
            # A heading begins a passage, and takes what follows it along.
            has_body = any(each.kind != "heading" for each in self._kept)
            if (is_heading and has_body) or self._size + len(text) > self._most:
                yield from self._passage()
            if is_heading:
                above = [each for each in self._headings if each[0] < block.level]
                self._headings = [*above, (block.level, " ".join(text.split()))]
            if len(text) <= self._most:
                self._kept.append(block)
                continue
            for piece in _split(text, self._most):
                self._kept.append(block._replace(text=piece))
                yield from self._passage()
        yield from self._passage()

    @property
    def _size(self) -> int:
        return sum(len(block.text) + len(GAP) for block in self._kept)

    def _passage(self) -> Iterator[tuple[str, Passage | None]]:
        if not self._kept:
            return
        if self._start:
            yield GAP, None
            self._start += len(GAP)
        text = GAP.join(block.text for block in self._kept)
        end = self._start + len(text)
        at = f"{self._source}\0{self._start}\0{end}\0{text}"
        yield (
            text,
            Passage(
                id=f"p-{hashlib.sha256(at.encode()).hexdigest()[:12]}",
                text=text,
                source=self._source,
                page=self._kept[0].page,
                heading=" > ".join(text for _, text in self._headings) or None,
                start=self._start,
                end=end,
                sha256=self._sha256,
            ),
        )
        self._start, self._kept = end, []


def _split(text: str, most: int) -> Iterator[str]:
    """Pieces of at most so many characters, cut behind a sentence or line, else a word."""
    while len(text) > most:
        ends = [found.end() for found in _SENTENCE_ENDS.finditer(text, 0, most)]
        end = ends[-1] if ends and ends[-1] > most // 2 else text.rfind(" ", most // 2, most) + 1
        end = end or most
        yield text[:end].rstrip()
        text = text[end:].lstrip()
    yield text
