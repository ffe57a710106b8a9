"""``compare``: base, tuned, fused and exported MLX models side by side on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_itune.cli import options
from mlx_itune.kit.errors import ModelError

if TYPE_CHECKING:
    from mlx_itune.dataset.conversation import Conversation
    from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
    from mlx_itune.export.fusing.fidelity import Reference

_COLUMNS = ("model", "loss", "exact match", "token F1", "mean KL", "p99 KL", "same first choice")


@options.command(
    "compare", "mlx-itune compare --model starter --adapter adapter --data test.jsonl fused"
)
@click.argument("others", nargs=-1, metavar="[MODEL]...")
@options.model
@options.adapter
@click.option("--data", type=options.ANY_PATH, required=True, metavar="FILE|DIR")
@click.option("--generate/--no-generate", default=True, help="Write and score answers (default).")
@click.option("--max-new-tokens", type=click.IntRange(1), default=256, show_default=True)
@options.template
@options.compute
def command(
    others: tuple[str, ...],
    model: str,
    adapter: Path | None,
    data: Path,
    generate: bool,
    max_new_tokens: int,
    template: str | None,
    compute: str,
    as_json: bool,
    offline: bool,
) -> None:
    """Loss and scores of the base, the base with its adapter, and every MODEL, on the same rows.

    KL, in nats per learned token, is the divergence from base + adapter (without an adapter, from
    the base): what shipping that model instead would change.
    """
    from mlx_itune.cli import report
    from mlx_itune.cli.opening import open_model, rows_of
    from mlx_itune.dataset.rendering.prepare import prepare
    from mlx_itune.export.fusing.fidelity import Reference
    from mlx_itune.model.loading.base import resolve, vet

    opened = partial(open_model, compute=compute, offline=offline)
    split, rows = rows_of(data)
    for other in others:
        # A mistyped name is told before the hours that the others take.
        vet(resolve(other, offline=offline))
    reference, tokenizer = opened(model, adapter, template=template)
    tuned = Reference(reference.model, prepare(rows, tokenizer).examples)
    measured = partial(
        _measured, reference=tuned, rows=rows, max_new_tokens=max_new_tokens, generate=generate
    )
    found = []
    if adapter:
        # The base reads the adapter's template, or its prompts would be other ones.
        plain, _ = opened(model, None, template=tokenizer.name)
        found.append(measured("base", plain, tokenizer))
        del plain
    name = "tuned" if adapter else "base"
    found.append(measured(name, reference, tokenizer))
    for other in others:
        loaded, own = opened(other, None, template=template)
        if own.hf.get_vocab() != tokenizer.hf.get_vocab():
            raise ModelError("has another vocabulary; nothing to compare", where=other)
        found.append(measured(other, loaded, own))
        del loaded
    if as_json:
        report.emit({"rows": len(rows), "tokens": tuned.tokens, "reference": name, "models": found})
        return
    console = report.console()
    console.print(f"{split}: {len(rows):,} rows, {tuned.tokens:,} learned tokens")
    console.print(report.table(_COLUMNS, [_row(each) for each in found]))


def _measured(
    name: str,
    loaded: Any,
    tokenizer: ChatTokenizer,
    *,
    reference: Reference,
    rows: Sequence[Conversation],
    max_new_tokens: int,
    generate: bool,
) -> dict[str, Any]:
    from mlx_itune.cli.progress import Progress
    from mlx_itune.inference.evaluate import evaluate

    with Progress() as progress:
        result = evaluate(
            loaded,
            tokenizer,
            rows,
            max_new_tokens=max_new_tokens,
            generate=generate,
            observe=lambda stage, done, total: progress.update(f"{name} {stage}", done, total),
        )
    distance = reference.compare(loaded.model)
    return {
        "model": name,
        "loss": result.loss,
        "perplexity": result.perplexity,
        "exact_match": result.exact_match,
        "token_f1": result.token_f1,
        "kl_mean": distance.kl_mean,
        "kl_p99": distance.kl_p99,
        "top1_agreement": distance.top1_agreement,
    }


def _row(measured: dict[str, Any]) -> list[str]:
    from mlx_itune.cli import report

    return [
        Path(measured["model"]).name,
        report.number(measured["loss"]),
        report.percent(measured["exact_match"]),
        report.percent(measured["token_f1"]),
        report.number(measured["kl_mean"], 2),
        report.number(measured["kl_p99"], 2),
        report.percent(measured["top1_agreement"]),
    ]
