"""A command of ours as a form, and a form that was sent as the command that it asks for. Fields are
the options of the command itself, so that the page has what the command line has."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from mlx_itune.kit.errors import UsageError
from mlx_itune.kit.wording import known

# Of a command, what its form shows first; the rest is folded away.
FIRST = {
    "data ingest": "sources out",
    "data grow": "source recipe model adapter out count",
    "data import": "sources out split format map",
    "data clean": "sources out preset steps pii",
    "data check": "files model schema",
    "data stats": "data model",
    "data schema": "data out",
    "data split": "sources out split",
    "data diff": "data_sets",
    "data trace": "row data",
    "data review": "drafts sample estimate accept_rest out",
    "data select": "model data rows by steps out",
    "data versions": "folders",
    "train": "model data out epochs steps learning_rate rank adapter template config",
    "plan": "model data out batch_size rank",
    "resume": "run runs out",
    "tune": "file model time out yes",
    "sweep": "model data over more by budget out",
    "runs compare": "run",
    "eval": "model adapter data",
    "compare": "others model adapter data",
    "fuse": "model adapter out data bits",
    "export": "model adapter to out type bundle data",
    "verify": "bundle",
}
# The page answers for these itself.
_OURS = frozenset({"as_json", "help"})
# What may be any text: every other value is held to the folder, where it could be a place.
_TEXTS = frozenset("words prompt stops pattern keys by where over more decide".split())
Given = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Field:
    """One option or argument. kind: text, choice, check, place; several: values apart by lines or
    spaces as a shell has them."""

    name: str
    label: str
    kind: str
    help: str
    default: str
    choices: tuple[str, ...]
    required: bool
    several: bool


class Commands:
    """The commands that pages may run. find: of a full name, the command ("data check"). folder:
    nothing outside it is read or written by what a form says."""

    def __init__(self, find: Callable[[str], click.Command | None], folder: Path) -> None:
        self._find, self.folder = find, folder.resolve()

    def has(self, name: str) -> bool:
        """Whether there is such a command, and a form of it."""
        return name in FIRST and self._find(name) is not None

    def fields(self, name: str) -> tuple[list[Field], list[Field]]:
        """What is shown first, and the rest. Raises UsageError for what is no command here."""
        every = {field.name: field for field in map(_field, self._parameters(name))}
        first = [every[each] for each in FIRST[name].split() if each in every]
        first += [each for each in every.values() if each.required and each not in first]
        return first, [each for each in every.values() if each not in first]

    def command(self, name: str, given: Given) -> list[str]:
        """What is typed for a form that was sent: ["data", "check", "rows.jsonl"]. Raises
        UsageError for a place that is outside of the folder."""
        arguments, options = list[str](), list[str]()
        for parameter in self._parameters(name):
            field = _field(parameter)
            values = [value.strip() for value in given.get(field.name, ()) if value.strip()]
            if field.several:
                values = [word for value in values for word in _words(value)]
            for value in values:
                self._confine(field, value)
            if isinstance(parameter, click.Argument):
                if wrong := next((value for value in values if value.startswith("-")), None):
                    raise UsageError(f"{field.label}: {wrong!r} looks like an option")
                arguments += values
            elif isinstance(parameter, click.Option):
                options += _typed(parameter, field, values)
        return [*name.split(), *arguments, *options]

    def place(self, text: str) -> Path:
        """A path inside the folder. Raises UsageError for any other."""
        if "\0" in text or not (path := (self.folder / text).resolve()).is_relative_to(self.folder):
            raise UsageError(f"{text!r} is not in {self.folder.name}", hint="name a place in it")
        return path

    def _parameters(self, name: str) -> Iterator[click.Parameter]:
        command = self._find(known("command", name, FIRST))
        if command is None:
            raise UsageError(f"there is no command {name!r}")
        return (each for each in command.params if each.name not in _OURS)

    def _confine(self, field: Field, value: str) -> None:
        # NAME=DIR, FILE:LINE and TEXT|@FILE are places, too; a name that is no file is harmless.
        parts = {value, value.lstrip("@"), *value.lstrip("@").split("=", 1)[1:]}
        if "\0" in value:
            raise UsageError(f"{field.label}: there is a NUL in it")
        if field.name in _TEXTS or (field.name == "system" and not value.startswith("@")):
            return
        for part in parts:
            self.place(str(Path(part).expanduser()) if part.startswith("~") else part)


def shown(argv: Sequence[str]) -> str:
    """A command as it is copied into a terminal."""
    return shlex.join(["mlx-itune", *argv])


def _words(value: str) -> list[str]:
    try:
        return shlex.split(value)
    except ValueError as error:
        raise UsageError(f"{value!r}: {error}".lower()) from error


def _field(parameter: click.Parameter) -> Field:
    option = isinstance(parameter, click.Option)
    kind, choices = "text", tuple[str, ...]()
    if isinstance(parameter.type, click.Choice):
        kind, choices = "choice", tuple(map(str, parameter.type.choices))
    elif isinstance(parameter.type, click.Path) or parameter.name in ("sources", "model"):
        kind = "place"
    elif isinstance(parameter, click.Option) and parameter.is_flag:
        # A flag that is on by itself has a word for off.
        kind = "choice" if parameter.secondary_opts else "check"
        choices = tuple(each.lstrip("-") for each in (*parameter.opts, *parameter.secondary_opts))
        choices = choices if parameter.secondary_opts else ()
    longest = max(parameter.opts, key=len)
    default = parameter.default if isinstance(parameter.default, str | int | float) else None
    return Field(
        name=str(parameter.name),
        label=longest.lstrip("-")
        if option
        else (parameter.metavar or longest).strip(".[]").lower(),
        kind=kind,
        help=str(getattr(parameter, "help", None) or ""),
        default="" if default is None or isinstance(default, bool) else str(default),
        choices=choices,
        required=parameter.required,
        several=parameter.multiple or parameter.nargs != 1,
    )


def _typed(option: click.Option, field: Field, values: Sequence[str]) -> Iterator[str]:
    """An option as it is typed; not at all where it says what goes without saying."""
    flag = max(option.opts, key=len)
    for value in values if field.several else values[-1:]:
        if field.kind == "check":
            yield flag
        elif option.is_flag:
            yield f"--{known(field.label, value, field.choices)}"
        elif value != field.default:
            yield from (flag, value)
