"""Flat TOML files <-> dataclasses: strict keys, strict types, every error at once."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any, get_type_hints

from mlx_itune.kit.errors import UsageError
from mlx_itune.kit.json_files import read_bytes, wrong_type
from mlx_itune.kit.wording import did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

_LIMIT_BYTES = 1 << 20


def from_toml(path: Path, cls: type[Any]) -> dict[str, object]:
    """The values of a TOML file, checked against the fields of dataclass `cls`.

    Keys may be written as the flags are (`batch-size`). Raises UsageError with every unknown key
    (and a did-you-mean) and every wrong type in one line; StorageError when it cannot be read.
    """
    path = Path(path)
    raw = read_bytes(path, error=UsageError, limit_bytes=_LIMIT_BYTES)
    try:
        text = raw.decode("utf-8")
        table = tomllib.loads(text)
    except RecursionError:
        raise UsageError("not a TOML file: nested too deeply", where=str(path)) from None
    except ValueError as error:
        raise UsageError(f"not a TOML file: {error}", where=str(path)) from error

    hints = get_type_hints(cls, include_extras=True)
    names = [f.name for f in dataclasses.fields(cls)]
    values: dict[str, object] = {}
    problems: list[tuple[int, str]] = []
    for key, value in table.items():
        line = _line_of(key, text)
        name = key.replace("-", "_")
        if name not in names:
            meant = did_you_mean(key, names)
            problems.append((line, f"unknown key {key!r}" + (f" ({meant})" if meant else "")))
        elif name in values:
            problems.append((line, f"{name!r} is set twice"))
        else:
            values[name], wrong = wrong_type(value, hints[name])
            if wrong:
                problems.append((line, f"{key}: {wrong}"))
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
