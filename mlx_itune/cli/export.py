"""``export``: a model for another runtime, read back and verified."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mlx_itune.cli import options


@options.command("export", "mlx-itune export --model fused --to mlx --out shipped")
@options.model
@options.adapter
@click.option("--to", "kind", type=click.Choice(["mlx"]), required=True, help="The format.")
@click.option("--out", type=options.DIRECTORY, required=True, metavar="DIR")
@options.fidelity
@options.template
@options.compute
def command(
    model: str,
    adapter: Path | None,
    kind: str,
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
    """Write a model directory for mlx-lm, mlx-swift-lm and LM Studio, and read it back.

    With --adapter it is merged first, as `fuse` does.
    """
    from mlx_itune.cli import report
    from mlx_itune.cli.opening import fidelity_examples, open_tokenizer
    from mlx_itune.export.fuse import DEFAULT_MAX_KL
    from mlx_itune.export.to_mlx import export_mlx
    from mlx_itune.kit.errors import UsageError
    from mlx_itune.model import adapter as adapters
    from mlx_itune.model.base import resolve

    if adapter is None and bits:
        raise UsageError("--bits takes effect only with --adapter", hint="leave it out")
    source = resolve(model, offline=offline)
    tokenizer = open_tokenizer(source, adapters.load(adapter) if adapter else None, template)
    result = export_mlx(
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
        observe=lambda what: print(what, file=sys.stderr),
    )
    if as_json:
        report.emit(result)
        return
    for artifact in result.artifacts:
        print(f"{artifact.path}  {artifact.format}  {report.megabytes(artifact.bytes)}")
        print(f"sha256 {artifact.sha256}")
    checked = result.verify
    equal = f"all {checked.tensors} tensors equal, " if checked.tensors_equal else ""
    print(
        f"read back by {checked.reader}: {equal}mean KL {report.number(checked.kl_mean, 2)}, "
        f"same first choice {report.percent(checked.top1_agreement)}"
    )
