"""Flags made of the table of settings, and the settings made of flags and a config file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from mlx_itune.cli import options
from mlx_itune.kit.errors import UsageError
from mlx_itune.training.settings import Setting, TrainSettings, settings_from, table


def flag(
    name: str, help_line: str | None = None, *, defaulted: bool = False
) -> Callable[[Any], Any]:
    """The flag of one setting, for a command that knows a few.

    defaulted: the function gets the setting's default where the flag is not given, not None.
    """
    setting = table()[name]

    def admitted(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        if value is not None and not setting.admits(value):
            raise UsageError(f"{setting.flag} must be {setting.allowed}, not {value}")
        return value

    return _option(setting, help_line, setting.default if defaulted else None, admitted)


def _option(
    setting: Setting, help_line: str | None = None, default: Any = None, callback: Any = None
) -> Callable[[Any], Any]:
    return click.option(
        setting.flag,
        setting.name,
        type=_type(setting),
        multiple=setting.kind is tuple,
        metavar=setting.metavar,
        help=help_line or _help(setting),
        default=default,
        callback=callback,
    )


def flags(function: Callable[..., Any]) -> Callable[..., Any]:
    """--config, and the flag of every setting; they reach the function as `config` and by name.

    What they may be is checked with the file's values, all at once, by `settings_of`.
    """
    for setting in reversed([s for name, s in table().items() if name != "offline"]):
        function = _option(setting)(function)
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

    if config is not None and config.suffix.lower() in (".yaml", ".yml"):
        _refuse_yaml(config)
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


def _refuse_yaml(path: Path) -> None:
    """Another tool's configuration: what each of its keys is called here."""
    from mlx_itune.kit.json_files import read_bytes
    from mlx_itune.kit.wording import name_here

    text = read_bytes(path, error=UsageError, limit_bytes=1 << 20).decode(errors="replace")
    keys = dict.fromkeys(re.findall(r"^[ \t-]*([A-Za-z_][\w-]*)[ \t]*:", text, re.MULTILINE))
    here = {key: name_here(key, table()) for key in keys}
    here |= {"scale": "alpha / rank"} if "scale" in here else {}
    renamed = [f"{key} is {name}" for key, name in here.items() if name and name != key]
    unknown = [key for key, name in here.items() if name is None]
    told = [*renamed, *([f"unknown here: {', '.join(unknown)}"] if unknown else [])]
    raise UsageError(
        "is YAML; a configuration is lines of `key = value` (TOML)",
        where=str(path),
        hint="; ".join(told) or None,
    )


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
