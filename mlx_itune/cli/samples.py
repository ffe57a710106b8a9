"""``train --samples N``: a few held-out rows, answered by the base and by the tuned model.

The answers are appended to the run's events and shown by its report. Training itself writes no
text, so this comes after it; if it fails, the run is as finished as before.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlx_itune.cli.progress import Progress
    from mlx_itune.dataset.conversation import Conversation
    from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
    from mlx_itune.training.settings import TrainSettings

# Rows of the validation split that are looked at for different tasks.
_LOOKED_AT = 500
_MOST_TOKENS = 256
_MOST_CHARACTERS = 4000


def add(settings: TrainSettings, run: Path, adapter: Path, count: int, progress: Progress) -> int:
    """Answer `count` validation rows before and after; the number answered.

    Appends a `sample` event {row, task, prompt, reference, before, after} for each to
    run/events.jsonl and makes run/report.html anew. What goes wrong is told as a warning.
    """
    if count < 1:
        return 0
    try:
        return _add(settings, run, adapter, count, progress)
    except Exception as error:
        # The adapter is written and hours are spent: nothing about a page may fail the command.
        progress.say(f"warning: no answers for the report: {error}")
        return 0


def _add(settings: TrainSettings, run: Path, adapter: Path, count: int, progress: Progress) -> int:
    from mlx_itune.inference.evaluate import EvalSettings, answer_questions
    from mlx_itune.inference.opening import Opening, open_tokenizer
    from mlx_itune.inference.prompts import asked_words
    from mlx_itune.kit.events import EventLog
    from mlx_itune.model.adapters import adapter as adapters
    from mlx_itune.model.loading.base import load
    from mlx_itune.training.run import report

    loaded = load(settings.model, compute=settings.compute)
    loaded.model.eval()
    tokenizer = open_tokenizer(Opening(settings.model, adapter, settings.template))
    rows, longest = _chosen(settings, tokenizer, count)
    if not rows:
        progress.say("note: no validation row has an answer to compare with")
        return 0
    # A base model writes on until it is stopped: no longer than an answer could need.
    limits = EvalSettings(max_new_tokens=min(_MOST_TOKENS, longest + longest // 2 + 16))

    before = answer_questions(loaded, tokenizer, rows, limits, progress.labelled("before:"))
    adapters.apply(loaded, adapters.load(adapter))
    loaded.model.eval()
    after = answer_questions(loaded, tokenizer, rows, limits, progress.labelled("after:"))
    with EventLog(run / "events.jsonl") as log:
        for (row, old, reference), (_, new, _) in zip(before, after, strict=True):
            last = max(i for i, turn in enumerate(row.turns) if turn.role == "assistant")
            log.emit(
                "sample",
                row=_place(row),
                task=row.tags.get("task"),
                prompt=asked_words(row.turns[:last])[-_MOST_CHARACTERS:],
                reference=reference[:_MOST_CHARACTERS],
                before=old[:_MOST_CHARACTERS],
                after=new[:_MOST_CHARACTERS],
            )
    report.write(run)
    return len(rows)


def _chosen(
    settings: TrainSettings, tokenizer: ChatTokenizer, count: int
) -> tuple[list[Conversation], int]:
    """(first rows of different tasks, then the first others; tokens of the longest answer)."""
    from mlx_itune.dataset.sources import load_splits
    from mlx_itune.inference.evaluate import question

    first: list[tuple[Conversation, str]] = []
    others: list[tuple[Conversation, str]] = []
    tasks: set[str] = set()
    held_out = load_splits(
        settings.data, seed=settings.seed, format=settings.format, columns=settings.columns
    ).valid
    for row in held_out[:_LOOKED_AT]:
        prompt, reference = question(row, tokenizer) or ([], "")
        if not prompt or not reference.strip() or len(prompt) >= settings.max_length:
            continue
        task = row.tags.get("task", "")
        (others if task in tasks else first).append((row, reference))
        tasks.add(task)
        if len(first) == count:
            break
    chosen = [*first, *others][:count]
    longest = max((len(tokenizer.encode_ids(reference)) for _, reference in chosen), default=0)
    return [row for row, _ in chosen], longest


def _place(row: Conversation) -> str:
    """`valid.jsonl:12`, without the folder."""
    file, _, line = row.origin.rpartition(":")
    return f"{Path(file).name}:{line}" if file else row.origin
