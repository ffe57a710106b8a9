"""``data render``: rows with named fields into prompts, through task templates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_itune.cli import options
from mlx_itune.cli.data import reading
from mlx_itune.cli.result import Result, table
from mlx_itune.dataset.templating.plan import RenderPlan
from mlx_itune.kit.errors import one_line
from mlx_itune.kit.wording import count, percent

if TYPE_CHECKING:
    from rich.table import Table

    from mlx_itune.dataset.templating.run import Rendering

_WARNINGS_SHOWN = 10


@options.command(
    "render",
    "mlx-itune data render gsm8k.jsonl --templates data/templates/grade_school_math.toml "
    "--out rendered",
)
@click.argument("source", type=options.ANY_PATH, metavar="SRC")
@click.option(
    "--templates",
    type=options.ANY_PATH,
    required=True,
    metavar="FILE",
    help="Task file (TOML): fields and the templates that lay them out; see docs/templates.md.",
)
@click.option("--out", type=options.DIRECTORY, required=True, metavar="DIR")
@options.settings(RenderPlan)
def command(source: Path, templates: Path, out: Path, settings: RenderPlan) -> Result:
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
    return Result(made, _told(made))


def _measure_with(model: str) -> Callable[[Sequence[str]], list[int]]:
    """Counts tokens with a model's own tokenizer."""
    # Any chat template would do: only plain text is counted.
    tokenizer = reading.tokenizer_of(model, "chatml")
    return lambda texts: [len(encoded.ids) for encoded in tokenizer.encode_many(texts)]


def _told(made: Rendering) -> Iterator[str | Table]:
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
