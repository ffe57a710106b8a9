"""``data import``: any format in, a data folder out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_itune.cli import options
from mlx_itune.cli.result import Result, table
from mlx_itune.dataset.importing.plan import ImportPlan
from mlx_itune.kit.errors import DataError, one_line
from mlx_itune.kit.wording import count, percent

if TYPE_CHECKING:
    from rich.table import Table

    from mlx_itune.dataset.importing.run import Imported


@options.command(
    "import", "mlx-itune data import alpaca_data.json notes.csv --out data --split 0.9/0.05/0.05"
)
@click.argument("sources", nargs=-1, required=True, metavar="SRC...")
@click.option("--out", type=options.DIRECTORY, required=True, metavar="DIR")
@options.settings(ImportPlan)
def command(sources: tuple[str, ...], out: Path, settings: ImportPlan, as_json: bool) -> Result:
    """Any instruction file in; a folder of train, valid and test rows out.

    SRC is a file (JSON, JSON Lines, CSV, TSV, Parquet, XLSX, text), a folder of them, or a Hub
    data set: org/name, org/name:split, org/name@revision. Broken rows are listed and left out;
    the folder's rejected.jsonl holds them all.
    """
    from mlx_itune.cli.progress import Progress
    from mlx_itune.dataset.importing.run import import_rows

    def ask(name: str) -> str:
        question = f"Licence of {name} (empty: not known)"
        return str(click.prompt(question, default="", show_default=False, err=True))

    may_ask = sys.stdin.isatty() and not as_json
    with Progress() as progress:
        made = import_rows(
            sources,
            out,
            settings,
            ask=ask if may_ask else None,
            tell=progress.bytes_of,
        )
    return Result(made, _told(made), 0 if made.written else DataError.exit_code)


def _told(made: Imported) -> Iterator[str | Table]:
    yield from (one_line(str(fault)) for fault in made.faults)
    listed = sum(fault.severity == "error" for fault in made.faults)
    if made.rejected > listed:
        yield f"... and {made.rejected - listed:,} more"
    yield (
        f"{count(made.rows, 'row')}, {made.accepted:,} accepted, {made.rejected:,} rejected"
        + "".join(f", {n:,} left out by --{why}" for why, n in made.left_out.items())
    )
    if not made.written:
        why = "--strict" if made.accepted else "no row could be read"
        yield f"nothing written: {why}"
        return
    licences: dict[str, str | None] = {}
    for source in made.sources:
        licences[source.name] = source.licence or licences.get(source.name)
    for name, licence in licences.items():
        unknown = f"not known (record it with --licence '{name}=...')"
        yield one_line(f"licence of {name}: {licence or unknown}")
    if made.mix:
        asked, came = made.mix["requested"], made.mix["achieved"]
        lines = ([one_line(name), percent(asked[name]), percent(came[name])] for name in asked)
        yield table(["source", "asked", "got"], lines)
    if made.split and made.split["strata"]:
        rows = (
            [one_line(value) or "(none)", *(f"{counts.get(split, 0):,}" for split in made.splits)]
            for value, counts in made.split["strata"].items()
        )
        yield table(["stratum", *made.splits], rows)
    yield from (f"note: {note}" for note in made.notes)
    yield f"{made.out}: " + ", ".join(f"{n:,} {name}" for name, n in made.splits.items())
