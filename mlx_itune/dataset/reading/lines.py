"""JSON lines: one row per line, whatever is wrong with the line before."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from itertools import count

import orjson

from mlx_itune.dataset.faults import Fault, RowFault
from mlx_itune.dataset.reading.json_text import are_exact, parse
from mlx_itune.dataset.reading.record import Record, bom_fault, not_an_object, row_too_long
from mlx_itune.dataset.reading.stream import BLANK, MAX_ROW_BYTES, ByteStream

_DICTS = {dict}


def read_lines(stream: ByteStream, name: str) -> Generator[Record | Fault, None, int]:
    """A Record or Fault per line that is not blank; returns the number of lines.

    Lines end at b"\\n" only. One that is longer than MAX_ROW_BYTES is a fault and not kept.
    """
    number = 0
    if stream.has_bom:
        yield bom_fault().at(name, 1)
    for at, block in line_blocks(stream):
        lines = block.split(b"\n")
        if number or not stream.has_bom:
            try:
                # Most blocks have nothing wrong in them, which is quicker to see for all at once.
                values = [*map(orjson.loads, lines)]
                if {*map(type, values)} == _DICTS and are_exact(block, values):
                    yield from map(Record, values, count(number + 1))
                    number += len(lines)
                    continue
            except (orjson.JSONDecodeError, orjson.JSONEncodeError, RecursionError):
                pass
        for raw in lines:
            number += 1
            if raw.strip(BLANK) and (number > 1 or not stream.has_bom):
                yield _judged(raw, at, name, number)
            at += 1 + len(raw)
    return max(number, int(stream.has_bom))


def line_blocks(stream: ByteStream) -> Iterator[tuple[int, bytes]]:
    """Blocks of whole lines without the last line's end, each with the byte that it starts at.

    Of a line longer than MAX_ROW_BYTES only the first bytes are kept, one more than that, in a
    block of its own.
    """
    at = stream.start
    rest: list[bytes] = []
    size = 0
    while chunk := stream.read():
        last = chunk.rfind(b"\n")
        if last >= 0 and size > MAX_ROW_BYTES:
            first = chunk.find(b"\n")
            size += first
            yield at, b"".join((*rest, chunk[:first]))[: MAX_ROW_BYTES + 1]
            at += size + 1
            rest, size = [], 0
            chunk, last = chunk[first + 1 :], last - first - 1
        if last >= 0:
            block = b"".join((*rest, chunk[:last]))
            yield at, block
            at += len(block) + 1
            rest, size = [chunk[last + 1 :]], len(chunk) - last - 1
        else:
            if size <= MAX_ROW_BYTES:
                rest.append(chunk)
            size += len(chunk)
    if size:
        yield at, b"".join(rest)[: MAX_ROW_BYTES + 1]


def split_lines(stream: ByteStream) -> Iterator[tuple[int, list[bytes]]]:
    """The blocks as lists of lines."""
    for at, block in line_blocks(stream):
        yield at, block.split(b"\n")


def _judged(raw: bytes, at: int, name: str, number: int) -> Record | Fault:
    try:
        if len(raw) > MAX_ROW_BYTES:
            raise row_too_long()
        value = parse(raw, at)
        if not isinstance(value, dict):
            raise not_an_object()
        return Record(value, number)
    except RowFault as fault:
        return fault.at(name, number)
