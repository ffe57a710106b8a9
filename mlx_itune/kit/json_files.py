"""The one door for what comes from outside as JSON: bounded, strict, typed.

A file must be a regular one of bounded size; its JSON of bounded depth, without a key twice or a
number that is none. Decoded into a declared dataclass, every wrong key and type is named by its
path in one line, so that nothing behind this door is checked again. Types are judged by pydantic.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from mlx_itune.kit.errors import ItuneError, StorageError
from mlx_itune.kit.files import open_regular, storage_errors, write_durably
from mlx_itune.kit.wording import did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

# Of an object whose keys come now in one order, now in another: a note, no rule of JSON Schema's.
ANY_ORDER = {"x-key-order": "any"}
T = TypeVar("T")
Unknown = Literal["ignore", "refuse"]

LIMIT_BYTES = 64 << 20
_MAX_DEPTH = 100
_NAMED_FAULTS = 8

# pydantic's kinds of error as this house says them; `{}` takes the error's context.
_NEEDED = {
    "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number",
    "finite_number": "a finite number", "string_type": "a text", "path_type": "a path",
    "bool_type": "true or false", "list_type": "a list", "tuple_type": "a list",
    "dict_type": "an object", "dataclass_type": "an object", "dataclass_exact_type": "an object",
    "none_required": "null", "literal_error": "{expected}", "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more", "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
}  # fmt: skip


def read_bytes(
    path: Path, *, error: type[ItuneError] = StorageError, limit_bytes: int = LIMIT_BYTES
) -> bytes:
    """The content of a regular file of at most `limit_bytes`; `error` for a larger one, and at once
    for what is no file. Raises StorageError where the system says no."""
    with open_regular(path, error) as file, storage_errors(path):
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise error(f"is larger than {limit_bytes:,} bytes", where=str(path))
    return data


def parse_object(
    data: bytes | str, *, where: str | None, error: type[ItuneError], non_finite: bool = False
) -> dict[str, Any]:
    """A JSON object of text: UTF-8, at most 100 deep, no key twice. `non_finite`: whether NaN and
    Infinity pass, as Python writes them. Raises `error`."""
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        value = json.loads(
            text,
            object_pairs_hook=_distinct,
            parse_constant=float if non_finite else _no_constant,
            parse_float=float if non_finite else _finite,
            parse_int=_whole,
        )
        if not isinstance(value, dict):
            raise error("is not a JSON object", where=where)
        if depth_of(value) > _MAX_DEPTH:
            raise RecursionError
        # An escape can spell half a character, which no file or terminal takes.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError:
        raise error("is not UTF-8 text", where=where) from None
    except RecursionError:
        raise error(f"is nested more than {_MAX_DEPTH} levels deep", where=where) from None
    except ValueError as reason:
        raise error(f"is not valid JSON ({reason})", where=where) from None
    return value


def read_object(path: Path, *, error: type[ItuneError], non_finite: bool = False) -> dict[str, Any]:
    """The JSON object in a file; see `read_bytes` and `parse_object`. Raises `error`."""
    data = read_bytes(path, error=error)
    return parse_object(data, where=str(path), error=error, non_finite=non_finite)


def read_record(path: Path, cls: type[T], *, error: type[ItuneError]) -> T:
    """The JSON object in a file as a dataclass; see `to_record`."""
    return to_record(read_bytes(path, error=error), cls, where=str(path), error=error)


def to_record(
    value: bytes | Mapping[str, Any],
    cls: type[T],
    *,
    where: str | None,
    error: type[ItuneError],
    unknown: Unknown = "ignore",
) -> T:
    """JSON text, or an object at hand, as the dataclass `cls`, whose fields may be dataclasses.
    Types are strict: 1 is no truth. Raises `error` with every wrong key and type in one line."""
    if isinstance(value, bytes):
        value = parse_object(value, where=where, error=error)
    record, faults = _decode(value, cls, unknown)
    if faults:
        raise error(faults, where=where)
    return record  # type: ignore[no-any-return]


def wrong_type(value: Any, hint: Any) -> tuple[Any, str]:
    """`value` as the type `hint` wants it, and "" or what is wrong with it."""
    return _decode(value, hint, "refuse")


def read_toml(path: Path, *, error: type[ItuneError]) -> tuple[dict[str, Any], str]:
    """The table in a TOML file of at most a megabyte, and its text. Raises `error`."""
    raw = read_bytes(path, error=error, limit_bytes=1 << 20)
    try:
        text = raw.decode("utf-8")
        return tomllib.loads(text), text
    except (ValueError, RecursionError) as reason:
        raise error(f"not a TOML file: {reason}", where=str(path)) from None


@functools.cache
def data_file(module_file: str, name: str) -> dict[str, Any]:
    """The tables of a TOML file of ours, beside a module."""
    return read_toml(Path(module_file).with_name(f"{name}.toml"), error=StorageError)[0]


def write_object(path: Path, value: Any) -> None:
    """Write a record or mapping as JSON, durably; keys keep their order. Raises StorageError."""
    text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=2)
    write_durably(path, text.encode("utf-8", errors="backslashreplace") + b"\n")


def canonical(value: Any) -> bytes:
    """The one way to write a value: sorted, compact, UTF-8. For hashes and comparisons."""
    text = json.dumps(plain(value), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return text.encode("utf-8", errors="backslashreplace")


def plain(value: Any) -> Any:
    """Dataclasses, paths and tuples as JSON values; a number that is not finite becomes null.
    Fields whose names begin with _ are left out."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (f.name for f in dataclasses.fields(value) if f.name[0] != "_")
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    # Scalars of array libraries know their Python value.
    return plain(value.item()) if callable(getattr(value, "item", None)) else str(value)


def _decode(value: Any, hint: Any, unknown: Unknown) -> tuple[Any, str]:
    from pydantic import ValidationError

    extra: Any = "forbid" if unknown == "refuse" else "ignore"
    try:
        text = json.dumps(value, default=str)
        return _judge(hint).validate_json(text, strict=True, extra=extra), ""
    except RecursionError:
        return value, "is nested too deep"
    except ValidationError as found:
        faults: dict[str, list[str]] = {}
        for fault in found.errors(include_url=False):
            path, wrong = _fault(fault, hint)
            faults.setdefault(path, []).append(wrong)
    # Of a union, each member says what it needs.
    needed = {path: " or ".join(dict.fromkeys(wrong)) for path, wrong in faults.items()}
    said = [f"{path}: {wrong}" if path else wrong for path, wrong in needed.items()]
    more = [f"and {len(said) - _NAMED_FAULTS} more"] if len(said) > _NAMED_FAULTS else []
    return value, "; ".join([*said[:_NAMED_FAULTS], *more])


@functools.cache
def _judge(hint: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(hint)


def _fault(fault: Any, hint: Any) -> tuple[str, str]:
    kind, parts = fault["type"], list(fault["loc"])
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        meant = did_you_mean(str(parts[-1]), _fields_at(hint, parts[:-1]))
        return _path(parts), "unknown key" + (f" ({meant})" if meant else "")
    if kind in ("missing", "missing_argument"):
        return _path(parts), "is missing"
    context = fault.get("ctx", {})
    needed = fault["msg"]
    if kind in _NEEDED:
        needed = f"{_NEEDED[kind].format(**context)} is needed"
    shown = json.dumps(fault["input"], ensure_ascii=False, default=str)
    return _path(parts), f"{needed}, not {shown if len(shown) <= 60 else shown[:57] + '...'}"


def _path(parts: Iterable[Any]) -> str:
    """("keys", 1) as `keys[1]`; the names that pydantic gives the members of a union go."""
    text = ""
    for part in parts:
        if isinstance(part, int):
            text += f"[{part}]"
        elif not re.fullmatch(r"int|float|str|bool|constrained-.*|literal\[.*", part):
            text += f".{part}" if text else str(part)
    return text


def _fields_at(hint: Any, parts: Sequence[Any]) -> list[str]:
    """The names of the fields of the dataclass at a path, as far as the path is one of fields."""
    from typing import get_args, get_type_hints

    hints: dict[str, Any] = {}
    for part in [*parts, ""]:
        members = [hint, *get_args(hint)]
        hints = next((get_type_hints(m) for m in members if dataclasses.is_dataclass(m)), {})
        if isinstance(part, str):
            hint = hints.get(part)
    return list(hints)


def depth_of(value: Any) -> int:
    """Levels of objects and lists, counted without recursion."""
    depth, level = 0, [value]
    while level:
        depth += 1
        inner = (v.values() if isinstance(v, dict) else v for v in level)
        level = [item for v in inner for item in v if isinstance(item, (dict, list))]
    return depth


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in table if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} occurs twice")
    return table


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large a number")
    return value


def _whole(text: str) -> int:
    # Beyond a float's range it would become infinity where a field is one. Beyond 64 bits it may
    # well be: transformers writes 10**30 for a tokenizer without a longest text.
    _finite(text)
    return int(text)
