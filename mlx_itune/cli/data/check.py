"""``data check``: every fault of every row at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_itune.cli import options
from mlx_itune.cli.data import reading
from mlx_itune.cli.result import Result
from mlx_itune.kit.errors import DataError, one_line
from mlx_itune.kit.wording import count, listing

if TYPE_CHECKING:
    from mlx_itune.dataset.checking.check import Check
    from mlx_itune.dataset.faults import Fault
    from mlx_itune.dataset.importing.plan import ImportPlan

_SHOWN_PER_CODE = 50


@options.command("check", "mlx-itune data check train.jsonl valid.jsonl --model starter")
@click.argument("files", nargs=-1, required=True, type=options.ANY_PATH, metavar="FILE...")
@reading.forced_format
@reading.about_tokens
@click.option(
    "--lints",
    type=options.ANY_PATH,
    metavar="FILE",
    help="Your own list of lints in place of the built-in one (or added to it: extend = true).",
)
@click.option("--no-near-duplicates", is_flag=True, help="Look for exact duplicates only.")
@click.option("--strict", is_flag=True, help="Warnings make the exit code 3, too.")
def command(
    files: tuple[Path, ...],
    forced: ImportPlan,
    tokens: reading.AboutTokens,
    lints: Path | None,
    no_near_duplicates: bool,
    strict: bool,
) -> Result:
    """Every fault of every row at once; exit code 3 if there is any error.

    FILE is a file of rows of any format, or a folder of them. Errors are rows that training
    refuses. Warnings are duplicates and near duplicates, rows of one split repeated in another,
    what the lints find, template text inside contents and system prompts spelled in several ways;
    with --model also rows that are too long or have nothing to learn.
    """
    from mlx_itune.cli.progress import Progress
    from mlx_itune.dataset.checking.check import Check
    from mlx_itune.dataset.checking.lints import load_lints

    rows = reading.RowFiles(files, forced)
    with Progress() as progress:
        checked = Check(
            rows.paths,
            format=rows.format,
            columns=rows.columns,
            tokenizer=tokens.tokenizer,
            learn=tokens.learn or "all",
            max_length=tokens.max_length or 2048,
            near_duplicates=not no_near_duplicates,
            lints=load_lints(lints),
            on_bytes=progress.bytes_of("check", rows.bytes),
        )
        faults = list(checked)
    data = {
        "rows": checked.rows,
        "accepted": checked.accepted,
        "rejected": checked.rejected,
        "warnings": checked.warnings,
        "counts": checked.counts,
        "duplicate_sources": reading.repeats(checked.duplicate_sources),
        "notes": checked.notes,
        "faults": faults,
    }
    failed = checked.rejected or not checked.accepted or (strict and checked.warnings)
    return Result(data, _lines(checked, faults), DataError.exit_code if failed else 0)


def _lines(checked: Check, faults: Sequence[Fault]) -> Iterator[str]:
    """The faults, each said once with the rows that have it; then the counts."""
    same: dict[tuple[str, str, str], list[Fault]] = {}
    for fault in faults:
        same.setdefault((fault.code, fault.message, fault.hint), []).append(fault)
    shown: Counter[str] = Counter()
    for (code, _, _), alike in same.items():
        shown[code] += 1
        if shown[code] <= _SHOWN_PER_CODE:
            first, *more = alike
            at = listing(fault.where.removeprefix(f"{first.file}:") for fault in more)
            also = f"; the same in {count(len(more), 'more row')}: {at}" if more else ""
            yield one_line(f"{first}{also}")
        elif shown[code] == _SHOWN_PER_CODE + 1:
            yield f"... more of {code}: counted below, listed by --json"
    yield from (f"note: {note}" for note in checked.notes)
    yield from reading.repeats_told(checked.duplicate_sources)
    counts = ", ".join(f"{number:,} {code}" for code, number in sorted(checked.counts.items()))
    yield (
        f"{count(checked.rows, 'row')}, {checked.accepted:,} accepted, {checked.rejected:,} "
        f"rejected, {count(checked.warnings, 'warning')}{': ' if counts else ''}{counts}"
    )
