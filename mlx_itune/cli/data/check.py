"""``data check``: every fault of every row at once."""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from mlx_itune.cli import options
from mlx_itune.cli.data import reading
from mlx_itune.kit.errors import DataError, UsageError, one_line

if TYPE_CHECKING:
    from mlx_itune.dataset.checking import Check
    from mlx_itune.dataset.faults import Fault
    from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer

_SHOWN_PER_CODE = 50
_SOURCES_SHOWN = 10
_SPOOL_BYTES = 1 << 24


@options.command("check", "mlx-itune data check train.jsonl valid.jsonl --model starter")
@click.argument("files", nargs=-1, required=True, type=options.ANY_PATH, metavar="FILE...")
@reading.forced_format
@click.option(
    "--model",
    metavar="MODEL",
    help="Look at tokens too, with the tokenizer of 'starter', a model directory or a Hub id.",
)
@options.template
@click.option(
    "--max-length",
    type=click.IntRange(2),
    metavar="N",
    help="With --model: warn of rows over N tokens (default 2048).",
)
@click.option(
    "--learn",
    type=click.Choice(["all", "last", "marked"]),
    help="With --model: which assistant turns are learned (default all).",
)
@click.option(
    "--lints",
    type=options.ANY_PATH,
    metavar="FILE",
    help="Your own list of lints in place of the built-in one (or added to it: extend = true).",
)
@click.option("--no-near-duplicates", is_flag=True, help="Look for exact duplicates only.")
@click.option("--strict", is_flag=True, help="Warnings make the exit code 3, too.")
@click.pass_context
def command(
    ctx: click.Context,
    files: tuple[Path, ...],
    format_name: str | None,
    columns: tuple[str, ...],
    model: str | None,
    template: str | None,
    max_length: int | None,
    learn: Any,
    lints: Path | None,
    no_near_duplicates: bool,
    strict: bool,
    as_json: bool,
    offline: bool,
) -> None:
    """Every fault of every row at once; exit code 3 if there is any error.

    FILE is a file of rows of any format, or a folder of them. Errors are rows that training
    refuses. Warnings are duplicates and near duplicates, rows of one split repeated in another,
    what the lints find, template text inside contents and system prompts spelled in several ways;
    with --model also rows that are too long or have nothing to learn.
    """
    from mlx_itune.cli.progress import Progress
    from mlx_itune.dataset.checking import check, load_lints

    if not model and (template or max_length or learn):
        raise UsageError("--template, --max-length and --learn need tokens", hint="give --model")
    rows = reading.RowFiles(files, format_name, columns)
    checked = check(
        rows.paths,
        format=format_name,
        columns=reading._pairs(columns) or None,
        tokenizer=_tokenizer(model, template, offline) if model else None,
        learn=learn or "all",
        max_length_tokens=max_length or 2048,
        near_duplicates=not no_near_duplicates,
        lints=load_lints(lints),
        on_bytes=None,
    )
    with Progress() as progress:
        done = 0

        def on_bytes(more: int) -> None:
            nonlocal done
            done += more
            progress.update("check", done, max(rows.bytes, 1), "bytes")

        checked.on_bytes = on_bytes
        if as_json:
            _emit(checked)
        else:
            _tell(checked)
    failed = checked.rejected or not checked.accepted or (strict and checked.warnings)
    if failed:
        ctx.exit(DataError.exit_code)


def _tokenizer(model: str, template: str | None, offline: bool) -> ChatTokenizer:
    from mlx_itune.dataset.tokens.tokenizer import load_tokenizer
    from mlx_itune.model.loading.base import resolve, vet

    path = resolve(model, offline=offline)
    vet(path)
    return load_tokenizer(path, template=template or "auto")


def _tell(checked: Check) -> None:
    shown: Counter[str] = Counter()
    for fault in checked:
        shown[fault.code] += 1
        if shown[fault.code] <= _SHOWN_PER_CODE:
            print(one_line(str(fault)))
        elif shown[fault.code] == _SHOWN_PER_CODE + 1:
            print(f"... more of {fault.code}: counted below, listed by --json")
    for note in checked.notes:
        print(f"note: {note}")
    pairs = checked.duplicate_sources.most_common(_SOURCES_SHOWN)
    if any(later != earlier for (later, earlier), _ in pairs):
        for (later, earlier), count in pairs:
            print(one_line(f"repeated: {count:,} rows of {later} in {earlier}"))
    counts = "".join(f", {count:,} {code}" for code, count in sorted(checked.counts.items()))
    print(
        f"{checked.rows:,} rows, {checked.accepted:,} accepted, {checked.rejected:,} rejected, "
        f"{checked.warnings:,} warnings{': ' + counts[2:] if counts else ''}"
    )


def _emit(checked: Check) -> None:
    """One JSON object; the faults wait in a file, so that there may be millions of them."""
    from mlx_itune.cli import report

    with tempfile.SpooledTemporaryFile(_SPOOL_BYTES, "w+", encoding="utf-8") as spool:
        _write(spool, checked)
        head = {
            "rows": checked.rows,
            "accepted": checked.accepted,
            "rejected": checked.rejected,
            "warnings": checked.warnings,
            "counts": dict(checked.counts),
            "duplicate_sources": [
                {"later": later, "earlier": earlier, "rows": count}
                for (later, earlier), count in checked.duplicate_sources.most_common()
            ],
            "notes": checked.notes,
        }
        text = json.dumps(report.plain(head), ensure_ascii=False, allow_nan=False)
        sys.stdout.write(text[:-1] + ', "faults": [')
        spool.seek(0)
        while piece := spool.read(1 << 20):
            sys.stdout.write(piece)
        sys.stdout.write("]}\n")


def _write(spool: IO[str], faults: Iterable[Fault]) -> None:
    from mlx_itune.cli import report

    for number, fault in enumerate(faults):
        text = json.dumps(report.plain(fault), ensure_ascii=False, allow_nan=False)
        spool.write(f", {text}" if number else text)
