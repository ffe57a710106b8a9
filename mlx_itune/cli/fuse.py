"""``fuse``: base + adapter as one model directory, with the measured loss of the merge."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mlx_itune.cli import options


@options.command(
    "fuse", "mlx-itune fuse --model starter --adapter adapter --data test.jsonl --out fused"
)
@options.model
@click.option(
    "--adapter", type=options.DIRECTORY, required=True, metavar="DIR", help="The adapter to merge."
)
@click.option("--out", type=options.DIRECTORY, required=True, metavar="DIR")
@options.fidelity
@options.template
@options.compute
def command(
    model: str,
    adapter: Path,
    out: Path,
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
    from mlx_itune.cli.opening import fidelity_examples, open_tokenizer
    from mlx_itune.export.fuse import DEFAULT_MAX_KL, fuse
    from mlx_itune.model import adapter as adapters
    from mlx_itune.model.base import resolve

    source = resolve(model, offline=offline)
    tokenizer = open_tokenizer(source, adapters.load(adapter), template)
    result = fuse(
        model,
        adapter,
        out,
        data=fidelity_examples(model, adapter, tokenizer, data, compute=compute, offline=offline),
        tokenizer=tokenizer,
        bits=int(bits) if bits else None,
        max_kl=DEFAULT_MAX_KL if max_kl is None else max_kl,
        allow_lossy=allow_lossy,
        compute=compute,
        offline=offline,
        observe=lambda way: print(f"trying: {way}", file=sys.stderr),
    )
    if as_json:
        report.emit(result)
        return
    console = report.console()
    console.print(
        report.table(
            ["tried", "mean KL", "p99 KL", "same first choice"],
            [
                [
                    t.method,
                    report.number(t.kl_mean, 2),
                    report.number(t.kl_p99, 2),
                    report.percent(t.top1_agreement),
                ]
                for t in result.tried
            ],
        )
    )
    print(f"{result.out}: {result.method}, measured on {result.tokens:,} learned tokens")
