"""The quickstart's last page: what happened, in numbers and in words."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from mlx_itune.cli import report

if TYPE_CHECKING:
    from mlx_itune.cli.job import Outcome, Shown

_WIDTH = 84
_LINES = 6


def tell(outcome: Outcome) -> None:
    """Print the per-task table, the answers, the fidelity, the artefacts and what comes next."""
    from rich.text import Text

    from mlx_itune.inference.metrics import exact_match

    out = report.console()
    out.print()
    rows = [
        [
            task,
            report.percent(line.base_exact_match),
            report.percent(line.exact_match),
            report.percent(line.base_token_f1),
            report.percent(line.token_f1),
        ]
        for task, line in outcome.tasks.items()
    ]
    made = report.table(["task", "base: exact", "tuned: exact", "base: F1", "tuned: F1"], rows)
    made.add_section()
    made.add_row(
        "mean over tasks",
        report.percent(outcome.base_exact_match),
        report.percent(outcome.tuned_exact_match),
        report.percent(outcome.base_token_f1),
        report.percent(outcome.tuned_token_f1),
        style="bold",
    )
    made.add_row(
        "wordings never trained on", "", report.percent(outcome.unseen_exact_match), "", ""
    )
    out.print(made)
    out.print(
        f"Held-out rows scored: {outcome.base_rows:,} by the base, {outcome.tuned_rows:,} tuned.\n"
    )
    for shown in outcome.answers:
        out.print(Text(f"Held-out note, {shown.task}: {_first_line(shown)}", style="bold"))
        _answer("base", shown.base, "dim")
        right = exact_match(shown.tuned, shown.reference)
        _answer("tuned", shown.tuned, "green" if right else "yellow")
        if not right:
            _answer("wanted", shown.reference, "dim")
        out.print()
    fused = outcome.fused
    out.print(
        f"Fused: {fused.method}. Against base + adapter: mean KL {report.number(fused.kl_mean, 2)} "
        f"nats per token, same first choice on {report.percent(fused.top1_agreement)}.",
        soft_wrap=True,
    )
    out.print()
    report.pairs(
        [
            ("adapter", outcome.adapter),
            ("fused", fused.out),
            *((e.format, f"{e.path}  ({report.megabytes(e.bytes)})") for e in outcome.exports),
            ("run", outcome.run),
            ("time", report.seconds(outcome.wall_s)),
        ]
    )
    print("\nNext:")
    print(f"  mlx-itune chat --model {fused.out}")
    print("  mlx-itune data check YOUR-ROWS.jsonl")
    print("  mlx-itune train --model mlx-community/Qwen3-0.6B-4bit --data YOUR-ROWS.jsonl --out my")


def _first_line(shown: Shown) -> str:
    return textwrap.shorten(shown.instruction.split("\n\n")[0], _WIDTH - 30, placeholder=" ...")


def _answer(label: str, text: str, style: str) -> None:
    """A few lines of an answer, indented under its label."""
    from rich.text import Text

    lines = [
        piece for line in text.strip().splitlines() for piece in textwrap.wrap(line, _WIDTH) or [""]
    ]
    if len(lines) > _LINES:
        lines = [*lines[:_LINES], "..."]
    out = report.console()
    for number, line in enumerate(lines or ["(nothing)"]):
        out.print(Text(f"  {label if not number else '':<7} {line}", style=style))
