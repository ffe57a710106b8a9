"""``fuse``, ``export``, ``verify``, ``import``: one model of base and adapter; other runtimes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_itune.cli import options
from mlx_itune.cli.result import Result, table
from mlx_itune.kit.errors import UsageError, one_line
from mlx_itune.kit.wording import count, number, percent, size

if TYPE_CHECKING:
    from mlx_itune.export.artifact import Exported
    from mlx_itune.export.fusing.fuse import FuseResult
    from mlx_itune.model.adapters.from_peft import PeftImport


_WAYS = click.Choice(["auto", "exact", "compensated", "plain", "float"])
_measuring = options.together(
    options.runs, options.fidelity, options.template, options.compute, options.allow_other_base
)


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
    type=_WAYS,
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
@_measuring
def fuse(score: bool, runs: Path, data: Path | None, template: str | None, **given: Any) -> Result:
    """Merge an adapter into its base; the smallest result that still is the model you trained."""
    from mlx_itune.cli.measured_rows import measured_rows, requested, scorer
    from mlx_itune.export.fusing.fuse import fuse

    request = requested(given, template)
    rows = measured_rows(request, data, runs)
    request = replace(request, rows=rows, score=scorer(rows, request.tokenizer) if score else None)
    result = fuse(request, lambda what: click.echo(f"trying: {what}", err=True))
    return Result(result, _fused(result, rows.source))


def _fused(result: FuseResult, source: str) -> Iterator[Any]:
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


@options.command(
    "export", "mlx-itune export --model starter --adapter adapter --to gguf --out tuned.gguf"
)
@options.model
@options.adapter
@click.option(
    "--to",
    "format",
    type=click.Choice(["mlx", "gguf", "gguf-lora", "hf", "peft", "ollama", "lmstudio"]),
    required=True,
    help="gguf-lora and peft take the adapter alone; the others a whole model, merged if need be.",
)
@click.option("--out", type=options.ANY_PATH, required=True, metavar="PATH")
@click.option(
    "--type",
    metavar="TYPE",
    help="Of the tensors. gguf, ollama: native (MLX's own codes, or q8_0 where GGUF has no such "
    "blocks; the default of a quantized model), lossless, f32, f16 (of others), bf16, q8_0, q4_0, "
    "q4_k_m, q5_k_m, q6_k. hf: f32, f16, bf16. lmstudio: mlx (default) or a type of gguf.",
)
@click.option("--name", help="The model's name; for LM Studio PUBLISHER/MODEL.")
@click.option(
    "--separate", is_flag=True, help="Ollama: the adapter beside its base, instead of merged."
)
@click.option(
    "--bundle", is_flag=True, help="Add manifest, model card, licences, scripts and snippets."
)
@click.option(
    "--way",
    type=_WAYS,
    help="How --adapter is merged (see fuse); by default what the type makes best.",
)
@_measuring
def command(runs: Path, data: Path | None, template: str | None, **given: Any) -> Result:
    """Write a model for mlx-lm, llama.cpp, Ollama, LM Studio, transformers or PEFT; read it back.

    With --adapter it is merged first, as `fuse` does, and what that lost is measured.
    """
    from mlx_itune.cli.measured_rows import measured_rows, requested
    from mlx_itune.export.formats import export

    request = requested(given, template)
    asked = [given[name] is not None for name in ("bits", "way", "max_kl")]
    if not request.merges and (any(asked) or request.allow_lossy):
        raise UsageError(
            "--bits, --way, --max-kl and --allow-lossy take effect only where --adapter is merged "
            "and measured",
            hint="leave them out" if request.adapter else "give --adapter",
        )
    if request.needs_rows:
        request = replace(request, rows=measured_rows(request, data, runs))
    elif data is not None:
        raise UsageError("--data takes effect only where something is measured on it")
    result = export(request, lambda what: click.echo(what, err=True))
    return Result(result, _lines(result))


def _lines(result: Exported) -> Iterator[str]:
    for artifact in result.artifacts:
        yield f"{artifact.path}  {artifact.format}  {size(artifact.bytes)}"
        yield f"sha256 {artifact.sha256}"
    if result.fuse is not None:
        fused = result.fuse
        yield (
            f"merged: {fused.method}; mean KL {number(fused.kl_mean, 2)} from base + adapter, "
            f"same first choice {percent(fused.top1_agreement)}"
        )
    checks = result.verify if isinstance(result.verify, dict) else {"": result.verify}
    for part, checked in checks.items():
        yield f"read back{' (' + part + ')' if part else ''}: {_facts(checked)}"
    if result.tokenizer is not None:
        yield f"tokenizer: {_facts(result.tokenizer)}, all equal"
    yield from (f"note: {note}" for note in result.notes)


def _facts(checked: Any) -> str:
    # A model's own answer may hold what would repaint a terminal.
    return ", ".join(
        f"{key.replace('_', ' ')} "
        + (number(value, 2) if isinstance(value, float) else one_line(str(value)))
        for key, value in vars(checked).items()
        if isinstance(value, (str, int, float))
    )


@options.command("verify", "mlx-itune verify shipped")
@click.argument("bundle", type=options.DIRECTORY, metavar="BUNDLE")
def verify(bundle: Path) -> Result:
    """Compare a bundle (`export --bundle`) with its manifest; exit code 4 if a file differs."""
    from mlx_itune.export.bundle import check_bundle

    checked = check_bundle(bundle)
    total = size(sum(file.bytes for file in checked.files))
    files = count(len(checked.files), "file")
    about = {"path": str(bundle), **vars(checked)}
    return Result(about, [f"{bundle}: {files}, {total}, each as the manifest says"])


@options.command("import", "mlx-itune import peft-adapter --model starter --out adapter")
@click.argument("source", type=options.DIRECTORY, metavar="PEFT_DIR")
@options.model
@click.option("--out", type=options.DIRECTORY, required=True, metavar="DIR")
def import_adapter(source: Path, model: str, out: Path) -> Result:
    """Read a PEFT adapter (LoRA, rsLoRA, DoRA) and write it as mlx-lm and this program read it.

    Each update is compared with PEFT's own; what has no such form is refused by name.
    """
    from mlx_itune.model.adapters.from_peft import import_peft

    done = import_peft(source, model, out)
    return Result(done, _imported(done))


def _imported(done: PeftImport) -> Iterator[str]:
    layers = count(done.layers, "layer")
    yield f"{done.out}: {done.kind}, rank {done.rank}, scale {done.scale:g}, {layers}"
    yield f"largest difference of an update from PEFT's: {number(done.largest_difference, 2)}"
    if done.padded:
        yield f"{count(done.padded, 'layer')} of a lower rank: padded with zeros"
    if done.folded:
        yield f"{count(done.folded, 'layer')} with another scale, which is now in their B"
