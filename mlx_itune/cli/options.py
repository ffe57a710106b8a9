"""Options that several commands share, so that a flag means the same everywhere."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from mlx_itune.cli.result import Result
from mlx_itune.kit.errors import UsageError, one_line
from mlx_itune.kit.json_files import data_file
from mlx_itune.kit.network import go_offline
from mlx_itune.kit.settings import Setting, table_of

F = TypeVar("F", bound=Callable[..., Any])
Option = Callable[[Any], Any]

_SHORT = {"--model": ("-m",), "--data": ("-d",), "--out": ("-o",)}
DIRECTORY = click.Path(file_okay=False, path_type=Path)
ANY_PATH = click.Path(path_type=Path)


def _stay_offline(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    if value:
        go_offline()
    return value


def command(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """A command of commands.toml with --json, --offline and its example at the end of its help. It
    returns a `Result`, which is printed, or None; one that streams declares `as_json`."""
    example = data_file(__file__, "commands")[name]["example"]

    def wrap(function: Callable[..., Any]) -> click.Command:
        wanted = inspect.signature(function).parameters

        @functools.wraps(function)
        def run(as_json: bool, offline: bool, **values: Any) -> None:
            given = {"as_json": as_json, "offline": offline}
            result = function(**values, **{k: v for k, v in given.items() if k in wanted})
            if isinstance(result, Result):
                result.print(as_json)
                if result.exit_code:
                    raise click.exceptions.Exit(result.exit_code)

        as_object = click.option(
            "--json", "as_json", is_flag=True, help="Print exactly one JSON object on stdout."
        )
        no_network = click.option(
            "--offline",
            is_flag=True,
            is_eager=True,
            callback=_stay_offline,
            help="Open no socket; Hub models come from the local cache only.",
        )
        own = click.command(name.split()[-1], epilog=f"\b\nExample:\n  {example}")
        return own(as_object(no_network(run)))

    return wrap


class _Proposed(click.Choice[str]):
    """Choices that the help lists; another value is for the record of settings to refuse."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return value


class _NumberOr(click.ParamType[Any]):
    """A number, or one of a few words."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self._words, self.name = words, "|".join(["float", *words])

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        try:
            return value if value in self._words else float(value)
        except ValueError:
            told = f"{value!r} is neither a number nor {' or '.join(self._words)}"
            self.fail(told, param, ctx)


def together(*options: Option) -> Callable[[F], F]:
    """Several options as one decorator, in the order of --help."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _finite(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    # "nan" compares to none, and "inf" has nothing above it.
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value!r} is not a finite number", ctx, param)
    return value


def flags(names: str) -> Callable[[F], F]:
    """The flags and arguments of these names in flags.toml, in the order of --help."""
    return together(*map(_named, names.split()))


def _named(name: str) -> Option:
    about = dict(data_file(__file__, "flags")[name])
    if path := about.pop("path", None):
        about["type"] = DIRECTORY if path == "directory" else ANY_PATH
    if choices := about.pop("choices", None):
        about["type"] = click.Choice([*map(str, choices)])
        if isinstance(choices[0], int):
            about["callback"] = lambda _, __, chosen: chosen and int(chosen)
    if limits := about.pop("whole", None):
        about["type"] = click.IntRange(*limits)
    if (bounds := about.pop("number", None)) is not None:
        about |= {"type": click.FloatRange(0, **bounds), "callback": _finite}
    if about.pop("joined", False):
        about |= {"nargs": -1, "callback": lambda _, __, words: " ".join(words) or None}
    if argument := about.pop("argument", None):
        return click.argument(argument, **about)
    return click.option(*_with_short(about.pop("flags", [f"--{name}"])), **about)


def _with_short(names: Iterable[str]) -> list[str]:
    return [each for name in names for each in (*_SHORT.get(name, ()), name)]


def tell(notes: Iterable[str]) -> None:
    """Notes on stderr, a line each."""
    for note in notes:
        click.echo(one_line(f"note: {note}"), err=True)


def as_record(name: str, record: str, *group: Option) -> Callable[[F], F]:
    """Options that the command takes as one parameter: a `record`, "module:Class"."""

    def none() -> None: ...

    together(*group)(none)
    fields = [str(each.name) for each in getattr(none, "__click_params__", ())]
    module, _, cls = record.partition(":")

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def run(**values: Any) -> Any:
            own = {field: values.pop(field) for field in fields}
            return function(**{name: getattr(import_module(module), cls)(**own)}, **values)

        return cast("F", together(*group)(run))

    return decorate


def based(function: F) -> F:
    """A command with --model and --adapter: an adapter may be named by its run, and where there is
    one the model may be left out."""

    @functools.wraps(function)
    def run(**values: Any) -> Any:
        model, runs = values["model"], values.get("runs") or Path("runs")
        several = "adapters" in values
        given = values["adapters"] if several else filter(None, [values["adapter"]])
        found = [_adapter(str(each), runs, named=several) for each in given]
        if not model:
            model = _base_of([path for _, path in found], runs)
        if several:
            values["adapters"] = tuple(f"{name}{path}" for name, path in found)
        else:
            values["adapter"] = found[0][1] if found else None
        return function(**{**values, "model": model})

    return cast("F", run)


def _adapter(given: str, runs: Path, *, named: bool) -> tuple[str, Path]:
    """("NAME=" or nothing, the adapter's directory)."""
    from mlx_itune.training.run.naming import adapter_at

    name, separator, folder = given.partition("=")
    if not (named and name and folder) or Path(given).is_dir():
        return "", adapter_at(given, runs)
    return name + separator, adapter_at(folder, runs)


def _base_of(adapters: list[Path], runs: Path) -> str:
    from mlx_itune.training.run.naming import base_of

    if not adapters:
        hint = "name it, or an --adapter that knows its base"
        raise UsageError("Missing option '--model'", hint=hint)
    model = base_of(adapters[0], runs)
    tell([f"--model {model}, which the adapter was trained on"])
    return model


opening = together(
    based,
    as_record(
        "opening",
        "mlx_itune.inference.opening:Opening",
        flags("model adapter template compute allow-other-base template-option system"),
    ),
)
drawing = as_record(
    "drawing",
    "mlx_itune.model.serving.engine:Drawing",
    flags("temperature top-p top-k min-p repetition-penalty seed-of-sampling"),
)


def settings(cls: type[Any], name: str = "settings", fields: str = "") -> Option:
    """A flag for every setting of `cls`, or these; the command takes them as one record, `name`."""
    table = table_of(cls)
    flags = [flag(table[field], defaulted=True) for field in fields.split() or table]
    return as_record(name, f"{cls.__module__}:{cls.__name__}", *flags)


def flag(
    setting: Setting, help_line: str | None = None, *, defaulted: bool = False, checked: bool = True
) -> Option:
    """The flag of one setting. defaulted: not None, but the setting's default where it is not
    given; checked: a value that is not allowed is refused here, not by the record made of it."""

    def admitted(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        if checked and value is not None and not setting.admits(value):
            raise UsageError(f"{setting.flag} must be {setting.allowed}, not {value}")
        return value

    kind: Any = setting.kind
    if setting.choices:
        kind = (click.Choice if checked else _Proposed)(setting.choices)
    elif setting.words:
        kind = _NumberOr(setting.words)
    if kind in (Path, tuple):
        paths = ANY_PATH if setting.name == "data" else DIRECTORY
        kind = paths if kind is Path else str
    return click.option(
        *_with_short(setting.flags),
        setting.name,
        type=kind,
        is_flag=kind is bool,
        multiple=setting.kind is tuple,
        metavar=setting.metavar,
        help=help_line or _help(setting),
        default=setting.default if defaulted else None,
        callback=admitted,
    )


def _help(setting: Setting) -> str:
    """Its words; its default, unless they tell it already; whether it may be repeated."""
    default = "" if setting.kind is bool else setting.shown_default
    more = [f"default {default}"] if default else []
    more += ["may be repeated"] if setting.kind is tuple else []
    return f"{setting.help.rstrip('.')} ({'; '.join(more)})." if more else setting.help
