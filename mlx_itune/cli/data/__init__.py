"""``data``: from any instruction file to rows that can be trusted."""

from __future__ import annotations

from mlx_itune.cli import LazyGroup

command = LazyGroup(
    "data",
    table={
        "import": ("data.folders:import_", "Any format in, a data folder out."),
        "check": ("data.check:check", "Every fault of every row, as file:line."),
        "clean": ("data.folders:clean", "Deduplicate, redact, drop; each change listed."),
        "render": ("data.folders:render", "Fields into prompts through task templates."),
        "show": ("data.show", "Tokens, coloured by whether they are learned."),
        "stats": ("data.check:stats", "Distributions, as a table or a page with plots."),
        "trace": ("data.folders:trace", "The history of one row."),
        "sample": ("data.folders:sample", "Write the invented clinical sample data."),
    },
    help="Import, check, clean, show and trace data sets.",
)
