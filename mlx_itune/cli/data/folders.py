"""Data folders: ``import``, ``clean``, ``render`` and ``sample`` make them, ``trace`` knows their
rows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_itune.cli import options
from mlx_itune.cli.data import reading
from mlx_itune.cli.result import Result, pairs, table
from mlx_itune.dataset.cleaning.plan import CleanPlan
from mlx_itune.dataset.importing.plan import ImportPlan
from mlx_itune.dataset.templating.plan import RenderPlan
from mlx_itune.kit.errors import DataError, UsageError, one_line
from mlx_itune.kit.settings import table_of
from mlx_itune.kit.wording import count, percent

if TYPE_CHECKING:
    from rich.table import Table

    from mlx_itune.dataset.cleaning.run import Cleaned
    from mlx_itune.dataset.importing.provenance import History
    from mlx_itune.dataset.importing.run import Imported
    from mlx_itune.dataset.templating.run import Rendering

_NOT_FOUND = (
    "personal data is found by its form or a label before it; names of people, dates of service, "
    "serial numbers of devices and URLs without a login are not looked for: read a sample"
)
_TEXT_SHOWN, _WARNINGS_SHOWN = 200, 10


@options.command("data import")
@options.flags("sources-of-import out-directory")
@options.together(*map(options.flag, table_of(ImportPlan).values()))
def import_(sources: tuple[str, ...], out: Path, as_json: bool, **settings: Any) -> Result:
    """Any instruction file in; a folder of train, valid and test rows out.

    SRC is a file (JSON, JSON Lines, CSV, TSV, Parquet, XLSX, text), a folder of them, or a Hub
    data set: org/name, org/name:split, org/name@revision. Broken rows are listed and left out;
    the folder's rejected.jsonl holds them all.
    """
    from mlx_itune.api.rows import import_rows
    from mlx_itune.cli.progress import Progress

    def ask(name: str) -> str:
        question = f"Licence of {name} (empty: not known)"
        return str(click.prompt(question, default="", show_default=False, err=True))

    may_ask = sys.stdin.isatty() and not as_json
    with Progress() as progress:
        asking = ask if may_ask else None
        made = import_rows(sources, out, ask=asking, observe=progress.bytes, **settings)
    again = reading.suggestion(made.told, "import", *sources, "--out", out)
    return Result(made, chain(imported(made), again), 0 if made.written else DataError.exit_code)


def imported(made: Imported) -> Iterator[str | Table]:
    """What came of an import, for people."""
    yield from (one_line(str(fault)) for fault in made.faults)
    listed = sum(1 + fault.alike for fault in made.faults if fault.severity == "error")
    if made.rejected > listed:
        yield f"... and {made.rejected - listed:,} more"
    yield (
        f"{count(made.rows, 'row')}, {made.accepted:,} accepted, {made.rejected:,} rejected"
        + "".join(f", {n:,} left out by --{why}" for why, n in made.left_out.items())
    )
    if not made.written:
        yield from (one_line(f"note: {line}") for line in made.told.lines())
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
    yield from (one_line(f"note: {note}") for note in (*made.told.lines(), *made.notes))
    yield f"{made.out}: " + ", ".join(f"{n:,} {name}" for name, n in made.splits.items())


@options.command("data clean")
@options.flags("sources out-directory")
@reading.form
@options.flags("lints-of-clean")
@options.together(*map(options.flag, table_of(CleanPlan).values()))
def clean(sources: tuple[Path, ...], out: Path, **settings: Any) -> Result:
    """Clean a data set; rows that were removed or changed are listed with the reason.

    SRC is a file or folder of rows of any format; a data folder keeps its splits. The new folder
    holds removed.jsonl, changed.jsonl and a ledger of what was done.

    \b
    Steps:
      html-to-text      answers saved as HTML become Markdown
      copy-code         'Copy code' buttons and page counts go
      list-numbers      lists whose items are all numbered 1 are counted
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
      single-round      the first question and its answer alone stay
      id-duplicates, exact-duplicates, pair-duplicates (equal first question and answer),
      near-duplicates
    """
    from mlx_itune.api.rows import clean, repeated
    from mlx_itune.cli.progress import Progress

    with Progress() as progress:
        cleaned = clean(sources, out, observe=progress.bytes, **settings)
    told = {"out": out, **vars(cleaned), "duplicate_sources": repeated(cleaned.duplicate_sources)}
    return Result(told, _cleaned(cleaned, out))


def _cleaned(cleaned: Cleaned, out: Path) -> Iterator[Any]:
    from mlx_itune.api.rows import repeated

    yield from (one_line(str(fault)) for fault in cleaned.faults)
    yield table(
        ["step", "rows in", "changed", "removed", "kept"],
        (
            [name, *(f"{did[key]:,}" for key in ("in", "changed", "removed", "kept"))]
            for name, did in cleaned.steps.items()
        ),
    )
    yield from reading.repeats_told(repeated(cleaned.duplicate_sources))
    yield from (one_line(f"note: {line}") for line in cleaned.told.lines())
    if "pii" in cleaned.steps:
        yield f"note: {_NOT_FOUND}"
    yield (
        f"{count(cleaned.rows, 'row')}, {cleaned.kept:,} kept ({cleaned.changed:,} changed), "
        f"{cleaned.removed:,} removed, {cleaned.rejected:,} rejected"
    )
    splits = ", ".join(f"{number:,} {split}" for split, number in cleaned.splits.items())
    listed = [f"{kind}.jsonl" for kind in ("removed", "changed") if getattr(cleaned, kind)]
    yield f"{out}: {splits}" + (f"; see its {' and '.join(listed)}" if listed else "")


@options.command("data render")
@options.flags("source templates out-directory")
@options.settings(RenderPlan)
def render(source: Path, templates: Path, out: Path, settings: RenderPlan) -> Result:
    """Write rows with named fields as prompts and replies, through many templates per task.

    SRC is a file of rows (JSONL, JSON, CSV, TSV, Parquet, XLSX) or a folder of them; a folder with
    a train file is read by splits. The choice of a template depends on the row's content and the
    seed alone. Exemplars come from training rows.
    """
    from mlx_itune.cli.progress import Progress
    from mlx_itune.dataset.templating.run import render_rows

    measure = _measure_with(settings.model) if settings.model else None
    with Progress() as progress:
        made = render_rows(
            source, templates, out, settings, measure=measure, tell=progress.bytes_of
        )
    return Result(made, _rendered(made))


def _measure_with(model: str) -> Callable[[Sequence[str]], list[int]]:
    from mlx_itune.inference.opening import Opening, open_tokenizer

    # Any chat template would do: only plain text is counted.
    tokenizer = open_tokenizer(Opening(model, template="chatml"))
    return lambda texts: [len(encoded.ids) for encoded in tokenizer.encode_many(texts)]


def _rendered(made: Rendering) -> Iterator[str | Table]:
    yield from (f"warning: {one_line(str(each))}" for each in made.warnings[:_WARNINGS_SHOWN])
    if len(made.warnings) > _WARNINGS_SHOWN:
        yield f"... and {len(made.warnings) - _WARNINGS_SHOWN} more (--json lists all)"
    yield from (one_line(f"note: {note}") for note in made.notes)
    yield from (one_line(str(fault)) for fault in made.faults)
    for task in made.tasks:
        rows = [
            (str(t["template"]), t["kind"], percent(t["requested"]), percent(t["achieved"]))
            for t in task["templates"]
        ]
        title = one_line(f"{task['task']}: {task['examples']:,} examples")
        yield table(("template", "kind", "requested", "achieved"), rows, title=title)
        if set(task["shots"]) != {"0"}:
            listed = ", ".join(f"{n} with {shots}" for shots, n in task["shots"].items())
            yield f"exemplars: {listed}; {task['dropped']} dropped that could keep none"
    sizes = ", ".join(f"{rows:,} {name}" for name, rows in made.splits.items())
    yield (
        f"{made.out}: {count(made.rows, 'row')}, {made.rejected:,} rejected; {sizes} examples, "
        f"{made.dropped:,} dropped"
    )


@options.command("data sample")
@options.flags("out-directory seed-of-sample train valid test unseen")
def sample(out: Path, seed: int, **sizes: int) -> Result:
    """Write the clinical sample data: wholly invented notes, twenty kinds of task.

    unseen.jsonl asks in wordings that no other split uses. With fewer rows than there are, every
    seed takes others, and as many of each task.
    """
    from mlx_itune.dataset.sample_data import write_sample

    if out.resolve() == Path.cwd().resolve():
        raise UsageError("is the current directory", where=str(out), hint="name a new folder")
    write_sample(out, seed=seed, sizes=sizes)
    told = ", ".join(f"{rows:,} {name}" for name, rows in sizes.items())
    return Result({"out": out, "seed": seed, "rows": sizes}, [f"{one_line(str(out))}: {told} rows"])


@options.command("data trace")
@options.flags("row data-folder")
def trace(row: str, data: Path) -> Result:
    """The whole history of one row, after checking that nobody rewrote the folder.

    ROW is a place in the folder (train:12), the file and line a row was read from
    (gsm8k.jsonl:7, removed and rejected rows too), or a row's id. Exit code 3 if the folder is
    not what its record says.
    """
    from mlx_itune.dataset.importing.provenance import trace, traceable, verify

    problems = verify(data)
    record = traceable(data)
    histories = trace(data, row)
    told = {
        "row": row,
        "data": data,
        "verified": not problems,
        "problems": problems,
        "ledger": {"entries": len(record.steps), "head": record.seal},
        "histories": histories,
    }
    sealed = f"verified: {count(len(record.steps), 'step')}, seal {record.seal}"
    lines = _traced(histories, problems, sealed)
    return Result(told, lines, DataError.exit_code if problems else 0)


def _traced(histories: Sequence[History], problems: Sequence[str], sealed: str) -> Iterator[str]:
    for one in histories:
        yield one_line(f"{one.file}:{one.line} -> {one.now or 'not in the folder'}")
        text = one.text or ""
        shown: list[tuple[str, str]] = [
            ("id", one.id or "-"),
            (f"sha256 of {one.file}", one.sha256 or "not recorded"),
            ("text", text[:_TEXT_SHOWN] + (" ..." if len(text) > _TEXT_SHOWN else "")),
        ]
        yield from (one_line(f"  {line}") for line in pairs(shown))
        for step in one.steps:
            why = ": ".join(str(step[key]) for key in ("reason", "detail") if step.get(key))
            yield one_line(
                f"  {step['n']}. {step['time']} data {step['command']} ({step['tool']} "
                f"{step['version']}, {step['operator']}): {step['action']}"
                + (f" ({why})" if why else "")
            )
    yield from (one_line(f"CHANGED: {problem}") for problem in problems)
    if not problems:
        yield sealed
