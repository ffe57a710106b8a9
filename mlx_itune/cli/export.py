"""``export``: a model or an adapter for another runtime, read back and verified."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_itune.cli import options

if TYPE_CHECKING:
    from mlx_itune.export.formats import Exported


@options.command(
    "export", "mlx-itune export --model starter --adapter adapter --to gguf --out tuned.gguf"
)
@options.model
@options.adapter
@click.option(
    "--to",
    "kind",
    type=click.Choice(["mlx", "gguf", "gguf-lora", "hf", "peft", "ollama", "lmstudio"]),
    required=True,
    help="gguf-lora and peft take the adapter alone; the others a whole model, merged if need be.",
)
@click.option("--out", type=options.ANY_PATH, required=True, metavar="PATH")
@click.option(
    "--type",
    "tensors",
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
def command(
    model: str,
    adapter: Path | None,
    kind: str,
    out: Path,
    tensors: str | None,
    name: str | None,
    separate: bool,
    bundle: bool,
    way: str | None,
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
    """Write a model for mlx-lm, llama.cpp, Ollama, LM Studio, transformers or PEFT; read it back.

    With --adapter it is merged first, as `fuse` does, and what that lost is measured.
    """
    from mlx_itune.cli import report
    from mlx_itune.cli.held_out import held_out
    from mlx_itune.cli.opening import open_tokenizer
    from mlx_itune.export.formats import Request, export
    from mlx_itune.kit.errors import UsageError
    from mlx_itune.model.adapters import adapter as adapters
    from mlx_itune.model.loading.base import resolve

    merged = adapter is not None and kind not in ("gguf-lora", "peft", "hf") and not separate
    if not merged and (bits or way or max_kl is not None or allow_lossy):
        raise UsageError(
            "--bits, --way, --max-kl and --allow-lossy take effect only where --adapter is merged "
            "and measured",
            hint="leave them out" if adapter else "give --adapter",
        )
    source = resolve(model, offline=offline)
    tokenizer = open_tokenizer(source, adapters.load(adapter) if adapter else None, template)
    merge: dict[str, Any] = {"allow_lossy": allow_lossy}
    merge |= {"way": way} if way else {}
    merge |= {"bits": int(bits)} if bits else {}
    merge |= {} if max_kl is None else {"max_kl": max_kl}
    turns: list[Any] = []
    measured = kind == "mlx" or (adapter is not None and kind not in ("gguf-lora", "peft", "hf"))
    if measured or (kind == "lmstudio" and tensors in (None, "mlx")):
        rows = held_out(
            model, adapter, tokenizer, data, runs=runs, compute=compute, offline=offline
        )
        merge |= {"data": rows.measured, "calibration": rows.calibration}
        turns = [row.turns for row in rows.questions]
    elif data is not None:
        raise UsageError("--data takes effect only where something is measured on it")
    request = Request(
        model=model,
        adapter=adapter,
        format=kind,
        out=out,
        tokenizer=tokenizer,
        type=tensors,
        name=name,
        separate=separate,
        bundle=bundle,
        merge=merge,
        conversations=turns,
        compute=compute,
        offline=offline,
    )
    result = export(request, lambda what: print(what, file=sys.stderr))
    if as_json:
        report.emit(result)
    else:
        _tell(result)


def _tell(result: Exported) -> None:
    from mlx_itune.cli import report

    for artifact in result.artifacts:
        print(f"{artifact.path}  {artifact.format}  {report.megabytes(artifact.bytes)}")
        print(f"sha256 {artifact.sha256}")
    if result.fuse is not None:
        fused = result.fuse
        print(
            f"merged: {fused.method}; mean KL {report.number(fused.kl_mean, 2)} from base + "
            f"adapter, same first choice {report.percent(fused.top1_agreement)}"
        )
    checks = result.verify if isinstance(result.verify, dict) else {"": result.verify}
    for part, checked in checks.items():
        found = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in _facts(checked))
        print(f"read back{' (' + part + ')' if part else ''}: {found}")
    if result.tokenizer is not None:
        told = ", ".join(f"{key} {value}" for key, value in _facts(result.tokenizer))
        print(f"tokenizer: {told}, all equal")
    for note in result.notes:
        print(f"note: {note}")


def _facts(checked: Any) -> list[tuple[str, Any]]:
    from mlx_itune.cli import report

    return [
        (key, report.number(value, 2) if isinstance(value, float) else value)
        for key, value in vars(checked).items()
        if isinstance(value, (str, int, float))
    ]
