"""A window of text that slides over a long file."""

from __future__ import annotations

import codecs
import re

from mlx_itune.dataset.reading.stream import ByteStream

# What is kept before the place that is read, for what a row begins with.
LEAD_CHARS = 256
_STEP_BYTES = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]*")


class Window:
    """The text of a stream around the index `pos`, as far as it has been asked for.

    Bytes that are not UTF-8 are lone surrogates in it.
    """

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text = ""
        self.pos = 0
        self.ended = False
        # The line and byte of an index that has been passed.
        self._line, self._byte, self._counted = 1, stream.start, 0

    def more(self) -> bool:
        """Read as much again as is held; False at the end. What is far before `pos` is dropped."""
        self._count()
        keep = max(0, self.pos - LEAD_CHARS)
        pieces = [self.text[keep:]]
        kept = len(pieces[0])
        wanted = max(_STEP_BYTES, self.held)
        while wanted > 0 and (chunk := self._stream.read()):
            pieces.append(self._decoder.decode(chunk))
            wanted -= len(chunk)
        if wanted > 0:
            self.ended = True
            pieces.append(self._decoder.decode(b"", final=True))
        self.text = "".join(pieces)
        self.pos -= keep
        self._counted = self.pos
        return not self.ended or len(self.text) > kept

    @property
    def held(self) -> int:
        """The characters from `pos` on."""
        return len(self.text) - self.pos

    @property
    def line(self) -> int:
        """The line of the file that `pos` is on."""
        self._count()
        return self._line

    @property
    def byte(self) -> int:
        """The byte of the file, from 0, that `pos` is at."""
        self._count()
        return self._byte

    def skip_space(self) -> str:
        """Move to the next character that is not white space; nothing at the end."""
        while True:
            match = _SPACE.match(self.text, self.pos)
            self.pos = match.end() if match else self.pos
            if self.pos < len(self.text):
                return self.text[self.pos]
            if self.ended or not self.more():
                return ""

    def at(self, pattern: re.Pattern[str], skip: int = 0) -> re.Match[str] | None:
        """The match of a pattern that looks at less than LEAD_CHARS, here or a little further."""
        if self.held < LEAD_CHARS + skip and not self.ended:
            self.more()
        return pattern.match(self.text, self.pos + skip)

    def _count(self) -> None:
        if self._counted < self.pos:
            passed = self.text[self._counted : self.pos]
            self._line += passed.count("\n")
            self._byte += size(passed)
            self._counted = self.pos


def size(text: str) -> int:
    """The bytes of a piece of a window's text."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))
