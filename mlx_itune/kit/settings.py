"""Settings that are declared once, as fields of a frozen dataclass, for flags and flat TOML files.
rank: Annotated[int, Interval(ge=1, le=1024), Help("Rank of the adapter.")] = 16"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Interval

from mlx_itune.kit.errors import UsageError
from mlx_itune.kit.json_files import read_toml, wrong_type
from mlx_itune.kit.wording import did_you_mean


@dataclass(frozen=True)
class Help:
    """What the help of a setting's flag says; metavar: what a value of it is called; flags: its
    names on the command line where the field's own will not do. The record's HELP may list them."""

    text: str
    metavar: str | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setting:
    """What the table says of one setting. kind: int, float, str, bool, Path or tuple."""

    name: str
    kind: type
    default: Any
    help: str
    metavar: str | None
    choices: tuple[str, ...]
    bounds: Interval | None
    flags: tuple[str, ...]
    # What a number may be instead.
    words: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        """As it is typed."""
        return self.flags[0]

    @property
    def required(self) -> bool:
        """Whether it has to be given."""
        return self.default is dataclasses.MISSING

    @property
    def shown_default(self) -> str:
        """Its default as it would be typed; empty where there is none, or it depends."""
        if self.required or self.default in (None, ()):
            return ""
        return f"{self.default:g}" if type(self.default) is float else str(self.default)

    @property
    def allowed(self) -> str:
        """What it may be, in words; empty for any text."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.bounds is None:
            return ""
        words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
        limits = ((word, getattr(self.bounds, name)) for name, word in words.items())
        told = (
            f"{word} {limit:,}".removesuffix(".0") for word, limit in limits if limit is not None
        )
        return ", or ".join([*self.words, " and ".join(told)])

    def admits(self, value: Any) -> bool:
        """Whether a value of its kind is within its bounds, or one of its choices."""
        if value is None:
            return self.default is None
        if self.choices or value in self.words:
            return value in (*self.choices, *self.words)
        if (b := self.bounds) is None:
            return True
        low = value > b.gt if b.gt is not None else value >= b.ge
        return bool(low and (value < b.lt if b.lt is not None else value <= b.le))


def table_of(cls: type[Any]) -> Mapping[str, Setting]:
    """Every setting of a record by name, in the order of the flags."""
    hints = get_type_hints(cls, include_extras=True)
    found = {}
    for field in dataclasses.fields(cls):
        hint, more = hints[field.name], list[Any]()
        words: tuple[str, ...] = ()
        while get_origin(hint) is Annotated or type(None) in get_args(hint):
            options = [option for option in get_args(hint) if option is not type(None)]
            if get_origin(hint) is Annotated:
                more += options[1:]
            elif len(options) > 1:
                words = get_args(options[1])
            hint = options[0]
        choices = get_args(hint) if get_origin(hint) is Literal else ()
        said = next((m for m in more if isinstance(m, Help)), None)
        if said is None:
            text, *names = cls.HELP[field.name]
            said = Help(text, "".join(names[:1]) or None, tuple(names[1:]))
        found[field.name] = Setting(
            name=field.name,
            kind=str if choices else get_origin(hint) or hint,
            default=field.default,
            help=said.text,
            metavar=said.metavar,
            choices=choices,
            bounds=next((m for m in more if isinstance(m, Interval)), None),
            words=words,
            flags=said.flags or ("--" + field.name.replace("_", "-"),),
        )
    return found


def out_of_range(settings: Any) -> Iterator[str]:
    """What a record of settings holds that its table does not allow, a line each."""
    for setting in table_of(type(settings)).values():
        value = getattr(settings, setting.name)
        if not setting.admits(value):
            shown = repr(value) if setting.choices else value
            yield f"{setting.name} must be {setting.allowed}, not {shown}"


def refuse_out_of_range(settings: Any) -> None:
    """Raise UsageError that names every setting of a record that is out of range."""
    if problems := [*out_of_range(settings)]:
        raise UsageError("; ".join(problems))


def asked_for(settings: Any) -> dict[str, Any]:
    """What a record of settings asks for, as the flags are called: all but what is empty."""
    values = {name.replace("_", "-"): value for name, value in dataclasses.asdict(settings).items()}
    return {k: v for k, v in values.items() if v is not None and v is not False and v != ()}


Wanted = type[Any] | tuple[type[Any], str]


def records(given: Mapping[str, Any], *wanted: Wanted) -> list[Any]:
    """Of keyword settings a record of each class; of (class, names) those fields alone. None is not
    given, and a mapping says NAME=VALUE. Raises UsageError for every name that no record has and
    every value of another type, in one line; and what the records raise."""
    values = values_of(given, *wanted)
    return [
        (each[0] if isinstance(each, tuple) else each)(
            **{name: values[name] for name in _hints(each) if name in values}
        )
        for each in wanted
    ]


def values_of(given: Mapping[str, Any], *wanted: Wanted) -> dict[str, Any]:
    """What is given, of the types that these fields have; see `records`."""
    known = {name: hint for each in wanted for name, hint in _hints(each).items()}
    values, problems = dict[str, Any](), list[str]()
    for name, value in given.items():
        if name not in known:
            meant = did_you_mean(name, known)
            problems.append(f"unknown setting {name!r}" + (f" ({meant})" if meant else ""))
        elif value is not None:
            if isinstance(value, Mapping):
                value = [f"{key}={_said(each)}" for key, each in value.items()]
            values[name], wrong = wrong_type(value, known[name])
            problems += [f"{name}: {wrong}"] if wrong else []
    if problems:
        raise UsageError("; ".join(problems))
    return values


def _hints(wanted: Wanted) -> dict[str, Any]:
    cls, names = wanted if isinstance(wanted, tuple) else (wanted, "")
    hints = get_type_hints(cls, include_extras=True)
    return {
        name: hints[name] for name in names.split() or [f.name for f in dataclasses.fields(cls)]
    }


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def from_toml(path: Path, cls: type[Any]) -> dict[str, object]:
    """The values of a TOML file, checked against dataclass `cls`; keys may be written as the flags
    are. Raises UsageError with every unknown key and wrong type in one line; StorageError."""
    path = Path(path)
    table, text = read_toml(path, error=UsageError)
    hints = get_type_hints(cls, include_extras=True)
    values: dict[str, object] = {}
    problems: list[tuple[int, str]] = []
    for key, value in table.items():
        line = _line_of(key, text)
        name = key.replace("-", "_")
        if name not in hints:
            meant = did_you_mean(key, hints)
            problems.append((line, f"unknown key {key!r}" + (f" ({meant})" if meant else "")))
        elif name in values:
            problems.append((line, f"{name!r} is set twice"))
        else:
            values[name], wrong = wrong_type(value, hints[name])
            if wrong:
                problems.append((line, f"{key}: {wrong}"))
    if problems:
        (first, problem), *others = problems
        rest = [f"line {line}: {problem}" for line, problem in others]
        raise UsageError("; ".join([problem, *rest]), where=f"{path}:{first}")
    return values


def to_toml(config: Any) -> str:
    """A dataclass instance as TOML; fields that are None are left out, as TOML has no null."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return "".join(f"{k} = {_toml(value)}\n" for k, value in values.items() if value is not None)


def _line_of(key: str, text: str) -> int:
    written = re.escape(key)
    pattern = re.compile(rf"""^[ \t]*\[*[ \t]*["']?{written}["']?[ \t]*[=.\]]""", re.MULTILINE)
    found = pattern.search(text)
    return text.count("\n", 0, found.start()) + 1 if found else 1


def _toml(value: Any) -> str:
    if isinstance(value, (bool, int, float)):
        # TOML spells numbers as Python does: inf, nan, 1e-05.
        return repr(value).lower()
    if isinstance(value, (str, Path)):
        # A JSON string is a TOML basic string, except that TOML also wants DEL escaped.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    raise TypeError(f"{type(value).__name__} has no place in a flat TOML file")
