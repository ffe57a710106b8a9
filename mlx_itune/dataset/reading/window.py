"""A window of text that slides over a long file."""

from __future__ import annotations

import codecs
import re

from mlx_itune.dataset.reading.stream import ByteStream

# What is kept before the place that is read, for what a row begins with.
LEAD_CHARS = 256
_STEP_BYTES = 1 << 18
_SPACE = re.compile(r"[ \t\r\n]*")


class Window:
    """The text of a stream around `pos`, as far as it has been asked for.

    Bytes that are not UTF-8 are lone surrogates in it. `line` and `byte` are where `pos` is.
    """

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text = ""
        self.pos = 0
        self.line = 1
        self.byte = stream.start
        self.ended = False

    def more(self) -> bool:
        """Read as much again as is held; False at the end. What is far before `pos` is dropped."""
        keep = max(0, self.pos - LEAD_CHARS)
        held = len(self.text) - keep
        pieces = [self.text[keep:]]
        wanted = max(_STEP_BYTES, self.held)
        while wanted > 0 and (chunk := self._stream.read()):
            pieces.append(self._decoder.decode(chunk))
            wanted -= len(chunk)
        if wanted > 0:
            self.ended = True
            pieces.append(self._decoder.decode(b"", final=True))
        self.text = "".join(pieces)
        self.pos -= keep
        return not self.ended or len(self.text) > held

    @property
    def held(self) -> int:
        """The characters from `pos` on."""
        return len(self.text) - self.pos

    def advance(self, to: int) -> str:
        """Move to another place further on; the text between."""
        passed = self.text[self.pos : to]
        self.line += passed.count("\n")
        self.byte = self.byte_at(to)
        self.pos = to
        return passed

    def byte_at(self, at: int) -> int:
        """The byte of the file, from 0, at a place after `pos`."""
        passed = self.text[self.pos : at]
        if not passed.isascii():
            return self.byte + len(passed.encode("utf-8", "surrogateescape"))
        return self.byte + len(passed)

    def skip_space(self) -> str:
        """Move to the next character that is not white space; nothing at the end."""
        while True:
            match = _SPACE.match(self.text, self.pos)
            assert match is not None
            self.advance(match.end())
            if self.pos < len(self.text):
                return self.text[self.pos]
            if self.ended or not self.more():
                return ""
