"""``serve``: an OpenAI-compatible server on this machine."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

import click

from mlx_itune.cli import options
from mlx_itune.cli.boundary import Terminated

if TYPE_CHECKING:
    from mlx_itune.inference.serve import Listening


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
def command(
    model: str,
    adapters: tuple[str, ...],
    host: str,
    port: int,
    concurrency: int,
    cached_prompts: int,
    origins: tuple[str, ...],
    template: str | None,
    compute: str,
    as_json: bool,
    offline: bool,
) -> None:
    """Serve a base and its adapters over OpenAI's API: chat, completions, models, health.

    With --json the address is printed as one object once requests are answered.
    """
    from mlx_itune.inference.serve import serve

    # A shell that starts it in the background has it ignore Ctrl-C's signal.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    announced = False

    def announce(listening: Listening) -> None:
        nonlocal announced
        _announce(listening, as_json)
        announced = True

    try:
        serve(
            model,
            adapters,
            announce=announce,
            host=host,
            port=port,
            template=template,
            compute=compute,
            concurrency=concurrency,
            cached_prompts=cached_prompts,
            origins=origins,
            offline=offline,
        )
    except (KeyboardInterrupt, Terminated) as stopped:
        if not (announced and as_json):
            raise
        # The one object of --json is out.
        code = 143 if isinstance(stopped, Terminated) else 130
        raise click.exceptions.Exit(code) from None


def _announce(listening: Listening, as_json: bool) -> None:
    from mlx_itune.cli import report

    if not listening.is_local:
        print(
            "warning: other machines can reach this address, and whoever does can use the model: "
            "there is no password",
            file=sys.stderr,
        )
    if as_json:
        report.emit(listening)
    else:
        report.pairs([("url", listening.url), ("models", ", ".join(listening.models))])
        print("Ctrl-C stops it", file=sys.stderr)
    sys.stdout.flush()
