"""Options that several commands share, so that a flag means the same everywhere."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from mlx_itune.cli.result import Result
from mlx_itune.kit.network import go_offline

F = TypeVar("F", bound=Callable[..., Any])

DIRECTORY = click.Path(file_okay=False, path_type=Path)
ANY_PATH = click.Path(path_type=Path)
# Row n of a file is drawn with the seed + n, which has to fit 64 bits too.
SEED = click.IntRange(0, (1 << 63) - 1)


class FiniteFloat(click.FloatRange):
    """A number within bounds; "nan" compares to none, and "inf" has nothing above it."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number. Fails as a usage error."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


def _stay_offline(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    if value:
        go_offline()
    return value


def command(name: str, example: str) -> Callable[[Callable[..., Any]], click.Command]:
    """A command with --json, --offline and an example at the end of its help.

    It returns a `Result`, which is printed, or prints for itself and returns None; one that streams
    declares `as_json` and is told.
    """

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
    help="Where the adapter's run is (default: runs).",
)
allow_other_base = click.option(
    "--allow-other-base",
    is_flag=True,
    help="Use an adapter on a base, template or tokenizer that is not what it was trained on.",
)
compute = click.option(
    "--compute",
    type=click.Choice(["auto", "dequantized", "quantized"]),
    default="auto",
    help="How quantized layers are computed; the function is the same.",
)


def fidelity(function: F) -> F:
    """The options of a merge: --bits, --max-kl, --allow-lossy, --data."""
    for option in (
        click.option(
            "--data",
            type=ANY_PATH,
            metavar="FILE|DIR",
            help="Held-out rows to measure on; without it, the run's validation rows where the run "
            "is at hand, else the tuned model's own answers to built-in prompts.",
        ),
        click.option("--allow-lossy", is_flag=True, help="Write the result even beyond --max-kl."),
        click.option(
            "--max-kl",
            type=FiniteFloat(min=0),
            help="Mean KL from base + adapter to accept, nats per token (default 0.001).",
        ),
        click.option(
            "--bits",
            type=click.Choice(["2", "3", "4", "5", "6", "8", "16"]),
            callback=lambda _, __, bits: bits and int(bits),
            help="Force one width; without it the smallest that passes --max-kl.",
        ),
    ):
        function = option(function)
    return function
