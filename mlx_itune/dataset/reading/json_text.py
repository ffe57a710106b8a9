"""JSON text -> value, as strict as it gets and, where that can be proved, as fast as orjson.

Refused beyond bad syntax: a key that occurs twice in an object, NaN and infinities, NUL and lone
surrogates in strings, nesting over 254 levels.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from mlx_itune.dataset.faults import RowFault

MAX_DEPTH = 254  # what orjson will write

# Beyond it a float may stand for an integer whose last digits orjson gave up.
_EXACT = 2.0**53

_COLON = ord("3"), ord("a")
_NUL = ord("0"), ord("0")
_PAD = np.zeros(8, np.uint8)
_HIGH = np.uint64(0xF0F0F0F0F0F0F0F0)
_THREES = np.uint64(0x3030303030303030)
_MANY = 10_000
_LONG = re.compile(rb"[0-9]{19}")

_PLAIN_TURNS = {
    ("role", "content"),
    ("content", "role"),
    ("from", "value"),
    ("value", "from"),
}


def parse(raw: bytes, at: int = 0, *, one_line: bool = True) -> Any:
    """The value of JSON text that starts at byte `at` of its file. Raises RowFault.

    `one_line`: the text is a whole line, so that a fault can name the column too.
    """
    try:
        value = orjson.loads(raw)
        if is_exact(raw, value):
            return value
    except (orjson.JSONDecodeError, orjson.JSONEncodeError, RecursionError):
        pass
    return strict(raw, at, one_line=one_line)


def is_exact(raw: bytes, value: Any) -> bool:
    """Whether orjson's `value` of `raw` is provably what the strict decoder would give.

    Written out again, `value` has one colon per key and those of its strings. A key that occurred
    twice is gone from it, so that its text would have more; an escaped colon might make up for
    one. Raises JSONEncodeError for what is nested more than MAX_DEPTH levels deep.
    """
    again = orjson.dumps(value)
    # To count a byte, nothing in this language is faster than to take it out.
    if len(raw) - len(raw.replace(b":", b"")) != len(again) - len(again.replace(b":", b"")):
        return False
    if 92 in raw and b"u003" in raw and (b"u003a" in raw or b"u003A" in raw):
        return False
    if 92 in again and b"\\u0000" in again:
        return False
    if value.__class__ is not dict:
        return _is_plain(value)
    for key, item in value.items():
        kind = item.__class__
        if kind is str or item is None:
            continue
        if (key == "messages" or key == "conversations") and _all_plain(item):
            continue
        if not _is_plain(item):
            return False
    return True


def are_exact(block: bytes, values: list[Any]) -> bool:
    """`is_exact` for all the values in a block of JSON texts at once, in a fifth of the time.

    No text can have fewer colons than its value unless it escapes one, so that equal sums mean
    equal counts. False may also mean that a closer look at each of them is needed.
    """
    again = orjson.dumps(values)
    raw = np.frombuffer(block + bytes(8 + -len(block) % 8), np.uint8)
    out = np.frombuffer(again, np.uint8)
    if np.count_nonzero(raw == 58) != np.count_nonzero(out == 58):
        return False
    if _has_escape(raw, _COLON) or _has_escape(np.append(out, _PAD), _NUL):
        return False
    # Integers that orjson makes floats of have 19 digits or more, and thus eight in a row that
    # begin at a multiple of eight. Digits share the upper half of their byte with `:;<=>?` only.
    hits = np.flatnonzero((raw.view(np.uint64) & _HIGH) == _THREES) * 8
    return len(hits) < _MANY and not any(
        _LONG.search(block, max(0, at - 18), at + 26) for at in hits.tolist()
    )


def _has_escape(text: NDArray[np.uint8], code: tuple[int, int]) -> bool:
    """Whether \\u00 and the two digits of `code`, either case, stand in a padded text."""
    escapes = (text[:-8] == 92) & (text[1:-7] == 117)
    if not escapes.any():
        return False
    at = np.flatnonzero(escapes)
    found = (text[at + 4] == code[0]) & ((text[at + 5] | 32) == (code[1] | 32))
    return bool(found.any())


def strict(raw: bytes, at: int = 0, *, one_line: bool = True) -> Any:
    """`parse` without the short cut: it knows the reason of every refusal."""
    text = decoded(raw, at, one_line=one_line)
    if text.startswith("\ufeff"):
        raise RowFault("bom", "a byte order mark before the row", "remove it")
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        found = len(text[: error.pos].encode("utf-8", "surrogatepass"))
        column = f"column {error.pos + 1}, " if one_line else ""
        raise RowFault(
            "json", f"{error.msg} at {column}byte {at + found + 1} of the file", _hint(text, error)
        ) from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:
        raise RowFault("json", "a number with too many digits") from None
    if _depth(value) > MAX_DEPTH:
        raise _too_deep()
    refuse_strange_text(value)
    return value


def decoded(raw: bytes, at: int = 0, *, one_line: bool = True) -> str:
    """`raw` as text. Raises RowFault for a NUL byte and for what is not UTF-8."""
    nul = raw.find(0)
    if nul >= 0:
        column = f"column {nul + 1}, " if one_line else ""
        raise RowFault("nul", f"a NUL byte at {column}byte {at + nul + 1} of the file")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        column = f"byte {error.start + 1} of the line, " if one_line else ""
        raise RowFault(
            "utf-8",
            f"0x{byte:02x} at {column}byte {at + error.start + 1} of the file is not UTF-8",
            "save the file as UTF-8",
        ) from None


def _is_plain(value: Any) -> bool:
    """No float in it that could be an integer too large for orjson."""
    stack = [value]
    for item in stack:
        kind = item.__class__
        if kind is dict:
            stack += item.values()
        elif kind is list:
            stack += item
        elif kind is float and not -_EXACT < item < _EXACT:
            return False
    return True


def _all_plain(turns: Any) -> bool:
    """Whether every turn is a role and a text, which leaves no room for a number that matters."""
    try:
        return {*map(tuple, turns)} <= _PLAIN_TURNS
    except TypeError:
        return False


def _depth(value: Any) -> int:
    """Levels of objects and lists, counted without recursion."""
    level: list[Any] = [value]
    depth = 0
    while True:
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                deeper.append(item.values())
            elif isinstance(item, list):
                deeper.append(item)
        if not deeper:
            return depth
        depth += 1
        level = [item for items in deeper for item in items]


def refuse_strange_text(value: Any) -> None:
    """NUL and lone surrogates, which JSON escapes can smuggle into any string."""
    if isinstance(value, str):
        if "\x00" in value:
            raise RowFault("nul", "a NUL character (\\u0000) in a string")
        if not value.isascii() and _SURROGATE.search(value):
            raise RowFault("surrogate", "half of a surrogate pair in a string")
    elif isinstance(value, dict):
        for key, item in value.items():
            refuse_strange_text(key)
            refuse_strange_text(item)
    elif isinstance(value, list):
        for item in value:
            refuse_strange_text(item)


def _hint(text: str, error: json.JSONDecodeError) -> str:
    if error.msg.startswith("Extra data"):
        rest = text[error.pos :].strip()
        if rest == ",":
            return "remove the comma after the row"
        return "put each row on a line of its own"
    if error.msg.startswith("Unterminated string") or error.pos >= len(text.rstrip()):
        return "the row is cut off, or a quote is missing"
    if error.msg.startswith("Expecting property name") and text[error.pos :].startswith("'"):
        return "JSON wants double quotes"
    if error.msg.startswith("Invalid control character"):
        return "write line breaks and tabs in strings as \\n and \\t"
    return ""


def _too_deep() -> RowFault:
    return RowFault("json", f"nested too deeply (more than {MAX_DEPTH} levels)")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        seen: set[str] = set()
        twice = next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise RowFault("duplicate-key", f"the key {twice!r} occurs twice", "keep one of the two")
    return row


def _refuse_constant(text: str) -> Any:
    raise RowFault("constant", f"{text} is not JSON", "write null")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise RowFault("json", f"the number {text[:20]} is too large")
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_float=_finite
)
_SURROGATE = re.compile("[\ud800-\udfff]")
