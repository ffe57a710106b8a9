"""The quickstart's last page: what happened, in numbers and in words."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from mlx_itune.cli.result import pairs, table
from mlx_itune.kit.wording import duration, number, percent, size

_WIDTH = 84
_LINES = 6


def lines(found: Mapping[str, Any]) -> Iterator[Any]:
    """The per-task table, the answers, the fidelity, the artefacts and what comes next."""
    keys = ("base_exact_match", "exact_match", "base_token_f1", "token_f1")
    scores = table(
        ["task", "base: exact", "tuned: exact", "base: F1", "tuned: F1"],
        [[task, *(percent(line[key]) for key in keys)] for task, line in found["tasks"].items()],
    )
    scores.add_section()
    keys = ("base_exact_match", "tuned_exact_match", "base_token_f1", "tuned_token_f1")
    scores.add_row("mean over tasks", *(percent(found[key]) for key in keys), style="bold")
    scores.add_row("wordings never trained on", "", percent(found["unseen_exact_match"]), "", "")
    yield from ("", scores)
    rows = f"{found['base_rows']:,} by the base, {found['tuned_rows']:,} tuned"
    yield f"Held-out rows scored: {rows}."
    for shown in found["answers"]:
        yield from ("", *_told(**shown))
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
        "  mlx-itune data check YOUR-ROWS.jsonl",
        "  mlx-itune train --model mlx-community/Qwen3-0.6B-4bit --data YOUR-ROWS.jsonl --out my",
    )


def _told(task: str, instruction: str, reference: str, base: str, tuned: str) -> Iterator[Any]:
    """One question and its answers; the reference where the tuned model missed it."""
    from rich.text import Text

    from mlx_itune.inference.metrics import exact_match

    asked = textwrap.shorten(instruction.split("\n\n")[0], _WIDTH - 30, placeholder=" ...")
    yield Text(f"Held-out note, {task}: {asked}", style="bold")
    right = exact_match(tuned, reference)
    answers = [("base", base, "dim"), ("tuned", tuned, "green" if right else "yellow")]
    answers += [] if right else [("wanted", reference, "dim")]
    for label, text, style in answers:
        wrapped = (textwrap.wrap(line, _WIDTH) or [""] for line in text.strip().splitlines())
        said = [part for parts in wrapped for part in parts]
        said = [*said[:_LINES], "..."] if len(said) > _LINES else said or ["(nothing)"]
        for n, line in enumerate(said):
            yield Text(f"  {'' if n else label:<7} {line}", style=style)
