"""``data stats``: what a data set is made of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_itune.cli import options
from mlx_itune.cli.data import reading
from mlx_itune.cli.result import Result, pairs, table
from mlx_itune.kit.errors import DataError, one_line
from mlx_itune.kit.json_files import plain

if TYPE_CHECKING:
    from mlx_itune.dataset.importing.plan import ImportPlan
    from mlx_itune.dataset.statistics.stats import Stats

_NAMES_SHOWN = 10
_FAULTS_SHOWN = 3
_NAME_CHARS = 48


@options.command("stats", "mlx-itune data stats rows.jsonl --model starter --html stats.html")
@click.argument("data", nargs=-1, required=True, type=options.ANY_PATH, metavar="DATA...")
@reading.about_tokens
@reading.forced_format
@reading.page
def command(
    data: tuple[Path, ...], tokens: reading.AboutTokens, forced: ImportPlan, html: Path | None
) -> Result:
    """What a data set is made of: splits, turns, roles, sources, writing systems, tools, lengths.

    DATA is a file or folder of rows of any format. With --model, tokens and learned tokens too.
    """
    from mlx_itune.cli.progress import Progress
    from mlx_itune.dataset.statistics.report import stats_page
    from mlx_itune.dataset.statistics.stats import count
    from mlx_itune.kit.files import write_new

    files = reading.RowFiles(data, forced)
    with Progress() as progress:
        stats = count(
            files.splits(progress.bytes_of("read", files.bytes)),
            tokenizer=tokens.tokenizer,
            learn=tokens.learn or "all",
            max_length_tokens=tokens.max_length,
        )
    if stats is None:
        raise DataError(
            "holds no row that can be read", where=files.name, hint="see mlx-itune data check"
        )
    if html:
        write_new(html, stats_page(stats, data=files.name).encode())
    found = {"data": [str(path) for path in data], "html": html, **plain(stats)}
    return Result(found, _lines(stats, html))


def _lines(stats: Stats, html: Path | None) -> Iterator[Any]:
    from mlx_itune.dataset.statistics.report import facts, tables

    yield from pairs(facts(stats))
    refused = stats.tokens.refused if stats.tokens else ()
    for fault in [*stats.faults[:_FAULTS_SHOWN], *refused[:_FAULTS_SHOWN]]:
        yield f"  {one_line(fault)}"
    for made in tables(stats):
        rows = [[_cell(text) for text in row] for row in made.rows[:_NAMES_SHOWN]]
        if more := len(made.rows) - _NAMES_SHOWN:
            rows += [[f"{more} more", *[""] * (len(made.columns) - 1)]] if more > 0 else []
        yield table(made.columns, rows)
    if html:
        yield f"plots: {one_line(str(html))}"


def _cell(text: str) -> str:
    """One short terminal-safe line that rich does not read as its own markup."""
    from rich.markup import escape

    return escape(one_line(text if len(text) <= _NAME_CHARS else f"{text[: _NAME_CHARS - 1]}…"))
