"""Flat TOML files <-> dataclasses: strict keys, strict types, every error at once."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mlx_itune.kit.errors import UsageError, closest
from mlx_itune.kit.files import storage_errors

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]


def from_toml(path: Path, cls: type[Any]) -> dict[str, object]:
    """The values of a TOML file, checked against the fields of dataclass `cls`.

    Keys may be written as the flags are (`batch-size`). Raises UsageError with every unknown key
    (and a did-you-mean) and every wrong type in one line; StorageError when it cannot be read.
    """
    path = Path(path)
    with storage_errors(path):
        raw = path.read_bytes()
    try:
        text = raw.decode("utf-8")
        table = tomllib.loads(text)
    except ValueError as error:
        raise UsageError(f"not a TOML file: {error}", where=str(path)) from error

    hints = get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    values: dict[str, object] = {}
    problems: list[tuple[int, str]] = []
    for key, value in table.items():
        line = _line_of(key, text)
        name = key.replace("-", "_")
        if name not in names:
            near = closest(key, names)
            meant = f" (did you mean {near}?)" if near else ""
            problems.append((line, f"unknown key {key!r}{meant}"))
        elif name in values:
            problems.append((line, f"{name!r} is set twice"))
        else:
            converted, wanted = _convert(value, hints[name])
            values[name] = converted
            if wanted:
                problems.append((line, f"{key} must be {wanted}, not {value!r}"))
    if problems:
        first = problems[0][0]
        rest = [f"line {line}: {text}" for line, text in problems[1:]]
        raise UsageError("; ".join([problems[0][1], *rest]), where=f"{path}:{first}")
    return values


def to_toml(config: Any) -> str:
    """A dataclass instance as TOML; fields that are None are left out, as TOML has no null."""
    lines = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is not None:
            lines.append(f"{field.name} = {_toml(value)}")
    return "\n".join([*lines, ""])


def _convert(value: Any, hint: Any) -> tuple[object, str]:
    """The value as its field wants it, and "" or what the field wanted instead."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        options = [option for option in get_args(hint) if option is not type(None)]
        tried = [_convert(value, option) for option in options]
        good = next((result for result in tried if not result[1]), None)
        return good or (value, " or ".join(wanted for _, wanted in tried))
    if origin is Literal:
        # 1 == True in Python, so the type has to agree too.
        fits = any(value == option and type(value) is type(option) for option in get_args(hint))
        return value, "" if fits else "one of " + ", ".join(map(str, get_args(hint)))
    if origin in (list, tuple):
        if not isinstance(value, list):
            return value, "a list"
        inner = get_args(hint)[0]
        items = [_convert(item, inner) for item in value]
        wrong = next((wanted for _, wanted in items if wanted), "")
        return origin(item for item, _ in items), f"a list of {wrong}" if wrong else ""
    if hint is float and type(value) is int:
        return float(value), ""
    if hint is Path and isinstance(value, str):
        return Path(value), ""
    if hint is Any or type(value) is hint:
        return value, ""
    return value, _NAMES.get(hint, f"a {getattr(hint, '__name__', hint)}")


_NAMES = {
    str: "a string",
    Path: "a path",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


def _line_of(key: str, text: str) -> int:
    written = re.escape(key)
    pattern = re.compile(rf"""^[ \t]*\[*[ \t]*["']?{written}["']?[ \t]*[=.\]]""", re.MULTILINE)
    found = pattern.search(text)
    return text.count("\n", 0, found.start()) + 1 if found else 1


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        # TOML spells these as Python does: inf, nan, 1e-05.
        return repr(value)
    if isinstance(value, (str, Path)):
        # A JSON string is a TOML basic string, except that TOML also wants DEL escaped.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    raise TypeError(f"{type(value).__name__} has no place in a flat TOML file")
