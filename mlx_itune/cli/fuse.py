"""``fuse``: base + adapter as one model directory, with the measured loss of the merge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_itune.cli import options
from mlx_itune.cli.result import Result, table
from mlx_itune.kit.wording import count, number, percent, size

if TYPE_CHECKING:
    from mlx_itune.export.fusing.fuse import FuseResult


@options.command(
    "fuse", "mlx-itune fuse --model starter --adapter adapter --data test.jsonl --out fused"
)
@options.model
@click.option(
    "--adapter", type=options.DIRECTORY, required=True, metavar="DIR", help="The adapter to merge."
)
@click.option("--out", type=options.DIRECTORY, required=True, metavar="DIR")
@click.option(
    "--way",
    type=click.Choice(["auto", "exact", "compensated", "plain", "float"]),
    default="auto",
    show_default=True,
    help="How to merge: on the adapter's own grid, rounded with error compensation, rounded "
    "plainly, or as floats; auto takes the smallest result within --max-kl.",
)
@click.option(
    "--every-way",
    "every",
    is_flag=True,
    help="Measure and score all ways, for the table; takes longer.",
)
@click.option("--score/--no-score", default=True, help="Answer the held-out rows, too.")
@options.runs
@options.fidelity
@options.template
@options.compute
@options.allow_other_base
def command(
    score: bool, runs: Path, data: Path | None, template: str | None, **given: Any
) -> Result:
    """Merge an adapter into its base; the smallest result that still is the model you trained."""
    from mlx_itune.cli.measured_rows import measured_rows, requested, scorer
    from mlx_itune.export.fusing.fuse import fuse

    request = requested(given, template)
    rows = measured_rows(request, data, runs)
    request = replace(request, rows=rows, score=scorer(rows, request.tokenizer) if score else None)
    result = fuse(request, lambda what: click.echo(f"trying: {what}", err=True))
    return Result(result, _lines(result, rows.source))


def _lines(result: FuseResult, source: str) -> Iterator[Any]:
    scored = result.score_reference is not None
    columns = ["tried", "size", "mean KL", "p99 KL", "top-1", *(["score"] if scored else [])]
    yield table(
        columns,
        [
            [
                t.method,
                size(t.bytes),
                number(t.kl_mean, 2),
                number(t.kl_p99, 2),
                percent(t.top1_agreement),
                *([percent(t.score)] if scored else []),
            ]
            for t in result.tried
        ],
    )
    yield (
        f"{result.out}: {result.method}; measured on {count(result.tokens, 'learned token')} of "
        f"{count(result.rows, 'row')} ({source})"
    )
    if scored:
        yield f"base + adapter: exact match {percent(result.score_reference)}"
    if result.calibration_rows:
        yield f"errors compensated on {count(result.calibration_rows, 'other row')}"
