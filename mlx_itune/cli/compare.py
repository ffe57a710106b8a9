"""``compare``: base, tuned, fused and exported MLX models side by side on the same rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_itune.cli import options
from mlx_itune.cli.result import Result, table
from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.wording import count, number, percent

if TYPE_CHECKING:
    from mlx_itune.inference.evaluate import EvalSettings
    from mlx_itune.inference.opening import Opening

_COLUMNS = ("model", "loss", "exact match", "token F1", "mean KL", "p99 KL", "same first choice")


@options.command(
    "compare", "mlx-itune compare --model starter --adapter adapter --data test.jsonl fused"
)
@click.argument("others", nargs=-1, metavar="[MODEL]...")
@options.opening
@click.option("--data", type=options.ANY_PATH, required=True, metavar="FILE|DIR")
@options.as_record(
    "settings",
    "mlx_itune.inference.evaluate:EvalSettings",
    options.generate,
    options.new_tokens,
)
def command(opening: Opening, others: Sequence[str], data: Path, settings: EvalSettings) -> Result:
    """Loss and scores of the base, the base with its adapter, and every MODEL, on the same rows.

    KL, in nats per learned token, is the divergence from base + adapter (without an adapter, from
    the base): what shipping that model instead would change.
    """
    from mlx_itune.cli.progress import Progress
    from mlx_itune.dataset.rendering.prepare import prepare
    from mlx_itune.export.fusing.fidelity import Reference
    from mlx_itune.inference.evaluate import evaluate
    from mlx_itune.inference.opening import open_model, rows_of
    from mlx_itune.model.loading.base import resolve, vet

    split, rows = rows_of(data)
    for other in others:
        # A mistyped name is told before the hours that the others take.
        vet(resolve(other))
    reference, tokenizer = open_model(opening)
    tuned = Reference(reference.model, prepare(rows, tokenizer).examples)

    def measured(name: str, loaded: Any, own: Any) -> dict[str, Any]:
        with Progress() as progress:
            result = evaluate(loaded, own, rows, settings, progress.labelled(name))
        distance = tuned.compare(loaded.model)
        scores = ("loss", "perplexity", "exact_match", "token_f1")
        distances = ("kl_mean", "kl_p99", "top1_agreement")
        return {
            "model": name,
            **{key: getattr(result, key) for key in scores},
            **{key: getattr(distance, key) for key in distances},
        }

    found = []
    bare = replace(opening, adapter=None)
    if opening.adapter:
        # The base reads the adapter's template, or its prompts would be other ones.
        plain = open_model(replace(bare, template=tokenizer.name))
        found.append(measured("base", *plain))
        del plain
    name = "tuned" if opening.adapter else "base"
    found.append(measured(name, reference, tokenizer))
    for other in others:
        opened = open_model(replace(bare, model=other))
        if opened[1].hf.get_vocab() != tokenizer.hf.get_vocab():
            raise ModelError("has another vocabulary; nothing to compare", where=other)
        found.append(measured(other, *opened))
        del opened
    about = {"rows": len(rows), "tokens": tuned.tokens, "reference": name, "models": found}
    return Result(about, _lines(split, about))


def _lines(split: str, about: dict[str, Any]) -> Iterator[Any]:
    yield f"{split}: {count(about['rows'], 'row')}, {count(about['tokens'], 'learned token')}"
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
            for each in about["models"]
        ],
    )
