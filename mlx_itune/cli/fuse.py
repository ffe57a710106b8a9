"""``fuse``: base + adapter as one model directory, with the measured loss of the merge."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_itune.cli import options

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
    "--every-way", is_flag=True, help="Measure and score all ways, for the table; takes longer."
)
@click.option("--score/--no-score", default=True, help="Answer the held-out rows, too.")
@options.runs
@options.fidelity
@options.template
@options.compute
def command(
    model: str,
    adapter: Path,
    out: Path,
    way: str,
    every_way: bool,
    score: bool,
    runs: Path,
    bits: str | None,
    max_kl: float | None,
    allow_lossy: bool,
    data: Path | None,
    template: str | None,
    compute: str,
    as_json: bool,
    offline: bool,
) -> None:
    """Merge an adapter into its base; the smallest result that still is the model you trained."""
    from mlx_itune.cli import report
    from mlx_itune.cli.held_out import held_out, scorer
    from mlx_itune.cli.opening import open_tokenizer
    from mlx_itune.export.fusing.fuse import DEFAULT_MAX_KL, fuse
    from mlx_itune.model.adapters import adapter as adapters
    from mlx_itune.model.loading.base import resolve

    source = resolve(model, offline=offline)
    tokenizer = open_tokenizer(source, adapters.load(adapter), template)
    rows = held_out(model, adapter, tokenizer, data, runs=runs, compute=compute, offline=offline)
    result = fuse(
        model,
        adapter,
        out,
        data=rows.measured,
        calibration=rows.calibration,
        tokenizer=tokenizer,
        score=scorer(rows, tokenizer) if score else None,
        way=way,
        bits=int(bits) if bits else None,
        max_kl=DEFAULT_MAX_KL if max_kl is None else max_kl,
        allow_lossy=allow_lossy,
        every=every_way,
        compute=compute,
        offline=offline,
        observe=lambda what: print(f"trying: {what}", file=sys.stderr),
    )
    if as_json:
        report.emit(result)
    else:
        _tell(result, rows.source)


def _tell(result: FuseResult, source: str) -> None:
    from mlx_itune.cli import report

    scored = result.score_reference is not None
    columns = ["tried", "size", "mean KL", "p99 KL", "top-1"]
    table = [
        [
            t.method,
            report.megabytes(t.bytes),
            report.number(t.kl_mean, 2),
            report.number(t.kl_p99, 2),
            report.percent(t.top1_agreement),
            *([report.percent(t.score)] if scored else []),
        ]
        for t in result.tried
    ]
    report.console().print(report.table([*columns, *(["score"] if scored else [])], table))
    print(
        f"{result.out}: {result.method}; measured on {result.tokens:,} learned tokens of "
        f"{result.rows:,} rows ({source})"
    )
    if scored:
        print(f"base + adapter: exact match {report.percent(result.score_reference)}")
    if result.calibration_rows:
        print(f"errors compensated on {result.calibration_rows:,} other rows")
