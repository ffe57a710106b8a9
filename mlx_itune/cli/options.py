"""Options that several commands share, so that a flag means the same everywhere."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from mlx_itune.cli.result import Result
from mlx_itune.kit.errors import UsageError
from mlx_itune.kit.network import go_offline
from mlx_itune.kit.settings import Setting, table_of

F = TypeVar("F", bound=Callable[..., Any])
Option = Callable[[Any], Any]

DIRECTORY = click.Path(file_okay=False, path_type=Path)
ANY_PATH = click.Path(path_type=Path)
# Row n of a file is drawn with the seed + n, which has to fit 64 bits too.
SEED = click.IntRange(0, (1 << 63) - 1)


def _stay_offline(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    if value:
        go_offline()
    return value


def command(name: str, example: str) -> Callable[[Callable[..., Any]], click.Command]:
    """A command with --json, --offline and an example at the end of its help. It returns a
    `Result`, which is printed, or None; one that streams declares `as_json`."""

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
        return click.command(name, epilog=f"\b\nExample:\n  {example}")(as_object(no_network(run)))

    return wrap


model = click.option(
    "--model",
    required=True,
    metavar="MODEL",
    help="'starter', a model directory, or a Hub id such as mlx-community/Qwen3-0.6B-4bit.",
)
adapter = click.option(
    "--adapter", type=DIRECTORY, metavar="DIR", help="A LoRA adapter trained on that model."
)
template = click.option(
    "--template",
    type=click.Choice(["auto", "alpaca", "chatml", "vicuna"]),
    help="Chat template; the adapter's, or else the model's own, unless given.",
)
runs = click.option(
    "--runs",
    type=DIRECTORY,
    default=Path("runs"),
    metavar="DIR",
    help="Where runs are (default: runs).",
)
allow_other_base = click.option(
    "--allow-other-base",
    is_flag=True,
    help="Go on although base, template or tokenizer are not what the adapter was trained on.",
)
compute = click.option(
    "--compute",
    type=click.Choice(["auto", "dequantized", "quantized"]),
    default="auto",
    help="How quantized layers are computed; the function is the same.",
)


class _Proposed(click.Choice[str]):
    """Choices that the help lists; another value is for the record of settings to refuse."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return value


class _NumberOr(click.ParamType[Any]):
    """A number, or one of a few words."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self._words, self.name = words, "|".join(["float", *words])

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return value if value in self._words else click.FLOAT.convert(value, param, ctx)


def together(*options: Option) -> Callable[[F], F]:
    """Several options as one decorator, in the order of --help."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def count(flag: str, default: int | None, help: str | None = None, least: int = 1) -> Option:
    """The option of a whole number."""
    shown = default is not None
    kind = click.IntRange(least)
    return click.option(flag, type=kind, default=default, show_default=shown, help=help)


def number(flag: str, default: float | None, help: str, **bounds: Any) -> Option:
    """The option of a number within `bounds`, from 0 on."""
    kind = click.FloatRange(0, **bounds)
    return click.option(flag, type=kind, default=default, callback=_finite, help=help)


def _finite(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    # "nan" compares to none, and "inf" has nothing above it.
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value!r} is not a finite number", ctx, param)
    return value


fidelity = together(
    click.option(
        "--bits",
        type=click.Choice(["2", "3", "4", "5", "6", "8", "16"]),
        callback=lambda _, __, bits: bits and int(bits),
        help="Force one width; without it the smallest that passes --max-kl.",
    ),
    number(
        "--max-kl", None, "Mean KL from base + adapter to accept, nats a token (default 0.001)."
    ),
    click.option("--allow-lossy", is_flag=True, help="Write the result even beyond --max-kl."),
    click.option(
        "--data",
        type=ANY_PATH,
        metavar="FILE|DIR",
        help="Held-out rows to measure on; without it, the run's validation rows where the run "
        "is at hand, else the tuned model's own answers to built-in prompts.",
    ),
)


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


opening = as_record(
    "opening",
    "mlx_itune.inference.opening:Opening",
    model,
    adapter,
    template,
    compute,
    allow_other_base,
)
drawing = as_record(
    "drawing",
    "mlx_itune.model.serving.engine:Drawing",
    number("--temperature", 0.0, "0 is greedy."),
    number("--top-p", 1.0, "Only the likeliest that together are so likely.", max=1, min_open=True),
    count("--top-k", 0, "Only the likeliest so many; 0: all.", least=0),
    number("--min-p", 0.0, "Only tokens at least so likely, relative to the likeliest.", max=1),
    number(
        "--repetition-penalty",
        1.0,
        "Above 1: the last 20 tokens become less likely.",
        min_open=True,
    ),
    click.option("--seed", type=SEED, default=0, help="What sampling starts from."),
)
max_tokens = count("--max-tokens", 512)
stops = click.option(
    "--stop", "stops", multiple=True, metavar="TEXT", help="Text that ends an answer."
)


def settings(cls: type[Any]) -> Option:
    """A flag for every setting of `cls`; the command takes them as one `settings`."""
    flags = [flag(setting, defaulted=True) for setting in table_of(cls).values()]
    return as_record("settings", f"{cls.__module__}:{cls.__name__}", *flags)


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
        *setting.flags,
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
