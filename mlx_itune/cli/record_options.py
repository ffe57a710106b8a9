"""Flags made of the settings of a record (kit/settings.py), so that each is said once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mlx_itune.cli import options
from mlx_itune.cli.options import as_record
from mlx_itune.kit.errors import UsageError
from mlx_itune.kit.settings import Setting, table_of


def settings(cls: type[Any]) -> Callable[[Any], Any]:
    """A flag for every setting of `cls`; the command takes them as one `settings`."""
    flags = [flag(setting, defaulted=True) for setting in table_of(cls).values()]
    return as_record("settings", f"{cls.__module__}:{cls.__name__}", *flags)


def flag(
    setting: Setting,
    help_line: str | None = None,
    *,
    defaulted: bool = False,
    checked: bool = True,
) -> Callable[[Any], Any]:
    """The flag of one setting.

    defaulted: the function gets the setting's default where the flag is not given, not None.
    checked: a value that is not allowed is refused here, not by the record that is made of it.
    """

    def admitted(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        if checked and value is not None and not setting.admits(value):
            raise UsageError(f"{setting.flag} must be {setting.allowed}, not {value}")
        return value

    kind: Any = click.Choice(setting.choices) if setting.choices else setting.kind
    if kind in (Path, tuple):
        paths = options.ANY_PATH if setting.name == "data" else options.DIRECTORY
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
