"""The sample data that the package ships: invented clinical notes, twenty kinds of questions. No
patient in it exists. `starter/clinical` of the repository wrote it, with one seed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_itune.dataset.batching import epoch_order
from mlx_itune.kit.errors import UsageError
from mlx_itune.kit.files import staged_directory

ROWS = Path(__file__).with_suffix(".jsonl.gz")
# Rows of each split; those of `unseen` are asked in wordings that no other split uses.
SIZES = {"train": 8000, "valid": 400, "test": 1000, "unseen": 400}


def write_sample(out: Path, *, seed: int = 0, sizes: Mapping[str, int] = SIZES) -> Path:
    """Write ``{train,valid,test,unseen}.jsonl`` of so many rows under a new folder `out`. Tasks go
    round. A seed other than 0 takes the rows of each task in another order. Raises UsageError for
    more rows than there are, StorageError where `out` cannot be written."""
    if too_many := [split for split, count in sizes.items() if count > SIZES[split]]:
        split = too_many[0]
        raise UsageError(f"the sample data has {SIZES[split]:,} {split} rows, not {sizes[split]:,}")
    splits: dict[str, dict[str, list[str]]] = {split: {} for split in SIZES}
    with gzip.open(ROWS, "rt", encoding="utf-8") as lines:
        for line in lines:
            row: dict[str, Any] = json.loads(line)
            tasks = splits[row.pop("split")]
            tasks.setdefault(row["task"], []).append(json.dumps(row, ensure_ascii=False) + "\n")
    with staged_directory(out) as folder:
        for split, count in sizes.items():
            ordered = [
                [rows[n] for n in epoch_order(len(rows), seed, 0)] if seed else rows
                for rows in splits[split].values()
            ]
            rows = [row for round_ in zip(*ordered, strict=True) for row in round_]
            (folder / f"{split}.jsonl").write_text("".join(rows[:count]), encoding="utf-8")
    return out
