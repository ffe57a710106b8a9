"""``eval``: loss and scores, the base beside the tuned model; ``compare``: of any models."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_itune.cli import options
from mlx_itune.cli.result import Result, table
from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.json_files import plain
from mlx_itune.kit.wording import count, number, percent

if TYPE_CHECKING:
    from mlx_itune.inference.evaluate import EvalResult, EvalSettings
    from mlx_itune.inference.opening import Opening

_COLUMNS = ("model", "loss", "exact match", "token F1", "mean KL", "p99 KL", "same first choice")
_NUMBERS = (
    *("loss", "perplexity", "exact_match", "token_f1"),
    *("kl_mean", "kl_p99", "top1_agreement"),
)


@options.command("eval")
@options.opening
@options.flags("data split base")
@options.as_record(
    "settings",
    "mlx_itune.inference.evaluate:EvalSettings",
    options.flags("generate max-length max-new-tokens batch-size"),
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
    options.tell(tokenizer.notes)
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


@options.command("compare")
@options.flags("others")
@options.opening
@options.flags("data")
@options.as_record(
    "settings",
    "mlx_itune.inference.evaluate:EvalSettings",
    options.flags("generate max-new-tokens"),
)
def compare(opening: Opening, others: Sequence[str], data: Path, settings: EvalSettings) -> Result:
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
    options.tell(tokenizer.notes)
    tuned = Reference(reference.model, prepare(rows, tokenizer).examples)

    def measured(name: str, loaded: Any, own: Any) -> dict[str, Any]:
        if own.hf.get_vocab() != tokenizer.hf.get_vocab():
            raise ModelError("has another vocabulary; nothing to compare", where=name)
        with Progress() as progress:
            result = evaluate(loaded, own, rows, settings, progress.labelled(name))
        numbers = {**vars(result), **vars(tuned.compare(loaded.model))}
        return {"model": name, **{key: numbers[key] for key in _NUMBERS}}

    found = []
    told = tuple(f"{name}={json.dumps(value)}" for name, value in tokenizer.options.items())
    bare = replace(opening, adapter=None, template_option=told, system=tokenizer.system or "")
    if opening.adapter:
        # The base reads the adapter's template, or its prompts would be other ones.
        found.append(measured("base", *open_model(replace(bare, template=tokenizer.name))))
    name = "tuned" if opening.adapter else "base"
    found.append(measured(name, reference, tokenizer))
    found += [measured(other, *open_model(replace(bare, model=other))) for other in others]
    about = {"rows": len(rows), "tokens": tuned.tokens, "reference": name, "models": found}
    return Result(about, _compared(split, about))


def _compared(split: str, about: dict[str, Any]) -> Iterator[Any]:
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
