"""Does choosing rows help: 1,000 of many, each way against random, over several seeds.

usage: python benchmarks/selection.py MODEL DATA WORK [--count 1000] [--steps 100] [--seeds 3]
       [--minutes 9]

What is done is kept in WORK, and the command called again goes on: no seed begins after --minutes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import mlx_itune as mi
from mlx_itune.kit.json_files import plain


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--by", nargs="+", default=["loss-gain", "help", "longest"])
    parser.add_argument("--minutes", type=float, default=9.0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * args.minutes
    kept = args.work / "select.json"
    found: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else []
    for seed in range(len(found), args.seeds):
        if time.monotonic() > ends:
            break
        how: dict[str, Any] = {"count": args.count, "steps": args.steps, "seed": seed}
        out = args.work / f"chosen-{seed}"
        made = mi.select(args.model, args.data, out=out, by=args.by, **how)
        found.append(plain(made))
        kept.write_text(json.dumps(found))
    for way in (each["by"] for each in found[0]["tried"]):
        losses = [t["loss"] for made in found for t in made["tried"] if t["by"] == way]
        print(f"{way:<10} {fmean(losses):.4f}  {' '.join(f'{loss:.4f}' for loss in losses)}")


if __name__ == "__main__":
    main()
