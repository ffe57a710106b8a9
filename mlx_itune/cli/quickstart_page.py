"""The quickstart's last page: what happened, in numbers and in words."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mlx_itune.cli.result import pairs, table
from mlx_itune.kit.wording import duration, number, percent, size

if TYPE_CHECKING:
    from mlx_itune.cli.quickstart_run import Outcome, Shown

_WIDTH = 84
_LINES = 6


def lines(outcome: Outcome) -> Iterator[Any]:
    """The per-task table, the answers, the fidelity, the artefacts and what comes next."""
    scores = ("base_exact_match", "exact_match", "base_token_f1", "token_f1")
    made = table(
        ["task", "base: exact", "tuned: exact", "base: F1", "tuned: F1"],
        [
            [task, *(percent(getattr(line, score)) for score in scores)]
            for task, line in outcome.tasks.items()
        ],
    )
    made.add_section()
    means = ("base_exact_match", "tuned_exact_match", "base_token_f1", "tuned_token_f1")
    made.add_row(
        "mean over tasks", *(percent(getattr(outcome, mean)) for mean in means), style="bold"
    )
    made.add_row("wordings never trained on", "", percent(outcome.unseen_exact_match), "", "")
    yield from ("", made)
    yield f"Held-out rows scored: {outcome.base_rows:,} by the base, {outcome.tuned_rows:,} tuned."
    for shown in outcome.answers:
        yield from ("", *_told(shown))
    fused = outcome.fused
    yield from (
        "",
        f"Fused: {fused.method}. Against base + adapter: mean KL {number(fused.kl_mean, 2)} "
        f"nats per token, same first choice on {percent(fused.top1_agreement)}.",
        "",
        *pairs(
            [
                ("adapter", outcome.adapter),
                ("fused", fused.out),
                *((made.format, f"{made.path}  ({size(made.bytes)})") for made in outcome.exports),
                ("run", outcome.run),
                ("time", duration(outcome.wall_s)),
            ]
        ),
        "",
        "Next:",
        f"  mlx-itune chat --model {fused.out}",
        "  mlx-itune data check YOUR-ROWS.jsonl",
        "  mlx-itune train --model mlx-community/Qwen3-0.6B-4bit --data YOUR-ROWS.jsonl --out my",
    )


def _told(shown: Shown) -> Iterator[Any]:
    from rich.text import Text

    from mlx_itune.inference.metrics import exact_match

    first = shown.instruction.split("\n\n")[0]
    asked = textwrap.shorten(first, _WIDTH - 30, placeholder=" ...")
    yield Text(f"Held-out note, {shown.task}: {asked}", style="bold")
    right = exact_match(shown.tuned, shown.reference)
    answers = [("base", shown.base, "dim"), ("tuned", shown.tuned, "green" if right else "yellow")]
    for label, text, style in [*answers, *([] if right else [("wanted", shown.reference, "dim")])]:
        wrapped = (textwrap.wrap(line, _WIDTH) or [""] for line in text.strip().splitlines())
        said = [part for parts in wrapped for part in parts]
        said = [*said[:_LINES], "..."] if len(said) > _LINES else said or ["(nothing)"]
        for n, line in enumerate(said):
            yield Text(f"  {'' if n else label:<7} {line}", style=style)
