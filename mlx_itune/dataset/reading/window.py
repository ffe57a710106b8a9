"""A window that slides over a long file, and a scanner that finds where a JSON value ends."""

from __future__ import annotations

import re

from mlx_itune.dataset.reading.stream import BLANK, ByteStream

_STEP_BYTES = 1 << 18
_MAX_STEP_BYTES = 1 << 23
_STRUCTURE = re.compile(rb'["{}\[\]]')
_SCALAR_END = re.compile(rb"[,\]}]")
_OPENER_OF = {0x7D: 0x7B, 0x5D: 0x5B}


class Window:
    """The bytes of a stream from `pos` on, as far as they have been asked for.

    Indexes are into `data`; `more` may move them: what lies before `pos` is dropped and `pos`
    becomes 0.
    """

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self.data = b""
        self.pos = 0
        self.ended = False
        self._base = stream.start
        self._line = 1
        self._counted = 0

    def more(self) -> bool:
        """Read on, as much again as is held, within reason; False at the end of the file."""
        wanted = min(max(_STEP_BYTES, len(self.data) - self.pos), _MAX_STEP_BYTES)
        chunks: list[bytes] = []
        while wanted > 0 and (chunk := self._stream.read()):
            chunks.append(chunk)
            wanted -= len(chunk)
        if not chunks:
            self.ended = True
            return False
        self._count_lines()
        self.data = b"".join((self.data[self.pos :], *chunks))
        self._base += self.pos
        self._counted -= self.pos
        self.pos = 0
        return True

    @property
    def offset(self) -> int:
        """The byte of the file that `pos` is at."""
        return self._base + self.pos

    @property
    def line(self) -> int:
        """The line of the file that `pos` is on."""
        self._count_lines()
        return self._line

    def skip_space(self) -> bytes:
        """Move to the next byte that is not white space; the byte, or nothing at the end."""
        while True:
            data, pos = self.data, self.pos
            size = len(data)
            while pos < size and data[pos] in BLANK:
                pos += 1
            self.pos = pos
            if pos < size:
                return data[pos : pos + 1]
            if not self.more():
                return b""

    def _count_lines(self) -> None:
        self._line += self.data.count(b"\n", self._counted, self.pos)
        self._counted = self.pos


class Scan:
    """Follows one JSON value from its first byte to its last, strings and all.

    `run` goes on where it stopped, so that a value may arrive in pieces. `end` is the index after
    the value; `is_lost` means that its brackets do not match.
    """

    def __init__(self, start: int) -> None:
        self.end: int | None = None
        self.is_lost = False
        self._at = start
        self._start = start
        self._open = bytearray()
        self._in_string = False

    def moved(self, by: int) -> None:
        """The window has dropped `by` bytes before the value."""
        self._at -= by
        self._start -= by

    def run(self, data: bytes, stop: int, *, is_all: bool = False) -> bool:
        """Scan up to `stop`; True when there is nothing more to find out.

        `is_all`: the file ends at `stop`, which is where a bare number may end too.
        """
        at = self._at
        if at == self._start and at < stop and data[at] not in b'{["':
            return self._run_scalar(data, stop, is_all)
        while at < stop:
            if self._in_string:
                found = data.find(b'"', at, stop)
                if found < 0:
                    break
                before = data[at:found]
                at = found + 1
                if (len(before) - len(before.rstrip(b"\\"))) % 2:
                    continue
                self._in_string = False
                if not self._open:
                    self.end = at
                    return True
                continue
            match = _STRUCTURE.search(data, at, stop)
            if match is None:
                at = stop
                break
            at = match.end()
            byte = data[at - 1]
            if byte == 0x22:
                self._in_string = True
            elif byte in b"{[":
                self._open.append(byte)
            elif self._open.pop() != _OPENER_OF[byte]:
                self.is_lost = True
                return True
            elif not self._open:
                self.end = at
                return True
        self._at = at
        return False

    def _run_scalar(self, data: bytes, stop: int, is_all: bool) -> bool:
        match = _SCALAR_END.search(data, self._start, stop)
        if match is None and not is_all:
            return False
        self.end = match.start() if match else stop
        while self.end > self._start and data[self.end - 1] in BLANK:
            self.end -= 1
        return True
