"""Command groups that know their commands' names and one-line helps without importing them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from mlx_itune.kit.errors import UsageError, closest


class LazyGroup(click.Group):
    """A group over a static table: name -> (module, attribute, one-line help)."""

    def __init__(
        self, *args: Any, commands_table: Mapping[str, tuple[str, str, str]], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._table = dict(commands_table)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the table (which is the order of work)."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command; None if there is none of that name."""
        if cmd_name not in self._table:
            return None
        module, attribute, _ = self._table[cmd_name]
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command to run; an unknown name gets a did-you-mean."""
        name = args[0]
        if name not in self._table and not name.startswith("-"):
            near = closest(name, self._table)
            hint = f"did you mean '{near}'?" if near else f"see {ctx.command_path} --help"
            raise UsageError(f"no such command '{name}'", hint=hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands' section of --help, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry[2]) for name, entry in self._table.items()])
