"""``runs``: what was trained, how it stands, and what may go. One file per command."""

from __future__ import annotations

import click

from mlx_itune.cli.lazy import LazyGroup

_HERE = "mlx_itune.cli.runs"


@click.group(
    "runs",
    cls=LazyGroup,
    commands_table={
        "list": (f"{_HERE}.listing", "command", "Every run: its state, steps, losses and size."),
        "show": (f"{_HERE}.show", "command", "One run: settings, numbers, checkpoints, incidents."),
        "verify": (f"{_HERE}.verify", "command", "Compare every checkpoint with its hashes."),
        "prune": (f"{_HERE}.prune", "command", "Remove old checkpoints, or whole old runs."),
    },
)
def command() -> None:
    """What was trained, how it stands, and what may go."""
