"""``eval``: exact loss and answer scores on all rows, the base beside the tuned model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_itune.cli import options
from mlx_itune.cli.result import Result, table
from mlx_itune.kit.json_files import plain
from mlx_itune.kit.wording import count, number, percent

if TYPE_CHECKING:
    from mlx_itune.inference.evaluate import EvalResult, EvalSettings
    from mlx_itune.inference.opening import Opening


@options.command("eval", "mlx-itune eval --model starter --adapter adapter --data test.jsonl")
@options.opening
@click.option("--data", type=options.ANY_PATH, required=True, metavar="FILE|DIR")
@click.option(
    "--split",
    type=click.Choice(["auto", "train", "valid", "test"]),
    default="auto",
    help="Split of a folder; auto is test, else valid, else all of train.",
)
@click.option(
    "--base/--no-base", default=True, help="With --adapter: score the base model too (default)."
)
@options.as_record(
    "settings",
    "mlx_itune.inference.evaluate:EvalSettings",
    options.generate,
    click.option("--max-length", type=click.IntRange(2), default=2048, show_default=True),
    options.new_tokens,
    click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True),
)
def command(opening: Opening, data: Path, split: str, base: bool, settings: EvalSettings) -> Result:
    """Exact loss, exact match and token-F1 on all rows; base against tuned with --adapter."""
    from mlx_itune.cli.progress import Progress
    from mlx_itune.inference.evaluate import evaluate
    from mlx_itune.inference.opening import open_adapter, open_tokenizer, rows_of
    from mlx_itune.model.adapters import adapter as adapters
    from mlx_itune.model.loading.base import load

    name, rows = rows_of(data, split)
    trained = open_adapter(opening)
    tokenizer = open_tokenizer(opening)
    loaded = load(opening.model, compute=opening.compute)
    loaded.model.eval()

    with Progress() as progress:

        def run(label: str) -> EvalResult:
            return evaluate(loaded, tokenizer, rows, settings, progress.labelled(label))

        results = {"base": run("base")} if base or trained is None else {}
        if trained is not None:
            adapters.apply(loaded, trained)
            loaded.model.eval()
            results["tuned"] = run("tuned")
    last = list(results)[-1]
    data_of_base = {"base": results["base"]} if len(results) > 1 else {}
    return Result({**plain(results[last]), **plain(data_of_base)}, _lines(name, results))


def _lines(name: str, results: dict[str, EvalResult]) -> Iterator[Any]:
    """Loss, perplexity and scores, overall and per task; the base beside where it is known."""
    each = list(results.values())
    last = each[-1]
    yield f"{name}: {count(last.rows, 'row')}, {count(last.supervised_tokens, 'learned token')}"
    mean = f", mean over {len(last.tasks)} tasks" if len(last.tasks) > 1 else ""
    rows = [
        ["loss (nats per token)", *(number(one.loss) for one in each)],
        ["perplexity", *(number(one.perplexity) for one in each)],
        [f"exact match{mean}", *(percent(one.exact_match) for one in each)],
        [f"token F1{mean}", *(percent(one.token_f1) for one in each)],
    ]
    if mean:
        rows += [
            [f"  {task} ({score.rows})", *(percent(one.tasks[task].exact_match) for one in each)]
            for task, score in last.tasks.items()
        ]
    yield table(["", *(results if len(each) > 1 else ["value"])], rows)
