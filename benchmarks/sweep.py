"""Does a sweep find what the whole grid finds, and at what share of its time?

usage: python benchmarks/sweep.py MODEL DATA WORK [--steps 200] [--batch-size 8] [--minutes 9]

The same twelve settings (four rates, three ranks) as a sweep, and each trained to its end. What is
done is kept in WORK, and the command called again goes on: it begins nothing after --minutes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import mlx_itune as mi
from mlx_itune.api.sweep import _Measure
from mlx_itune.dataset.sources import load_splits
from mlx_itune.training.settings import settings_from
from mlx_itune.training.sweeping import STATE, trials_of, usual


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=9.0)
    args = parser.parse_args()
    ends = time.monotonic() + 60 * args.minutes
    how: dict[str, Any] = {"steps": args.steps, "batch_size": args.batch_size}
    base = {"model": args.model, "data": args.data, "out": args.work / "a", **how}
    lists = usual(settings_from(base))
    swept = mi.sweep(args.model, args.data, over=lists, out=args.work / "sweep", **how)
    measure = _Measure(load_splits(args.data).valid, "loss")
    kept = args.work / "grid.json"
    grid: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else []
    trials = trials_of(lists, base)
    for number, trial in enumerate(trials):
        if number < len(grid) or time.monotonic() > ends:
            continue
        began = time.monotonic()
        out = args.work / f"grid-{number}"
        done = mi.train(
            args.model, args.data, out, runs=args.work / "runs", **how, **trial.settings
        )
        loss = measure(Path(done.adapter), settings_from({**base, **trial.settings}), 1.0)
        grid.append({**trial.settings, "loss": loss, "s": time.monotonic() - began})
        kept.write_text(json.dumps(grid))
    for row in grid:
        print(json.dumps(row))
    state = json.loads((args.work / "sweep" / STATE).read_text())
    print("sweep:", swept.best.settings, swept.best.score, f"{state['spent_s']:.0f} s")
    best, seconds = min(row["loss"] for row in grid), sum(row["s"] for row in grid)
    whole = seconds * len(trials) / len(grid)
    print(f"grid: {len(grid)} of {len(trials)} runs, best {best:.4f}, {seconds:.0f} s")
    score = swept.best.score or float("nan")
    print(
        f"sweep / best of these: {score / best:.4f}; time / grid's: {state['spent_s'] / whole:.3f}"
    )


if __name__ == "__main__":
    main()
