"""JSON lines: one row per line, whatever is wrong with the line before."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import orjson

from mlx_itune.dataset.faults import Fault, RowFault
from mlx_itune.dataset.reading.json_text import is_exact, strict
from mlx_itune.dataset.reading.record import Record, bom_fault, not_an_object, row_too_long
from mlx_itune.dataset.reading.stream import BLANK, MAX_ROW_BYTES, ByteStream


def read_lines(stream: ByteStream, name: str) -> Generator[Record | Fault, None, int]:
    """A Record or Fault per line that is not blank; returns the number of lines.

    Lines end at b"\\n" only. One that is longer than MAX_ROW_BYTES is a fault and not kept.
    """
    number = 0
    if stream.has_bom:
        yield bom_fault().at(name, 1)
    for at, lines in split_lines(stream):
        for raw in lines:
            number += 1
            if not raw or (number == 1 and stream.has_bom):
                at += 1 + len(raw)
                continue
            try:
                value = orjson.loads(raw)
                if value.__class__ is dict and is_exact(raw, value):
                    yield Record(value, number)
                    at += 1 + len(raw)
                    continue
            except (orjson.JSONDecodeError, orjson.JSONEncodeError, RecursionError):
                pass
            if raw.strip(BLANK):
                yield _judged(raw, at, name, number)
            at += 1 + len(raw)
    return max(number, int(stream.has_bom))


def split_lines(stream: ByteStream) -> Iterator[tuple[int, list[bytes]]]:
    """Lists of whole lines without their end, each with the byte that the first one starts at.

    Of a line longer than MAX_ROW_BYTES only the first bytes are kept: one more than that.
    """
    at = stream.start
    rest: list[bytes] = []
    size = 0
    while chunk := stream.read():
        lines = chunk.split(b"\n")
        if size <= MAX_ROW_BYTES:
            rest.append(lines[0])
        size += len(lines[0])
        if len(lines) == 1:
            continue
        first = b"".join(rest)[: MAX_ROW_BYTES + 1]
        yield at, [first]
        at += size + 1
        rest = [lines.pop()]
        del lines[0]
        if lines:
            yield at, lines
            at += sum(map(len, lines)) + len(lines)
        size = len(rest[0])
    if size:
        yield at, [b"".join(rest)[: MAX_ROW_BYTES + 1]]


def _judged(raw: bytes, at: int, name: str, number: int) -> Record | Fault:
    """A line that the fast way would not vouch for."""
    try:
        if len(raw) > MAX_ROW_BYTES:
            raise row_too_long()
        value = strict(raw, at)
        if not isinstance(value, dict):
            raise not_an_object()
        return Record(value, number)
    except RowFault as fault:
        return fault.at(name, number)
