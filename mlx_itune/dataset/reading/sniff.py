"""What a file is: by its name where that says it, else by what it begins with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import orjson

from mlx_itune.dataset.reading.stream import BLANK
from mlx_itune.kit.errors import DataError

KINDS = ("jsonl", "json", "csv", "tsv", "parquet", "xlsx", "text")
SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".xlsx": "xlsx",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
}
# Lines looked at before deciding how a JSON file is laid out.
_LINES = 64

_BRACKET = re.compile(rb"^[ \t]*[{\[]", re.MULTILINE)
_ONE_LINE_ARRAY = re.compile(rb"\[\s*\{.*\}\s*\]", re.DOTALL)

Layout = Literal["lines", "array", "object"]


def kind_by_name(path: Path) -> str | None:
    """The kind that a file's name promises; `.gz` is looked through."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return SUFFIXES.get(suffixes[-1]) if suffixes else None


def kind_of(path: Path, head: bytes) -> str:
    """The kind of file that `path` names and `head` begins. Raises DataError for another's."""
    by_name = kind_by_name(path)
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"PK\x03\x04"):
        return "xlsx"
    if by_name in ("parquet", "xlsx"):
        raise DataError(f"is not a {by_name} file", where=str(path), hint="is it damaged?")
    if by_name is None and b"\x00" in head and not _BRACKET.search(head):
        raise DataError(
            "is no kind of file that can be read",
            where=str(path),
            hint=f"give one of {', '.join(sorted(SUFFIXES))}",
        )
    if by_name == "text" and _is_object(head.lstrip(BLANK).partition(b"\n")[0]):
        return "jsonl"
    return by_name or "json"


def layout(head: bytes, tail: bytes, *, is_whole: bool, prefers_lines: bool) -> Layout:
    """How the JSON that begins with `head` (and ends with `tail`, where known) is laid out.

    One bad line must not turn a file of lines into an array, nor the other way round: several
    lines have their say, and the end of the file.
    """
    first = head.lstrip(BLANK)[:1]
    if first not in (b"[", b"{") or (first == b"{" and prefers_lines):
        return "lines"
    lines = head.split(b"\n", _LINES)
    if len(lines) > _LINES or (not is_whole and len(lines) > 1):
        lines.pop()
    lines = [stripped for line in lines if (stripped := line.strip(BLANK))]
    # Rows begin and end on their line, whole or damaged; elements of an array end with a comma.
    rows = sum(line[:1] == b"{" and len(line) > 1 and line[-1] not in b",[]" for line in lines)
    joined = sum(line[-1:] == b"," for line in lines)
    if first == b"{":
        single = len(lines) == 1 and is_whole
        by_line = rows > max(joined, 1) or _is_object(lines[0])
        return "lines" if by_line and not single else "object"
    if is_whole and prefers_lines:
        return "array" if _is_array(head, lines, joined >= max(rows, 1)) else "lines"
    ends_as_array = not tail or tail.rstrip(BLANK).endswith(b"]")
    if len(lines) > 1 and (value := _value(lines[0])) is not None:
        if prefers_lines or rows or not value or not _all_objects(value):
            return "lines"
        return "array" if _value(lines[1]) is None else "lines"
    if rows > joined and not (rows == 1 and ends_as_array):
        return "lines"
    return "array" if joined > rows or ends_as_array or not prefers_lines else "lines"


def _is_array(text: bytes, lines: list[bytes], is_joined: bool) -> bool:
    """Whether a small file that should have lines is an array all the same, whole or damaged."""
    value = _value(text)
    if value is not None:
        return isinstance(value, list) and (len(lines) > 1 or _all_objects(value))
    if len(lines) == 1:
        return bool(_ONE_LINE_ARRAY.fullmatch(lines[0]))
    return is_joined and text.rstrip(BLANK).endswith(b"]") and _value(lines[0]) is None


def _value(line: bytes) -> object:
    try:
        value: object = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return value


def _is_object(line: bytes) -> bool:
    return line.startswith(b"{") and isinstance(_value(line), dict)


def _all_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)
