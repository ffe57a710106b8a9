"""``eval``: exact loss and answer scores on all rows, the base beside the tuned model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_itune.cli import options

if TYPE_CHECKING:
    from rich.table import Table

    from mlx_itune.inference.evaluate import EvalResult


@options.command("eval", "mlx-itune eval --model starter --adapter adapter --data test.jsonl")
@options.model
@options.adapter
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
@click.option("--generate/--no-generate", default=True, help="Write and score answers (default).")
@click.option("--max-length", type=click.IntRange(2), default=2048, show_default=True)
@click.option("--max-new-tokens", type=click.IntRange(1), default=256, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@options.template
@options.compute
def command(
    model: str,
    adapter: Path | None,
    data: Path,
    split: str,
    base: bool,
    generate: bool,
    max_length: int,
    max_new_tokens: int,
    batch_size: int,
    template: str | None,
    compute: str,
    as_json: bool,
    offline: bool,
) -> None:
    """Exact loss, exact match and token-F1 on all rows; base against tuned with --adapter."""
    from mlx_itune.cli import report
    from mlx_itune.cli.opening import open_tokenizer, rows_of
    from mlx_itune.cli.progress import Progress
    from mlx_itune.inference.evaluate import evaluate
    from mlx_itune.model.adapters import adapter as adapters
    from mlx_itune.model.loading.base import load, resolve

    name, rows = rows_of(data, split)
    trained = adapters.load(adapter) if adapter else None
    tokenizer = open_tokenizer(resolve(model, offline=offline), trained, template)
    loaded = load(model, compute=compute, offline=offline)
    loaded.model.eval()

    with Progress() as progress:

        def run(label: str) -> EvalResult:
            return evaluate(
                loaded,
                tokenizer,
                rows,
                max_length_tokens=max_length,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                generate=generate,
                observe=lambda stage, done, total: progress.update(f"{label} {stage}", done, total),
            )

        before = run("base") if base or trained is None else None
        if trained is None:
            result, before = before, None
        else:
            adapters.apply(loaded, trained)
            loaded.model.eval()
            result = run("tuned")
    if result is None:
        raise RuntimeError("nothing was evaluated")
    if as_json:
        body: dict[str, Any] = report.plain(result)
        report.emit(body | ({"base": report.plain(before)} if before else {}))
        return
    out = report.console()
    out.print(f"{name}: {result.rows:,} rows, {result.supervised_tokens:,} learned tokens")
    out.print(comparison(result, before))


def comparison(result: EvalResult, before: EvalResult | None) -> Table:
    """Loss, perplexity and scores, overall and per task; the base beside where it is known."""
    from mlx_itune.cli import report

    after = ("tuned",) if before else ("value",)
    columns = ["", *(("base",) if before else ()), *after]
    both = [before, result] if before else [result]
    of_tasks = f", mean over {len(result.tasks)} tasks" if len(result.tasks) > 1 else ""
    rows: list[list[str]] = [
        ["loss (nats per token)", *(report.number(r.loss) for r in both)],
        ["perplexity", *(report.number(r.perplexity) for r in both)],
        [f"exact match{of_tasks}", *(report.percent(r.exact_match) for r in both)],
        [f"token F1{of_tasks}", *(report.percent(r.token_f1) for r in both)],
    ]
    if len(result.tasks) > 1:
        rows += [
            [
                f"  {task} ({score.rows})",
                *(report.percent(r.tasks[task].exact_match) for r in both),
            ]
            for task, score in result.tasks.items()
        ]
    return report.table(columns, rows)
