"""``quickstart``: the whole job on the embedded starter or on SmolLM2, offline."""

from __future__ import annotations

import itertools
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_itune.cli import options
from mlx_itune.cli.result import Result, pairs, table
from mlx_itune.kit.network import go_offline
from mlx_itune.kit.wording import duration, number, percent, size
from mlx_itune.training.settings import table as settings_table

if TYPE_CHECKING:
    from mlx_itune.cli.progress import Progress
    from mlx_itune.dataset.conversation import Conversation
    from mlx_itune.inference.evaluate import Answered, EvalResult


@dataclass(frozen=True)
class Recipe:
    """What the job is on one model. scored: rows to answer; a base that writes to the length limit
    each time is as bad on all of them. base: what it does before tuning, in words."""

    model: str
    train: Mapping[str, Any]
    scored: Mapping[str, int]
    base: str


SIZES = {"train": 8000, "valid": 400, "test": 1000, "unseen": 400}
RECIPES = {
    "starter": Recipe(
        "starter",
        {"steps": 800, "batch_size": 4, "learning_rate": 2e-3, "rank": 16, "adapter": "lora"},
        {"base": 200, "tuned": 1000, "unseen": 200},
        "the model as it comes: it continues text",
    ),
    # Minutes on two cores. A grid adapter merges into the model's own codes.
    "smollm2": Recipe(
        "smollm2",
        {"time": "6m", "rank": 8, "adapter": "grid"},
        {"base": 40, "tuned": 100, "unseen": 50},
        "the model as it comes: it chats",
    ),
}
MAX_LENGTH = 1024
ANSWER_TOKENS = 96
SHOWN = 2
_WIDTH = 84
_LINES = 6


@options.command("quickstart")
@options.flags("workdir model-of-quickstart")
@options.flag(settings_table()["adapter"], "How it is adapted (default: the recipe's).")
@options.flag(settings_table()["seed"], defaulted=True)
@options.flags("data-seed")
@options.flag(settings_table()["steps"], "Optimizer steps (default: the recipe's).")
def command(workdir: Path, model: str, **chosen: Any) -> Result:
    """The whole job in minutes: data, train, evaluate before and after, fuse, export, one answer.

    Everything is made on this machine and nothing is downloaded; --model smollm2 does the job on
    a real model, which `mlx-itune models get smollm2` fetches before. A workdir that exists gets a
    new numbered folder inside.
    """
    from mlx_itune.cli.progress import Progress
    from mlx_itune.model.loading.base import resolve

    go_offline()
    # One that is not here yet is told of before any work.
    resolve(RECIPES[model].model)
    with Progress() as progress:
        outcome = run_job(workdir, progress, RECIPES[model], **chosen)
    return Result(outcome, lines(outcome))


def run_job(
    workdir: Path, progress: Progress, recipe: Recipe, *, data_seed: int, **chosen: Any
) -> dict[str, Any]:
    """Data, training, scores of base and tuned, fuse, export, answers; all under ``workdir``. What
    was made and measured, by the keys of `quickstart --json`."""
    from mlx_itune.api.rows import labelled
    from mlx_itune.api.shipping import export, fuse
    from mlx_itune.api.training import train
    from mlx_itune.dataset.sample_data import write_sample
    from mlx_itune.inference.evaluate import EvalSettings, answer_questions, evaluate
    from mlx_itune.inference.opening import Opening, open_model, rows_of
    from mlx_itune.model.adapters import adapter as adapters

    home = _fresh(workdir)
    began_s, steps_s = time.monotonic(), dict[str, float]()

    @contextmanager
    def step(name: str, what: str) -> Iterator[None]:
        started_s = time.monotonic()
        yield
        steps_s[name] = time.monotonic() - started_s
        progress.say(f"  {name:<10} {what:<58} {duration(steps_s[name]):>10}")

    scored = EvalSettings(max_length=MAX_LENGTH, max_new_tokens=ANSWER_TOKENS)
    how = {**recipe.train, **{name: value for name, value in chosen.items() if value is not None}}
    if chosen["steps"]:
        how.pop("time", None)
    if "time" in how:
        learned = f"what fits into {how['time']}"
    else:
        learned = f"{min(how['steps'] * how.get('batch_size', 8), SIZES['train']):,}"
    rows = f"{learned} of {SIZES['train']:,} rows to learn, {SIZES['test']:,} to test on"
    with step("data", rows):
        data = write_sample(home / "data", seed=data_seed, sizes=SIZES)
        test, asked_anew = (rows_of(data / f"{name}.jsonl")[1] for name in ("test", "unseen"))
    with step("train", f"{how['adapter']}, loss on the answers only"):
        given = {**how, "max_length": MAX_LENGTH, "runs": home / "runs", "offline": True}
        adapter = home / "adapter"
        trained = train(recipe.model, data, adapter, observe=progress.training, **given)

    loaded, tokenizer = open_model(Opening(recipe.model))

    def scores(rows: Sequence[Conversation], label: str) -> EvalResult:
        rows = rows[: recipe.scored[label]]
        return evaluate(loaded, tokenizer, rows, scored, labelled(progress.update, label))

    with step("base", recipe.base):
        before = scores(test, "base")
    with step("tuned", "the same questions, with the adapter"):
        adapters.apply(loaded, adapters.load(adapter))
        loaded.model.eval()
        after, anew = scores(test, "tuned"), scores(asked_anew, "unseen")
    # The first rows of different tasks; nothing is chosen by how it was answered.
    by_task: dict[str, tuple[Answered, Answered]] = {}
    for old, new in zip(before.answers, after.answers, strict=False):
        by_task.setdefault(old.task, (old, new))
    shown = [*by_task.values()][:SHOWN]

    with step("fuse", "adapter and base as one model, its loss measured"):
        fused = fuse(recipe.model, adapter, home / "fused", runs=home / "runs", score=False)
    with step("export", "for MLX and for llama.cpp, each read back"):
        mlx = export(fused.out, home / "mlx", to="mlx", data=data / "valid.jsonl")
        gguf = export(fused.out, home / "tuned.gguf", to="gguf")
    with step("answer", "one question to the exported model"):
        shipped = open_model(Opening(str(home / "mlx")))
        fused_answer = answer_questions(*shipped, [shown[0][0].row], scored)[0][1]

    return {
        "model": recipe.model,
        **{
            f"{name}_{key}": getattr(result, key)
            for name, result in (("base", before), ("tuned", after))
            for key in ("rows", "loss", "exact_match", "token_f1")
        },
        "unseen_exact_match": anew.exact_match,
        "tasks": {
            task: {
                "rows": score.rows,
                "base_exact_match": before.tasks[task].exact_match,
                "base_token_f1": before.tasks[task].token_f1,
                "exact_match": score.exact_match,
                "token_f1": score.token_f1,
            }
            for task, score in after.tasks.items()
        },
        "adapter": trained.adapter,
        "run": trained.run,
        "data": str(data),
        "fused": fused,
        "exports": [*mlx.artifacts, *gguf.artifacts],
        "answers": [
            {
                "task": old.task,
                "instruction": next(turn.content for turn in old.asked if turn.role == "user"),
                "reference": old.reference,
                "base": old.answer,
                "tuned": new.answer,
            }
            for old, new in shown
        ],
        "fused_answer": fused_answer,
        "steps": steps_s,
        "train_steps": trained.steps,
        "wall_s": time.monotonic() - began_s,
    }


def _fresh(workdir: Path) -> Path:
    """``workdir``, or the first free numbered folder inside one that holds something."""
    if not workdir.exists() or (workdir.is_dir() and not any(workdir.iterdir())):
        return workdir
    return next(folder for n in itertools.count(2) if not (folder := workdir / f"run-{n}").exists())


def lines(found: Mapping[str, Any]) -> Iterator[Any]:
    """The per-task table, the answers, the fidelity, the artefacts and what comes next."""

    def row(scores: Mapping[str, Any], tuned: str = "") -> list[str]:
        keys = ("base_exact_match", f"{tuned}exact_match", "base_token_f1", f"{tuned}token_f1")
        return [percent(scores[key]) for key in keys]

    scores = table(
        ["task", "base: exact", "tuned: exact", "base: F1", "tuned: F1"],
        [[task, *row(each)] for task, each in found["tasks"].items()],
    )
    scores.add_section()
    scores.add_row("mean over tasks", *row(found, "tuned_"), style="bold")
    scores.add_row("wordings never trained on", "", percent(found["unseen_exact_match"]), "", "")
    yield from ("", scores)
    rows = f"{found['base_rows']:,} by the base, {found['tuned_rows']:,} tuned"
    yield f"Held-out rows scored: {rows}."
    for shown in found["answers"]:
        title = f"Held-out note, {shown['task']}: {shown['instruction']}"
        yield from ("", *told_answers(title, shown["reference"], shown["base"], shown["tuned"]))
    fused = found["fused"]
    yield from (
        "",
        f"Fused: {fused.method}. Against base + adapter: mean KL {number(fused.kl_mean, 2)} "
        f"nats per token, same first choice on {percent(fused.top1_agreement)}.",
        "",
    )
    exports = [(each.format, f"{each.path}  ({size(each.bytes)})") for each in found["exports"]]
    places = [("adapter", found["adapter"]), ("fused", fused.out), *exports, ("run", found["run"])]
    yield from pairs([*places, ("time", duration(found["wall_s"]))])
    yield from (
        "",
        "Next:",
        f"  mlx-itune chat --model {fused.out}",
        "  mlx-itune tune YOUR-TABLE.csv",
        "  mlx-itune models list",
    )


def told_answers(title: str, reference: str, base: str, tuned: str) -> Iterator[Any]:
    """One question and its answers; the reference where the tuned model missed it."""
    from rich.text import Text

    from mlx_itune.inference.scoring import exact_match

    yield Text(textwrap.shorten(title.split("\n\n")[0], _WIDTH, placeholder=" ..."), style="bold")
    right = exact_match(tuned, reference)
    answers = [("base", base, "dim"), ("tuned", tuned, "green" if right else "yellow")]
    answers += [] if right else [("wanted", reference, "dim")]
    for label, text, style in answers:
        wrapped = (textwrap.wrap(line, _WIDTH) or [""] for line in text.strip().splitlines())
        said = [*itertools.chain(*wrapped)] or ["(nothing)"]
        said[_LINES:] = ["..."] if len(said) > _LINES else []
        for n, line in enumerate(said):
            yield Text(f"  {'' if n else label:<7} {line}", style=style)
