"""The command line: a command's file is imported only when that command runs. ``mlx-itune --help``
reads commands.toml and imports no command, so it answers at once."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from mlx_itune import __version__
from mlx_itune.cli.boundary import guarded, leave
from mlx_itune.kit.errors import UsageError, closest
from mlx_itune.kit.json_files import data_file

COMMANDS: dict[str, dict[str, str]] = data_file(__file__, "commands")

EPILOG = """\b
Start here:   mlx-itune quickstart
Your data:    mlx-itune tune tickets.csv
Your model:   mlx-itune models list
"""


class LazyGroup(click.Group):
    """The commands of commands.toml whose names begin so. Nothing is imported before it runs."""

    def __init__(self, *args: Any, within: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._within = within
        parts = ((name.rpartition(" "), about) for name, about in COMMANDS.items())
        self._table = {name: about for (group, _, name), about in parts if group == within}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the table (which is the order of work)."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command; None if there is none of that name."""
        if cmd_name not in self._table:
            return None
        module, _, attribute = self._table[cmd_name]["from"].partition(":")
        made = import_module(f"{__name__}.{module}")
        command: click.Command = getattr(made, attribute or "command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command to run; an unknown name gets a did-you-mean."""
        name = args[0]
        if name not in self._table and not name.startswith("-"):
            meant = " or ".join(f"'{each}'" for each in self._meant(name))
            hint = f"did you mean {meant}?" if meant else f"see {ctx.command_path} --help"
            raise UsageError(f"no such command '{name}'", hint=hint)
        return super().resolve_command(ctx, args)

    def _meant(self, name: str) -> list[str]:
        """What another tool calls so; a command of a group; else what is spelled like it."""
        theirs = re.sub(r"^(mlx_lm[._]|llama[._])|\.py$", "", name.lower().replace("-", "_"))
        table = data_file(__file__, "elsewhere")["commands"]
        found = [ours for ours, listed in table.items() if theirs in listed.split()]
        found = found or [each for each in COMMANDS if each.endswith(f" {theirs}")]
        near = closest(name, self._table)
        found = found or ([theirs] if theirs in COMMANDS else [near] if near else [])
        return [each.removeprefix(f"{self._within} ") for each in found]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands' section of --help, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, each["about"]) for name, each in self._table.items()])


@click.group(
    cls=LazyGroup,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="mlx-itune")
def cli() -> None:
    """Instruction tuning on a Mac: raw rows in; adapter, fused and exported model out.

    Every command takes --json (one object on stdout) and --offline (no socket is opened).
    """


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; leaves the process with the documented exit code."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        # A file's name need not be text; what is printed of it then is, in escapes.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if argv is None:
        leave(guarded(cli, sys.argv[1:]))
    # Called by a program, which goes on and keeps its signals.
    sys.exit(guarded(cli, list(argv)))


def _open_closed_streams() -> None:
    """A closed stdin is empty, and a closed stderr tells nobody; a closed stdout is an error."""
    # Or the next file that is opened gets the number, and what libraries print.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdin = sys.stdin or Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
