"""``data clean``: chosen steps over a data set; every removal and change is listed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_itune.cli import options
from mlx_itune.cli.data import reading
from mlx_itune.cli.result import Result, table
from mlx_itune.dataset.cleaning.plan import CleanPlan
from mlx_itune.kit.errors import one_line
from mlx_itune.kit.wording import count

if TYPE_CHECKING:
    from mlx_itune.dataset.cleaning.run import Cleaned
    from mlx_itune.dataset.importing.plan import ImportPlan


@options.command(
    "clean", "mlx-itune data clean data --out cleaned --preset default --pii email,phone"
)
@click.argument("sources", nargs=-1, required=True, type=options.ANY_PATH, metavar="SRC...")
@click.option("--out", type=options.DIRECTORY, required=True, metavar="DIR")
@reading.forced_format
@click.option(
    "--lints", type=options.ANY_PATH, metavar="FILE", help="Your own list of lints (data check)."
)
@options.settings(CleanPlan)
def command(
    sources: tuple[Path, ...],
    out: Path,
    forced: ImportPlan,
    lints: Path | None,
    settings: CleanPlan,
) -> Result:
    """Clean a data set; rows that were removed or changed are listed with the reason.

    SRC is a file or folder of rows of any format; a data folder keeps its splits. The new folder
    holds removed.jsonl, changed.jsonl and a ledger of what was done.

    \b
    Steps:
      html-to-text      answers saved as HTML become Markdown
      copy-code         'Copy code' buttons and page counts go
      whitespace        Unicode NFC, one kind of space and line end
      trim-leading      what comes before the first question goes
      trim-trailing     what comes after the last answer goes
      merge-turns       neighbouring turns of one role are joined
      drop-irregular    rows whose turns do not alternate go
      empty-answers     rows with an empty turn go
      too-short         rows under --min-chars characters go
      language          rows in other scripts than --language go
      refusals          rows with refusals, disclaimers, vendor names, error replies (--drop) go
      control-text      control strings in contents are broken up with a space
      drop-control-text rows with a control string in a content go
      pii               personal data become placeholders (--pii)
      unify-system      one spelling of each system prompt
      exact-duplicates, pair-duplicates (equal first question and answer), near-duplicates
    """
    from mlx_itune.cli.progress import Progress
    from mlx_itune.dataset.cleaning.run import clean
    from mlx_itune.dataset.sources import read_rows

    rows = reading.RowFiles(sources, forced)
    with Progress() as progress:
        on_bytes = progress.bytes_of("clean", rows.bytes)
        read = partial(read_rows, format=rows.format, columns=rows.columns, on_bytes=on_bytes)
        cleaned = clean(sources, out, settings, lints=lints, read=read)
    repeats = reading.repeats(cleaned.duplicate_sources)
    return Result({"out": out, **vars(cleaned), "duplicate_sources": repeats}, _lines(cleaned, out))


def _lines(cleaned: Cleaned, out: Path) -> Iterator[Any]:
    yield from (one_line(str(fault)) for fault in cleaned.faults)
    yield table(
        ["step", "rows in", "changed", "removed", "kept"],
        (
            [name, *(f"{did[key]:,}" for key in ("in", "changed", "removed", "kept"))]
            for name, did in cleaned.steps.items()
        ),
    )
    yield from reading.repeats_told(cleaned.duplicate_sources)
    yield (
        f"{count(cleaned.rows, 'row')}, {cleaned.kept:,} kept ({cleaned.changed:,} changed), "
        f"{cleaned.removed:,} removed, {cleaned.rejected:,} rejected"
    )
    splits = ", ".join(f"{number:,} {split}" for split, number in cleaned.splits.items())
    listed = [f"{kind}.jsonl" for kind in ("removed", "changed") if getattr(cleaned, kind)]
    yield f"{out}: {splits}" + (f"; see its {' and '.join(listed)}" if listed else "")
