"""``data``: from any instruction file to rows that can be trusted. One file per command."""

from __future__ import annotations

import click

from mlx_itune.cli.lazy import LazyGroup

_HERE = "mlx_itune.cli.data"


@click.group(
    "data",
    cls=LazyGroup,
    commands_table={
        "import": (f"{_HERE}.importing", "command", "Any format in, a data folder out."),
        "check": (f"{_HERE}.check", "command", "Every fault of every row, as file:line."),
        "clean": (f"{_HERE}.clean", "command", "Deduplicate, redact, drop; each change listed."),
        "render": (f"{_HERE}.render", "command", "Fields into prompts through task templates."),
        "show": (f"{_HERE}.show", "command", "Tokens, coloured by whether they are learned."),
        "stats": (f"{_HERE}.stats", "command", "Distributions, as a table or a page with plots."),
        "trace": (f"{_HERE}.trace", "command", "The history of one row."),
        "sample": (f"{_HERE}.sample", "command", "Write the invented clinical sample data."),
    },
)
def command() -> None:
    """Import, check, clean, show and trace data sets."""
