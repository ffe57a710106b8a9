"""``serve``: an OpenAI-compatible server on this machine."""

from __future__ import annotations

import atexit
import signal
import sys
from typing import Any

import click

from mlx_itune.cli import options


@options.command("serve", "mlx-itune serve --model starter --adapter notes=adapter --port 8080")
@options.model
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="DIR|NAME=DIR",
    help="An adapter trained on that model; several may be given. A request chooses by name "
    "(its 'model'); the first is the default.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="0 takes any free one.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Answers to one model that are computed at once; 1 is one after the other.",
)
@click.option(
    "--cached-prompts",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    help="Conversations whose computed past is kept in memory.",
)
@click.option(
    "--allow-origin",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    help="A web page's origin that may call this server, e.g. http://localhost:3000; '*' is all.",
)
@options.template
@options.compute
@options.allow_other_base
def command(as_json: bool, **settings: Any) -> None:
    """Serve a base and its adapters over OpenAI's API: chat, completions, models, health.

    With --json the address is printed as one object once requests are answered.
    """
    from mlx_itune.cli.result import Result, pairs
    from mlx_itune.inference.serve import Listening, ServeSettings, serve

    # A shell that starts it in the background has it ignore Ctrl-C's signal.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def announce(listening: Listening) -> None:
        if not listening.is_local:
            click.echo(
                "warning: other machines can reach this address, and whoever does can use the "
                "model: there is no password",
                err=True,
            )
        about = pairs([("url", listening.url), ("models", ", ".join(listening.models))])
        Result(listening, about).print(as_json)
        sys.stdout.flush()
        if not as_json:
            click.echo("Ctrl-C stops it", err=True)

    signum = serve(ServeSettings(**settings), announce=announce)
    # What is left is to leave: one more Ctrl-C has nothing to interrupt.
    for each in (signal.SIGINT, signal.SIGTERM):
        atexit.register(signal.signal, each, signal.SIG_IGN)
    raise click.exceptions.Exit(128 + signum)
