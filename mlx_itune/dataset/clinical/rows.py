"""The instruction data set: rows of system prompt, instruction with note, and response."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from mlx_itune.dataset.clinical.notes import write_note
from mlx_itune.dataset.clinical.record import Dice, new_record
from mlx_itune.dataset.clinical.tasks import TASKS
from mlx_itune.dataset.clinical.wordings import wordings
from mlx_itune.kit.files import staged_directory

SYSTEM = "You answer from the clinical note."


def rows(split: str, n: int, *, seed: int) -> Iterator[dict[str, object]]:
    """Yield ``n`` rows of a split: ``{"messages": [...], "task": name}``.

    Row ``i`` depends on (seed, split, i) alone, so a longer split starts with the shorter one and
    no two splits share a patient. Tasks go round. ``split == "unseen"`` uses the wordings that no
    other split uses.
    """
    for i in range(n):
        dice = Dice(f"{seed}/{split}/{i}")
        task = TASKS[i % len(TASKS)]
        record = new_record(dice)
        answer, slots = task.ask(record, dice)
        ways = wordings()[task.name]
        wording = dice.pick(ways.unseen if split == "unseen" else ways.seen)
        note = write_note(record, task.needs, dice, others=(2, 5))
        yield {
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": f"{wording.format(**slots)}\n\nNote:\n{note}"},
                {"role": "assistant", "content": answer},
            ],
            "task": task.name,
        }


def write_dataset(
    out: Path,
    *,
    seed: int = 0,
    train: int = 8000,
    valid: int = 400,
    test: int = 1000,
    unseen: int = 400,
    overwrite: bool = False,
) -> Path:
    """Write ``{train,valid,test,unseen}.jsonl`` under ``out`` and return it.

    Raises StorageError where ``out`` holds files already or cannot be written.
    """
    sizes = {"train": train, "valid": valid, "test": test, "unseen": unseen}
    with staged_directory(out, overwrite=overwrite) as folder:
        for split, n in sizes.items():
            lines = (
                json.dumps(row, ensure_ascii=False) + "\n" for row in rows(split, n, seed=seed)
            )
            (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return out
