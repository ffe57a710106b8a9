"""``compare``: base, tuned, fused and exported MLX models side by side on the same rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_itune.cli import options
from mlx_itune.cli.result import Result, table
from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.wording import count, number, percent

if TYPE_CHECKING:
    from mlx_itune.model.loading.base import LoadedModel

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
    template: str | None,
    compute: str,
    **answers: Any,
) -> Result:
    """Loss and scores of the base, the base with its adapter, and every MODEL, on the same rows.

    KL, in nats per learned token, is the divergence from base + adapter (without an adapter, from
    the base): what shipping that model instead would change.
    """
    from mlx_itune.cli.opening import open_model, rows_of
    from mlx_itune.dataset.rendering.prepare import prepare
    from mlx_itune.export.fusing.fidelity import Reference
    from mlx_itune.model.loading.base import resolve, vet

    opened = partial(open_model, compute=compute)
    split, rows = rows_of(data)
    for other in others:
        # A mistyped name is told before the hours that the others take.
        vet(resolve(other))
    reference, tokenizer = opened(model, adapter, template=template)
    tuned = Reference(reference.model, prepare(rows, tokenizer).examples)

    def measured(name: str, loaded: LoadedModel, own: Any = tokenizer) -> dict[str, Any]:
        from mlx_itune.cli.progress import Progress
        from mlx_itune.inference.evaluate import evaluate

        with Progress() as progress:

            def observe(stage: str, done: int, total: int) -> None:
                progress.update(f"{name} {stage}", done, total)

            result = evaluate(loaded, own, rows, observe=observe, **answers)
        distance = tuned.compare(loaded.model)
        scores = ("loss", "perplexity", "exact_match", "token_f1")
        apart = ("kl_mean", "kl_p99", "top1_agreement")
        return {
            "model": name,
            **{key: getattr(result, key) for key in scores},
            **{key: getattr(distance, key) for key in apart},
        }

    found = []
    if adapter:
        # The base reads the adapter's template, or its prompts would be other ones.
        plain, _ = opened(model, None, template=tokenizer.name)
        found.append(measured("base", plain))
        del plain
    name = "tuned" if adapter else "base"
    found.append(measured(name, reference))
    for other in others:
        loaded, own = opened(other, None, template=template)
        if own.hf.get_vocab() != tokenizer.hf.get_vocab():
            raise ModelError("has another vocabulary; nothing to compare", where=other)
        found.append(measured(other, loaded, own))
        del loaded
    whole = {"rows": len(rows), "tokens": tuned.tokens, "reference": name, "models": found}
    return Result(whole, _lines(split, whole))


def _lines(split: str, whole: dict[str, Any]) -> Iterator[Any]:
    yield f"{split}: {count(whole['rows'], 'row')}, {count(whole['tokens'], 'learned token')}"
    yield table(
        _COLUMNS,
        [
            [
                Path(each["model"]).name,
                number(each["loss"]),
                percent(each["exact_match"]),
                percent(each["token_f1"]),
                number(each["kl_mean"], 2),
                number(each["kl_p99"], 2),
                percent(each["top1_agreement"]),
            ]
            for each in whole["models"]
        ],
    )
