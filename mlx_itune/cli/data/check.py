"""``data check``: every fault of every row at once; ``data stats``: what a data set is made of;
``data schema``: the shape of its answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_itune.cli import options
from mlx_itune.cli.data import reading
from mlx_itune.cli.result import Result, pairs, table
from mlx_itune.kit.errors import DataError, one_line
from mlx_itune.kit.json_files import plain
from mlx_itune.kit.wording import count, listing, percent

if TYPE_CHECKING:
    from mlx_itune.api.rows import Checked
    from mlx_itune.dataset.conversation import Fault
    from mlx_itune.dataset.schema import Inferred
    from mlx_itune.dataset.statistics.stats import Stats

_SHOWN_PER_CODE = 50


@options.command("data check")
@options.flags("files")
@reading.form
@reading.about_tokens
@options.flags("lints schema-of-answers no-near-duplicates strict")
def check(files: tuple[Path, ...], no_near_duplicates: bool, **how: Any) -> Result:
    """Every fault of every row at once; exit code 3 if there is any error.

    FILE is a file of rows of any format, or a folder of them. Errors are rows that training
    refuses. Warnings are duplicates and near duplicates, rows of one split repeated in another,
    what the lints find, template text inside contents, system prompts spelled in several ways and
    answers that break --schema or, without it, the JSON shape that nearly all others have; with
    --model also rows that are too long or have nothing to learn.
    """
    from mlx_itune.api.rows import check
    from mlx_itune.cli.progress import Progress

    with Progress() as progress:
        near = not no_near_duplicates
        checked = check(files, near_duplicates=near, observe=progress.bytes, **how)
    again = reading.suggestion(checked.told, "check", *files)
    return Result(
        checked, chain(_checked(checked), again), 0 if checked.ok else DataError.exit_code
    )


def _checked(checked: Checked) -> Iterator[str]:
    """The faults, each said once with the rows that have it; then the counts."""
    same: dict[str, list[Fault]] = {}
    for fault in checked.faults:
        same.setdefault(fault.kind, []).append(fault)
    shown: Counter[str] = Counter()
    for alike in same.values():
        code = alike[0].code
        shown[code] += 1
        if shown[code] <= _SHOWN_PER_CODE:
            first, *more = alike
            at = listing(fault.where.removeprefix(f"{first.file}:") for fault in more)
            also = f"; the same in {count(len(more), 'more row')}: {at}" if more else ""
            yield one_line(f"{first}{also}")
        elif shown[code] == _SHOWN_PER_CODE + 1:
            yield f"... more of {code}: counted below, listed by --json"
    yield from (one_line(f"note: {note}") for note in (*checked.notes, *checked.told.lines()))
    yield from reading.repeats_told(checked.duplicate_sources)
    counts = ", ".join(f"{number:,} {code}" for code, number in sorted(checked.counts.items()))
    yield (
        f"{count(checked.rows, 'row')}, {checked.accepted:,} accepted, {checked.rejected:,} "
        f"rejected, {count(checked.warnings, 'warning')}{': ' if counts else ''}{counts}"
    )


@options.command("data schema")
@options.flags("data-files out-of-schema")
@reading.form
def schema(data: tuple[Path, ...], out: Path | None, as_json: bool, **how: Any) -> Result:
    """A JSON Schema (2020-12) of the answers that are JSON: types, required keys, closed lists.

    DATA is a file or folder of rows of any format. A list of values or keys is closed only where
    each of them was seen more than once.
    """
    from mlx_itune.api.rows import infer_schema
    from mlx_itune.cli.progress import Progress

    with Progress() as progress:
        found = infer_schema(data, out=out, observe=progress.bytes, **how)
    text = json.dumps(found.schema, ensure_ascii=False, indent=2)
    if not out and not as_json:
        # The schema alone, for a pipe.
        options.tell(_rests_on(found))
    lines = [text] if not out else [str(out), *_rests_on(found)]
    return Result({**plain(found), "out": out}, lines)


def _rests_on(found: Inferred) -> Iterator[str]:
    other = f"; the first that is not: {found.first_other}" if found.first_other else ""
    yield one_line(f"{found.json:,} of {count(found.answers, 'answer')} are JSON{other}")
    if found.held_out is not None:
        yield f"{percent(found.held_out)} of one half satisfy the schema of the other half"


_NAMES_SHOWN = 10
_FAULTS_SHOWN = 3
_NAME_CHARS = 48


@options.command("data stats")
@options.flags("data-files")
@reading.about_tokens
@reading.form
@reading.page
def stats(data: tuple[Path, ...], html: Path | None, **how: Any) -> Result:
    """What a data set is made of: splits, turns, roles, sources, writing systems, tools, lengths.

    DATA is a file or folder of rows of any format. With --model, tokens and learned tokens too.
    """
    from mlx_itune.api.rows import stats
    from mlx_itune.cli.progress import Progress

    with Progress() as progress:
        found = stats(data, html=html, observe=progress.bytes, **how)
    about = {"data": [str(path) for path in data], "html": html, **plain(found)}
    return Result(about, _counted(found, html))


def _counted(stats: Stats, html: Path | None) -> Iterator[Any]:
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
