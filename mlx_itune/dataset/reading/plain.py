"""Text files: rows of {"text": ...}.

What is one row is told by the file itself, looked at from its beginning:

- lines that hold `<|endoftext|>` and no more part the rows, if there are any;
- else, where every block between blank lines is a whole dialogue (it begins with a speaker's mark
  and has a reply), each block is a row;
- else each "### Instruction:" begins a row, if the text is marked so;
- else a text with other speakers' marks is one conversation and one row;
- else each block between blank lines is a row.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from typing import Literal

from mlx_itune.dataset.conversation import Fault, RowFault
from mlx_itune.dataset.reading.stream import (
    BLANK,
    MAX_ROW_BYTES,
    ByteStream,
    Record,
    decoded,
    refuse_too_long,
)

_END = b"<|endoftext|>"
_PREAMBLE = b"Below is an instruction"
_INSTRUCTION = b"### Instruction:"
_SPEAKER = re.compile(
    rb"^(?:<\|im_start\|>|<\|start_header_id\|>|(?:<s>)?\[INST\]"
    rb"|(?:### )?(?:USER|User|Human|HUMAN|ASSISTANT|Assistant|Response|Instruction):)",
    re.MULTILINE,
)
_REPLY = re.compile(
    rb"^(?:<\|im_start\|>assistant|<\|start_header_id\|>assistant"
    rb"|(?:### )?(?:ASSISTANT|Assistant|Response):)|\[/INST\]",
    re.MULTILINE,
)
_GAP = re.compile(rb"\n[ \t\r]*\n\s*")

Parting = Literal["marks", "blocks", "instructions", "whole"]


def read_text(stream: ByteStream, name: str) -> Generator[Record | Fault, None, int]:
    """A Record or Fault per row; returns the number of lines."""
    parting = _parting(stream.head, is_whole=stream.is_whole)
    lines: list[bytes] = []
    size = number = first = at_first = 0
    has_instruction = False

    def finished() -> Iterator[Record | Fault]:
        raw = b"\n".join(lines).strip(BLANK)
        if raw:
            try:
                refuse_too_long(size)
                yield Record({"text": decoded(raw, at_first, one_line=False)}, first)
            except RowFault as fault:
                yield fault.at(name, first)

    for number, at, raw in stream.lines():
        line = raw.removesuffix(b"\r")
        blank = not line.strip(BLANK)
        ends = blank if parting == "blocks" else parting == "marks" and line.strip() == _END
        begins = parting == "instructions" and (
            line.startswith(_PREAMBLE) or (line.startswith(_INSTRUCTION) and has_instruction)
        )
        if ends or begins:
            yield from finished()
            lines, size, has_instruction = [], 0, False
        if not ends and (lines or not blank):
            if not lines:
                first, at_first = number, at
            size += len(line) + 1
            # Of a row that is too long the rest is not kept.
            if size <= MAX_ROW_BYTES or not lines:
                lines.append(line)
            has_instruction = has_instruction or line.startswith(_INSTRUCTION)
    yield from finished()
    return number


def _parting(head: bytes, *, is_whole: bool) -> Parting:
    if re.search(rb"^[ \t]*<\|endoftext\|>[ \t\r]*$", head, re.MULTILINE):
        return "marks"
    if not _SPEAKER.search(head):
        return "blocks"
    blocks = [block for block in _GAP.split(head) if block.strip()]
    if not is_whole and len(blocks) > 1:
        blocks.pop()
    if len(blocks) > 1 and all(_SPEAKER.match(b) and _REPLY.search(b) for b in blocks):
        return "blocks"
    return "instructions" if _INSTRUCTION in head else "whole"
