"""The bytes of a file, plain or gzip, in chunks or lines, told of as they are read; JSON in them.
Refused beyond bad syntax: a key that occurs twice in an object, NaN and infinities, NUL and lone
surrogates in strings, nesting over 254 levels."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from typing import Any, BinaryIO, NamedTuple

from mlx_itune.dataset.conversation import Fault, RowFault, origin_of
from mlx_itune.dataset.reading import encodings
from mlx_itune.kit.json_files import depth_of

# What is made of a chunk of this size stays in the processor's cache, and in memory that the
# allocator hands out again without asking the system: larger chunks take half as long again.
CHUNK_BYTES = 1 << 16
MAX_ROW_BYTES = 64 << 20
BLANK = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"
_TAIL_BYTES = 4096


class Record(NamedTuple):
    """A row as it stands in its file; `line` counts from 1. `row` counts the rows of the file,
    where several stand on one line."""

    value: dict[str, Any]
    line: int
    row: int | None = None

    def origin(self, file: str) -> str:
        """The address of the row."""
        return origin_of(file, self.line, self.row)


class ByteStream:
    """Chunks of an open file, as UTF-8. `head` is the first one, still to be read; a byte order
    mark is cut. `on_bytes` is told how many more bytes of the file have been read. A damaged gzip
    file ends early and says why in `broken`. Raises OSError, UsageError for no `encoding`."""

    def __init__(
        self,
        file: BinaryIO,
        on_bytes: Callable[[int], None] | None = None,
        encoding: str | None = None,
    ) -> None:
        self._file, self._on_bytes, self._told = file, on_bytes, 0
        self.broken: RowFault | None = None
        # Another encoding of tables is looked for until a text is seen that tells.
        self.may_be_legacy = False
        self.encoding: str | None = None
        self._codec: codecs.IncrementalDecoder | None = None
        self._lines_end = b"\n"
        is_gzip = file.read(2) == b"\x1f\x8b"
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        self.tail = b"" if is_gzip else file.read()
        file.seek(0)
        self._content: Any = gzip.GzipFile(fileobj=file) if is_gzip else file
        head = self._raw()
        self.is_whole = len(head) < CHUNK_BYTES
        if encoding is not None:
            name = encodings.checked(encoding)
            self._decode(encodings.utf16(head) or name if name == "utf-16" else name)
        elif (found := encodings.utf16(head)) is not None:
            self._decode(found)
        if self._codec is not None and head.startswith(encodings.UTF16_MARKS):
            head = head[2:]
        head = self._converted(head)
        if b"\r" in head[:-1] and b"\n" not in head:
            self._lines_end = b"\r"
            head = head.replace(b"\r", b"\n")
        self.has_bom = head.startswith(_BOM)
        self.start = len(_BOM) if self.has_bom else 0
        self.head = head[self.start :]
        self._pending: bytes | None = self.head

    def read(self) -> bytes:
        """The next chunk; nothing at the end."""
        chunk = self._next() if self._pending is None else self._pending
        self._pending = None
        if self._on_bytes is not None:
            reached = self._file.tell()
            self._on_bytes(reached - self._told)
            self._told = reached
        return chunk

    def lines(self) -> Iterator[tuple[int, int, bytes]]:
        """(number, first byte, line) of each line; lines end at b"\\n" only.

        Of one that is longer than MAX_ROW_BYTES, so many bytes and one more.
        """
        number, at = 0, self.start
        pieces: list[bytes] = []
        size = 0
        while chunk := self.read():
            *ends, rest = chunk.split(b"\n")
            for end in ends:
                number += 1
                yield number, at, b"".join((*pieces, end))[: MAX_ROW_BYTES + 1]
                at += size + len(end) + 1
                pieces, size = [], 0
            if size <= MAX_ROW_BYTES:
                pieces.append(rest)
            size += len(rest)
        if size:
            yield number + 1, at, b"".join(pieces)[: MAX_ROW_BYTES + 1]

    def guess_encoding(self) -> None:
        """From now on, what is not UTF-8 may be of an older system."""
        self.may_be_legacy = self._codec is None
        if self._pending and self.may_be_legacy:
            self.head = self._pending = self._converted(self._pending)

    def _decode(self, name: str) -> None:
        if name == "utf-8":
            return
        self.encoding = name
        lenient = "surrogatepass" if name.startswith("utf-16") else "surrogateescape"
        self._codec, self._errors = codecs.getincrementaldecoder(name)(lenient), lenient
        # Its end says nothing any more.
        self.tail = b""

    def _converted(self, chunk: bytes) -> bytes:
        if self._codec is None and self.may_be_legacy and not chunk.isascii():
            try:
                chunk.decode()
                self.may_be_legacy = False
            except UnicodeDecodeError as error:
                # A character may be cut at either end.
                if 3 < error.start < len(chunk) - 3 or len(chunk) < CHUNK_BYTES:
                    self.may_be_legacy = False
                    if name := encodings.legacy(chunk):
                        self._decode(name)
        if self._codec is None:
            return chunk
        try:
            text = self._codec.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            reason = f"the file is no {error.encoding}: {error.reason}"
            self.broken, text = RowFault("encoding", reason, "is it whole?"), ""
        return text.encode("utf-8", self._errors)

    def _next(self) -> bytes:
        raw = self._raw()
        chunk = self._converted(raw)
        while raw and not chunk:
            raw = self._raw()
            chunk = self._converted(raw)
        return chunk if self._lines_end == b"\n" else chunk.replace(b"\r", b"\n")

    def _raw(self) -> bytes:
        pieces: list[bytes] = []
        left = 0 if self.broken else CHUNK_BYTES
        try:
            while left and (piece := self._content.read1(left)):
                pieces.append(piece)
                left -= len(piece)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            reason = f"the compressed file is damaged: {error}"
            self.broken = RowFault("gzip", reason, "download it again")
        return b"".join(pieces)


def refuse_too_long(size: int) -> None:
    """Raise RowFault for a row that would not fit in memory with its neighbours."""
    if size > MAX_ROW_BYTES:
        reason = f"the row is longer than {MAX_ROW_BYTES >> 20} MiB"
        raise RowFault("row-size", reason, "split it, or look for a missing line break or bracket")


MAX_DEPTH = 254  # what orjson will write
BOM_FAULT = RowFault(
    "bom", "the file starts with a byte order mark", "save it as UTF-8 without a BOM"
)

_SPACE = BLANK.decode()
_STRANGE_ESCAPE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
_SURROGATE = re.compile("[\ud800-\udfff]")
_BYTE = re.compile("[\udc80-\udcff]")


def read_lines(stream: ByteStream, name: str) -> Generator[Record | Fault, None, int]:
    """A Record or Fault per line that is not blank; returns the number of lines."""
    strict, number = StrictDecoder(), 0
    if stream.has_bom:
        yield BOM_FAULT.at(name, 1)
    for number, at, raw in stream.lines():
        # The line that the mark spoils has had its fault.
        if raw.strip(BLANK) and not (stream.has_bom and number == 1):
            try:
                refuse_too_long(len(raw))
                yield Record(strict.row(raw, at), number)
            except RowFault as fault:
                yield fault.at(name, number)
    return max(number, int(stream.has_bom))


class StrictDecoder:
    """Decodes values one at a time. What is well formed but refused has an end all the same."""

    def __init__(self) -> None:
        self._refused: RowFault | None = None
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant, parse_float=self._float
        )

    def value_at(self, text: str, start: int) -> tuple[Any, int, RowFault | None]:
        """The value that begins at `start`, its end, and why it is refused if it is. Raises
        JSONDecodeError, which knows where, or RowFault for what is not JSON."""
        self._refused = None
        try:
            value, end = self._decoder.raw_decode(text, start)
        except json.JSONDecodeError:
            raise
        except RecursionError:
            raise _too_deep() from None
        except ValueError:
            raise RowFault("json", "a number with too many digits") from None
        brackets = text.count("[", start, end) + text.count("{", start, end)
        if brackets > MAX_DEPTH and depth_of(value) > MAX_DEPTH:
            return value, end, _too_deep()
        refused = self._refused
        if text.find("\\u", start, end) >= 0 and _STRANGE_ESCAPE.search(text, start, end):
            try:
                refuse_strange_text(value)
            except RowFault as fault:
                refused = refused or fault
        return value, end, refused

    def row(self, raw: bytes, at: int) -> dict[str, Any]:
        """The object that a line holds, whose first byte is the file's byte `at`, from 0. Raises
        RowFault."""
        text = decoded(raw, at)
        if text.startswith("\ufeff"):
            raise RowFault("bom", "a byte order mark before the row", "remove it")
        try:
            value, end, refused = self.value_at(text, len(text) - len(text.lstrip(_SPACE)))
            if text[end:].strip(_SPACE):
                raise json.JSONDecodeError("Extra data", text, end)
        except json.JSONDecodeError as error:
            byte = at + len(text[: error.pos].encode())
            raise syntax_fault(error, f"column {error.pos + 1}, byte {byte + 1}") from None
        return as_row(value, refused)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
            reason = f"the key {twice!r} occurs twice"
            self._refused = RowFault("duplicate-key", reason, "keep one of the two")
        return row

    def _constant(self, text: str) -> None:
        self._refused = RowFault("constant", f"{text} is not JSON", "write null")

    def _float(self, text: str) -> float:
        value = float(text)
        if value in (float("inf"), float("-inf")):
            self._refused = RowFault("json", f"the number {text[:20]} is too large")
        return value


def as_row(value: Any, refused: RowFault | None) -> dict[str, Any]:
    """A decoded value as a row. Raises RowFault for a refused one, or of another type."""
    if refused is not None:
        raise refused
    if not isinstance(value, dict):
        raise RowFault("not-an-object", "a row must be a JSON object")
    return value


def syntax_fault(error: json.JSONDecodeError, place: str) -> RowFault:
    """Why a text is not JSON, and what to do. `place`: where the error is in the file."""
    text, at = error.doc, error.pos
    here = text[at : at + 1]
    if here == "\x00":
        return _nul(place)
    if _BYTE.match(here):
        return _not_utf8(ord(here) - 0xDC00, place)
    hint = ""
    if error.msg.startswith("Extra data"):
        is_comma = text[at:].strip() == ","
        hint = "remove the comma after the row" if is_comma else "put each row on a line of its own"
    elif error.msg.startswith("Unterminated string") or not text[at : at + 4096].strip():
        hint = "the row is cut off, or a quote is missing"
    elif error.msg.startswith("Expecting property name") and here == "'":
        hint = "JSON wants double quotes"
    elif error.msg.startswith("Invalid control character"):
        hint = "write line breaks and tabs in strings as \\n and \\t"
    return RowFault("json", f"{error.msg} at {place} of the file", hint)


def decoded(raw: bytes, at: int = 0, *, one_line: bool = True) -> str:
    """`raw` as text. Raises RowFault for a NUL byte and for what is not UTF-8. `one_line`: it is a
    whole line, so that a fault can name the column too."""
    nul = raw.find(0)
    if nul >= 0:
        raise _nul(f"column {nul + 1}, " * one_line + f"byte {at + nul + 1}")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        column = f"byte {error.start + 1} of the line, " * one_line
        place = f"{column}byte {at + error.start + 1}"
        raise _not_utf8(raw[error.start], place) from None


def refuse_strange_text(value: Any) -> None:
    """Raise RowFault for NUL and lone surrogates in any string of a value."""
    if isinstance(value, str):
        if "\x00" in value:
            raise RowFault("nul", "a NUL character (\\u0000) in a string")
        if not value.isascii() and _SURROGATE.search(value):
            raise RowFault("surrogate", "half of a surrogate pair in a string")
    elif isinstance(value, dict):
        for pair in value.items():
            refuse_strange_text([*pair])
    elif isinstance(value, list):
        for item in value:
            refuse_strange_text(item)


def _nul(place: str) -> RowFault:
    hint = "save the file as UTF-8, if it is UTF-16"
    return RowFault("nul", f"a NUL byte at {place} of the file", hint)


def _not_utf8(byte: int, place: str) -> RowFault:
    message = f"0x{byte:02x} at {place} of the file is not UTF-8"
    return RowFault("utf-8", message, "save the file as UTF-8")


def _too_deep() -> RowFault:
    return RowFault("json", f"nested too deeply (more than {MAX_DEPTH} levels)")
