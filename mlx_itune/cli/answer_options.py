"""Options of the commands that answer; each group reaches its command as one record."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

import click

from mlx_itune.cli import options
from mlx_itune.cli.options import SEED, FiniteFloat

F = TypeVar("F", bound=Callable[..., Any])


def as_record(name: str, record: str, *group: Callable[[Any], Any]) -> Callable[[F], F]:
    """Options that the command takes as one parameter: a `record`, "module:Class"."""

    def none() -> None: ...

    for option in group:
        option(none)
    fields = [str(each.name) for each in getattr(none, "__click_params__", ())]
    module, _, cls = record.partition(":")

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def run(**values: Any) -> Any:
            own = {field: values.pop(field) for field in fields}
            return function(**{name: getattr(import_module(module), cls)(**own)}, **values)

        decorated: Any = run
        for option in reversed(group):
            decorated = option(decorated)
        return decorated  # type: ignore[no-any-return]

    return decorate


opening = as_record(
    "opening",
    "mlx_itune.inference.opening:Opening",
    options.model,
    options.adapter,
    options.template,
    options.compute,
    options.allow_other_base,
)
drawing = as_record(
    "drawing",
    "mlx_itune.model.serving.drawing:Drawing",
    click.option("--temperature", type=FiniteFloat(min=0), default=0.0, help="0 is greedy."),
    click.option(
        "--top-p",
        type=FiniteFloat(0, 1, min_open=True),
        default=1.0,
        help="Only the likeliest tokens that together are so likely.",
    ),
    click.option(
        "--top-k", type=click.IntRange(0), default=0, help="Only the likeliest so many; 0: all."
    ),
    click.option(
        "--min-p",
        type=FiniteFloat(0, 1),
        default=0.0,
        help="Only tokens at least so likely, relative to the likeliest.",
    ),
    click.option(
        "--repetition-penalty",
        type=FiniteFloat(min=0, min_open=True),
        default=1.0,
        help="Above 1: tokens among the last 20 become less likely.",
    ),
    click.option("--seed", type=SEED, default=0, help="What sampling starts from."),
)
max_tokens = click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True)
stops = click.option(
    "--stop", "stops", multiple=True, metavar="TEXT", help="Text that ends an answer."
)
new_tokens = click.option(
    "--max-new-tokens", type=click.IntRange(1), default=256, show_default=True
)
generate = click.option(
    "--generate/--no-generate", default=True, help="Write and score answers (default)."
)
