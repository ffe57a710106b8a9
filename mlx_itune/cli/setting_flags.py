"""Flags made of the table of settings, and the settings made of flags and a config file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from mlx_itune.cli import options
from mlx_itune.kit.errors import UsageError
from mlx_itune.training.settings import Setting, TrainSettings, settings_from, table


def flag(name: str, help_line: str | None = None) -> Callable[[Any], Any]:
    """The flag of one setting; what it may be is checked with all others, by `settings_of`."""
    setting = table()[name]
    return click.option(
        setting.flag,
        name,
        type=_type(setting),
        multiple=setting.kind is tuple,
        metavar=setting.metavar,
        help=help_line or _help(setting),
    )


def flags(function: Callable[..., Any]) -> Callable[..., Any]:
    """--config, and the flag of every setting; they reach the function as `config` and by name."""
    for name in reversed([name for name in table() if name != "offline"]):
        function = flag(name)(function)
    return click.option(
        "--config",
        type=options.ANY_PATH,
        metavar="TOML",
        help="The same settings in a file; flags win over it.",
    )(function)


def settings_of(
    config: Path | None,
    given: Mapping[str, Any],
    *,
    offline: bool,
    instead: Mapping[str, Any] | None = None,
) -> TrainSettings:
    """Flags over a config file's values over defaults; `instead`: of settings that have none here.

    Raises UsageError, StorageError.
    """
    from mlx_itune.kit.config import from_toml
    from mlx_itune.kit.network import go_offline

    values: dict[str, Any] = {**(instead or {})}
    values |= from_toml(config, TrainSettings) if config else {}
    values |= {name: value for name, value in given.items() if value not in (None, ())}
    if offline or values.get("offline"):
        values["offline"] = True
        go_offline()
    missing = [s.flag for name, s in table().items() if s.required and name not in values]
    if missing:
        hint = f"see {click.get_current_context().command_path} --help"
        raise UsageError(f"missing {', '.join(missing)}", hint=hint)
    return settings_from(values)


def _type(setting: Setting) -> Any:
    if setting.choices:
        return click.Choice(setting.choices)
    if setting.kind is Path:
        return options.ANY_PATH if setting.name == "data" else options.DIRECTORY
    return str if setting.kind is tuple else setting.kind


def _help(setting: Setting) -> str:
    """Its words; its default, unless they tell it already; whether it may be repeated."""
    more = [f"default {setting.shown_default}"] if setting.shown_default else []
    more += ["may be repeated"] if setting.kind is tuple else []
    return f"{setting.help.rstrip('.')} ({'; '.join(more)})." if more else setting.help
