"""The options of drawing tokens, for the commands that answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mlx_itune.cli.options import SEED, FiniteFloat

if TYPE_CHECKING:
    from mlx_itune.model.serving.engine import Drawing

F = TypeVar("F", bound=Callable[..., Any])


def options(function: F) -> F:
    """--max-tokens, --temperature and the others, which arrive as keywords."""
    for option in (
        click.option("--seed", type=SEED, default=0, help="What sampling starts from."),
        click.option(
            "--repetition-penalty",
            type=FiniteFloat(min=0, min_open=True),
            default=1.0,
            help="Above 1: tokens among the last 20 become less likely.",
        ),
        click.option(
            "--min-p",
            type=FiniteFloat(0, 1),
            default=0.0,
            help="Only tokens at least so likely, relative to the likeliest.",
        ),
        click.option(
            "--top-k", type=click.IntRange(0), default=0, help="Only the likeliest so many; 0: all."
        ),
        click.option(
            "--top-p",
            type=FiniteFloat(0, 1, min_open=True),
            default=1.0,
            help="Only the likeliest tokens that together are so likely.",
        ),
        click.option("--temperature", type=FiniteFloat(min=0), default=0.0, help="0 is greedy."),
        click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True),
    ):
        function = option(function)
    return function


def of(given: dict[str, Any]) -> Drawing:
    """What the options say, but for --max-tokens; without a temperature there are no dice."""
    from mlx_itune.model.serving.engine import Drawing

    names = {field.name for field in dataclasses.fields(Drawing)}
    drawing = Drawing(**{name: value for name, value in given.items() if name in names})
    return drawing if drawing.temperature else dataclasses.replace(drawing, seed=None)
