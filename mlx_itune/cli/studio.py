"""``studio``: the same commands as pages on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_itune.cli import options
from mlx_itune.cli.result import Result, pairs

if TYPE_CHECKING:
    from mlx_itune.studio.server import Opened


@options.command("studio")
@options.flags("folder-of-studio port-of-studio")
def command(directory: Path, port: int, as_json: bool) -> None:
    """Data, runs, answers and exports of DIR as pages in the browser, on this machine alone.

    Every page shows the command that does the same, and runs that very command; there is no state
    but the folders. The address has a token: whoever has it can do what you can do here.
    """
    from mlx_itune.cli import cli
    from mlx_itune.studio.server import studio

    def find(name: str) -> click.Command | None:
        found: click.Command | None = cli
        for part in name.split():
            if not isinstance(found, click.Group):
                return None
            found = found.get_command(click.Context(found), part)
        return found

    def announce(opened: Opened) -> None:
        Result(opened, pairs([("page", opened.url), ("folder", opened.folder)])).print(as_json)
        sys.stdout.flush()
        if not as_json:
            click.echo("Ctrl-C stops it; what it has started goes on", err=True)

    raise click.exceptions.Exit(128 + studio(directory, port, find, announce))
