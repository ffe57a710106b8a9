"""``fuse``, ``export``, ``verify``, ``import``: one model of base and adapter; other runtimes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_itune.cli import options
from mlx_itune.cli.result import Result, table
from mlx_itune.kit.errors import one_line
from mlx_itune.kit.wording import count, number, percent, size

if TYPE_CHECKING:
    from mlx_itune.export.artifact import Exported
    from mlx_itune.export.fusing.fuse import FuseResult
    from mlx_itune.model.adapters.from_peft import PeftImport


_measured = options.flags("runs bits max-kl allow-lossy held-out template compute allow-other-base")


@options.command("fuse")
@options.based
@options.flags("model adapter-to-merge out-directory way every-way score")
@_measured
def fuse(**given: Any) -> Result:
    """Merge an adapter into its base; the smallest result that still is the model you trained."""
    from mlx_itune.api.shipping import fuse as merge

    result = merge(observe=lambda what: click.echo(f"trying: {what}", err=True), **given)
    return Result(result, _fused(result))


def _fused(result: FuseResult) -> Iterator[Any]:
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
        f"{count(result.rows, 'row')} ({result.rows_from})"
    )
    if scored:
        yield f"base + adapter: exact match {percent(result.score_reference)}"
    if result.calibration_rows:
        yield f"errors compensated on {count(result.calibration_rows, 'other row')}"


@options.command("export")
@options.based
@options.flags("model adapter to out-path type name separate bundle schema-of-bundle way-of-export")
@_measured
def command(**given: Any) -> Result:
    """Write a model for mlx-lm, llama.cpp, Ollama, LM Studio, transformers or PEFT; read it back.

    With --adapter it is merged first, as `fuse` does, and what that lost is measured.
    """
    from mlx_itune.api.shipping import export

    result = export(observe=lambda what: click.echo(what, err=True), **given)
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


@options.command("verify")
@options.flags("bundle-made")
def verify(bundle: Path) -> Result:
    """Compare a bundle (`export --bundle`) with its manifest; exit code 4 if a file differs."""
    from mlx_itune.api import shipping

    checked = shipping.verify(bundle)
    total = size(sum(file.bytes for file in checked.files))
    files = count(len(checked.files), "file")
    about = {"path": str(bundle), **vars(checked)}
    return Result(about, [f"{bundle}: {files}, {total}, each as the manifest says"])


@options.command("import")
@options.flags("peft-adapter model-of-import out-directory")
def import_adapter(source: Path, model: str, out: Path) -> Result:
    """Read a PEFT adapter (LoRA, rsLoRA, DoRA) and write it as mlx-lm and this program read it.

    Each update is compared with PEFT's own; what has no such form is refused by name.
    """
    from mlx_itune.api import shipping

    done = shipping.import_adapter(source, model, out)
    return Result(done, _imported(done))


def _imported(done: PeftImport) -> Iterator[str]:
    layers = count(done.layers, "layer")
    yield f"{done.out}: {done.kind}, rank {done.rank}, scale {done.scale:g}, {layers}"
    yield f"largest difference of an update from PEFT's: {number(done.largest_difference, 2)}"
    if done.padded:
        yield f"{count(done.padded, 'layer')} of a lower rank: padded with zeros"
    if done.folded:
        yield f"{count(done.folded, 'layer')} with another scale, which is now in their B"
