"""``export``, ``verify``, ``import``: models and adapters for and from other runtimes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_itune.cli import options
from mlx_itune.cli.result import Result
from mlx_itune.kit.errors import UsageError, one_line
from mlx_itune.kit.wording import count, number, percent, size

if TYPE_CHECKING:
    from mlx_itune.export.artifact import Exported
    from mlx_itune.model.adapters.from_peft import PeftImport


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
    type=click.Choice(["auto", "exact", "compensated", "plain", "float"]),
    help="How --adapter is merged (see fuse); by default what the type makes best.",
)
@options.runs
@options.fidelity
@options.template
@options.compute
@options.allow_other_base
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
