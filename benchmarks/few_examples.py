"""Few labelled rows, alone, with drafts of a teacher, and against ten times as many real rows.

python benchmarks/few_examples.py --data bank --model smollm2 --seeds 0

Of a data folder of labelled rows (Banking77) it takes some classes: `--few` rows of them, the same
with `--drafts` drafts by `data grow`, and `--real` rows. Each is trained for as many steps, and
scored on test rows of these classes. Of drafts those are taken whose second sample agrees: what a
person would decide is not measured. Prints one line a run; goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import mlx_itune as mi
from mlx_itune.dataset.sources import to_row

Rows = list[dict[str, Any]]


def by_label(data: Path, split: str) -> dict[str, Rows]:
    found = defaultdict(list)
    for row in mi.read_rows(data, split=split):
        found[row.turns[-1].content].append(to_row(row))
    return found


def write(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"messages": r["messages"]}) + "\n" for r in rows))
    return path


def drafted(few: Path, folder: Path, asked: argparse.Namespace, seed: int) -> Rows:
    """Drafts that the base makes of the few rows."""
    how = {"count": asked.drafts, "seed": seed, "model": asked.model}
    mi.grow(few, folder / "drafts", **how)
    lines = (folder / "drafts/drafts.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    agreed = [row for row in rows if row["scores"]["agreement"] == 1]
    print(f"seed {seed}: {len(agreed)} of {len(rows)} drafts agree", flush=True)
    return agreed if asked.agreed else rows


def run(asked: argparse.Namespace, seed: int) -> dict[str, Any]:
    dice, folder = random.Random(seed), asked.work / f"seed{seed}"
    train, test = by_label(asked.data, "train"), by_label(asked.data, "test")
    labels = dice.sample(sorted(train), asked.labels)
    pools = {label: dice.sample(train[label], len(train[label])) for label in labels}

    def first(count: int) -> Rows:
        return [row for label in labels for row in pools[label][: count // len(labels)]]

    few = write(folder / "few.jsonl", first(asked.few))
    held = [row for label in labels for row in test[label][: asked.test // len(labels)]]
    tested = write(folder / "test.jsonl", held)
    sets = {
        "few": first(asked.few),
        "few+drafts": [*first(asked.few), *drafted(few, folder, asked, seed)],
        "real": first(asked.real),
    }
    found: dict[str, Any] = {}
    for name, rows in sets.items():
        place = write(folder / name / "train.jsonl", rows)
        # Nothing is chosen by it: a step count is fixed before.
        write(folder / name / "valid.jsonl", sets["few"][:: asked.labels])
        adapter, began = folder / f"{name}-adapter", time.monotonic()
        if not adapter.exists():
            mi.train(
                data=place.parent,
                model=asked.model,
                out=adapter,
                runs=folder / "runs",
                steps=asked.steps,
                seed=seed,
            )
        scored = mi.evaluate(tested, model=asked.model, adapter=adapter, base=False)
        score = scored.score
        found[name] = {"rows": len(rows), "score": score, "wall_s": time.monotonic() - began}
        print(f"seed {seed}: {name}: {len(rows)} rows, {score:.3f}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--work", type=Path, default=Path("few-examples"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--agreed", action=argparse.BooleanOptionalAction, default=True)
    defaults = {"labels": 10, "few": 50, "drafts": 450, "real": 500, "test": 200, "steps": 60}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    asked = parser.parse_args()
    found = {seed: run(asked, seed) for seed in asked.seeds}
    asked.work.mkdir(exist_ok=True)
    (asked.work / "result.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
