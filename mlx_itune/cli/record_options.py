"""Options made from a record of settings (kit/settings.py): each flag is one of its fields."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click

F = TypeVar("F", bound=Callable[..., Any])
_TYPES: dict[type, Any] = {int: click.IntRange, float: click.FloatRange}


def settings(cls: type[Any]) -> Callable[[F], F]:
    """Flags for the fields of the dataclass `cls`; the command takes them as one `settings`."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def run(**values: Any) -> Any:
            fields = {each.name: values.pop(each.name) for each in dataclasses.fields(cls)}
            return function(settings=cls(**fields), **values)

        hints = get_type_hints(cls, include_extras=True)
        for each in reversed(dataclasses.fields(cls)):
            run = _option(each, hints[each.name])(run)
        return run  # type: ignore[return-value]

    return decorate


def _option(field: dataclasses.Field[Any], hint: Any) -> Callable[[F], F]:
    about = field.metadata
    flags = about["flags"] or ("--" + field.name.replace("_", "-"),)
    shown = {"help": about["help"], "default": field.default}
    if type(None) in get_args(hint):
        hint = next(option for option in get_args(hint) if option is not type(None))
    if hint is bool:
        return click.option(*flags, field.name, is_flag=True, **shown)
    if get_origin(hint) is tuple:
        return click.option(*flags, field.name, multiple=True, metavar=about["metavar"], **shown)
    kind: Any = click.Choice(get_args(hint)) if get_origin(hint) is Literal else hint
    if get_origin(hint) is Annotated:
        number, bounds = get_args(hint)[:2]
        low = bounds.ge if bounds.ge is not None else bounds.gt
        high = bounds.le if bounds.le is not None else bounds.lt
        kind = _TYPES[number](
            low, high, min_open=bounds.ge is None, max_open=high is not None and bounds.le is None
        )
    return click.option(
        *flags,
        field.name,
        type=kind,
        metavar=about["metavar"],
        show_default=field.default is not None,
        **shown,
    )
