"""``train --samples N``: a few held-out rows, answered by the base and by the tuned model.

The answers are appended to the run's events and shown by its report. Training itself writes no
text, so this comes after it; if it fails, the run is as finished as before.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
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
    from mlx_itune.cli.opening import open_tokenizer
    from mlx_itune.inference.generate import Generator
    from mlx_itune.kit.events import EventLog
    from mlx_itune.model.adapters import adapter as adapters
    from mlx_itune.model.loading.base import load
    from mlx_itune.training.report import report

    trained = adapters.load(adapter)
    loaded = load(settings.model, compute=settings.compute, offline=settings.offline)
    loaded.model.eval()
    tokenizer = open_tokenizer(loaded.path, trained, settings.template)
    asked = _asked(settings, tokenizer, count)
    if not asked:
        progress.say("note: no validation row has an answer to compare with")
        return 0
    prompts = [ids for _, ids, _ in asked]
    longest = max(len(tokenizer.encode_ids(reference)) for _, _, reference in asked)
    # A base model writes on until it is stopped: no longer than an answer could need.
    tokens = min(_MOST_TOKENS, longest + longest // 2 + 16)

    def answers(stage: str) -> list[str]:
        progress.update(stage, 0, len(prompts))
        return Generator(loaded, tokenizer).batch(
            prompts, tokens, observe=lambda done: progress.update(stage, done, len(prompts))
        )

    before = answers("answers before")
    adapters.apply(loaded, trained)
    loaded.model.eval()
    after = answers("answers after")
    with EventLog(run / "events.jsonl") as log:
        for (row, _, reference), old, new in zip(asked, before, after, strict=True):
            log.emit(
                "sample",
                row=_place(row),
                task=row.tags.get("task"),
                prompt=_prompt(row),
                reference=reference[:_MOST_CHARACTERS],
                before=old[:_MOST_CHARACTERS],
                after=new[:_MOST_CHARACTERS],
            )
    report.write(run)
    return len(asked)


def _asked(
    settings: TrainSettings, tokenizer: ChatTokenizer, count: int
) -> list[tuple[Conversation, list[int], str]]:
    """(row, prompt ids, reference): the first rows of different tasks, then the first others."""
    from mlx_itune.inference.evaluate import question

    first: list[tuple[Conversation, list[int], str]] = []
    others: list[tuple[Conversation, list[int], str]] = []
    tasks: set[str] = set()
    for row in islice(_held_out(settings), _LOOKED_AT):
        found = question(row, tokenizer)
        if found is None or not found[0] or not found[1].strip():
            continue
        if len(found[0]) >= settings.max_length:
            continue
        task = row.tags.get("task", "")
        (others if task in tasks else first).append((row, *found))
        tasks.add(task)
        if len(first) == count:
            break
    return [*first, *others][:count]


def _held_out(settings: TrainSettings) -> Iterable[Conversation]:
    from mlx_itune.dataset.conversation import Conversation
    from mlx_itune.dataset.sources import load_splits, read_rows, split_paths

    paths = split_paths(settings.data)
    if "valid" in paths:
        # A file of their own is read no further than needed.
        rows = read_rows(paths["valid"], format=settings.format, columns=settings.columns)
        return (row for row in rows if isinstance(row, Conversation))
    return load_splits(
        settings.data, seed=settings.seed, format=settings.format, columns=settings.columns
    ).valid


def _place(row: Conversation) -> str:
    """`valid.jsonl:12`, without the folder."""
    file, _, line = row.origin.rpartition(":")
    return f"{Path(file).name}:{line}" if file else row.origin


def _prompt(row: Conversation) -> str:
    """The turns before the last answer; with their roles where there are several."""
    last = max(i for i, turn in enumerate(row.turns) if turn.role == "assistant")
    turns = row.turns[:last]
    if len(turns) == 1:
        return turns[0].content[:_MOST_CHARACTERS]
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns)[-_MOST_CHARACTERS:]
