"""The instruction data set: rows of system prompt, instruction with note, and response.

    python -m starter.clinical.rows

writes the rows that the package ships as its sample data.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator

from mlx_itune.dataset.sample_data import ROWS, SIZES
from starter.clinical.notes import write_note
from starter.clinical.record import Dice, new_record
from starter.clinical.tasks import TASKS
from starter.clinical.wordings import wordings

SYSTEM = "You answer from the clinical note."
SHIPPED_SEED = 0


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


def shipped() -> bytes:
    """The sample data as the package ships it: JSON lines, each row under the name of its split."""
    lines = (
        json.dumps({"split": split, **row}, ensure_ascii=False) + "\n"
        for split, n in SIZES.items()
        for row in rows(split, n, seed=SHIPPED_SEED)
    )
    return gzip.compress("".join(lines).encode(), mtime=0)


if __name__ == "__main__":
    ROWS.write_bytes(shipped())
