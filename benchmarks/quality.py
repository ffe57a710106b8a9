"""How soon is a tuned model good: wall clock from the command to a share of exact answers.

usage: python benchmarks/quality.py [MODEL] [--data DIR] [--steps 200] [--every 20] [--target 0.6]
       [--rates 2e-4 5e-4 1e-3] [--json]

Ours with its defaults against mlx-lm's LoRA at the best of some rates: the same model, rows, rows
per step, rank and steps, each a command of its own, one after the other. Both save their adapter
every few steps; the first one that answers enough held-out rows exactly is what is timed. Without
a model it is SmolLM2-135M in 4 bits, as `make real` fetches it; without --data the rows are
Banking77's: a message, and the name of its intent.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engine import MLX_LM, called

from mlx_itune.model.loading import named

ROOT = Path(__file__).resolve().parents[1]
TASK = "Name the intent of the customer's message. Answer with the label only."
HELD_OUT = 300
# The defaults of `train`, which mlx-lm is given, too.
BATCH_SIZE, RANK = 8, 16
Saved = list[tuple[int, float, Path]]


def write_banking(shared: Path, out: Path) -> None:
    """Banking77 as rows: all of train.csv but 200 for validation, and 300 of test.csv."""

    def rows(name: str) -> list[str]:
        with (shared / "banking77" / name).open(encoding="utf-8", newline="") as file:
            pairs = [(row["text"], row["category"]) for row in csv.DictReader(file)]
        random.Random(0).shuffle(pairs)
        roles = ("system", "user", "assistant")
        said = [
            [{"role": r, "content": c} for r, c in zip(roles, (TASK, *p), strict=True)]
            for p in pairs
        ]
        return [json.dumps({"messages": turns}, ensure_ascii=False) + "\n" for turns in said]

    train, test = rows("train.csv"), rows("test.csv")
    parts = {"train": train[200:], "valid": train[:200], "test": test[:HELD_OUT]}
    for name, lines in parts.items():
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def ours(args: argparse.Namespace, data: Path, work: Path) -> Saved:
    started = time.time()
    command = ["-m", "mlx_itune", "train", "--model", args.model, "--data", str(data)]
    command += ["--out", str(work / "adapter"), "--runs", str(work / "runs"), "--offline", "--json"]
    command += ["--steps", str(args.steps), "--save-every", str(args.every)]
    made = called(sys.executable, *command, "--keep-checkpoints", "1000")
    folders = sorted((Path(made["run"]) / "checkpoints").glob("step-*"))
    return [(int(f.name[-6:]), f.stat().st_mtime - started, f) for f in folders]


def mlx_lm(args: argparse.Namespace, data: Path, work: Path, rate: float) -> Saved:
    started, out = time.time(), work / f"mlx-lm-{rate}"
    command = [MLX_LM, args.model, str(data), "--batch", str(BATCH_SIZE), "--rank", str(RANK)]
    command += ["--iters", str(args.steps), "--rate", str(rate), "--scale", "2.0", "--dequantize"]
    called(sys.executable, *command, "--save", str(out), "--every", str(args.every))
    folders = sorted(out.glob("step-*"))
    return [
        (int(f.name[-6:]), (f / "adapters.safetensors").stat().st_mtime - started, f)
        for f in folders
    ]


def first_good(args: argparse.Namespace, data: Path, saved: Saved) -> dict[str, Any]:
    """The first saved adapter that reaches the target, by halving; the last where none does."""

    def score(adapter: Path) -> float:
        command = ["-m", "mlx_itune", "eval", "--model", args.model, "--adapter", str(adapter)]
        command += ["--allow-other-base", "--no-base", "--max-new-tokens", "32", "--offline"]
        return float(
            called(sys.executable, *command, "--data", str(data / "test.jsonl"), "--json")[
                "exact_match"
            ]
        )

    scores = {len(saved) - 1: score(saved[-1][2])}
    low, high = 0, len(saved) - 1
    while scores[high] >= args.target and low < high:
        middle = (low + high) // 2
        scores[middle] = score(saved[middle][2])
        low, high = (low, middle) if scores[middle] >= args.target else (middle + 1, high)
    step, wall_s, _ = saved[high]
    reached = scores[high] >= args.target
    return {"step": step, "wall_s": wall_s, "exact_match": scores[high], "reached": reached}


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    data = args.data
    if data is None:
        data = work / "data"
        data.mkdir()
        write_banking(args.shared, data)
    report: dict[str, Any] = {"ours": first_good(args, data, ours(args, data, work))}
    for rate in args.rates:
        report[f"mlx-lm at {rate:g}"] = first_good(args, data, mlx_lm(args, data, work, rate))
    peers = [found for name, found in report.items() if name != "ours" and found["reached"]]
    if peers and report["ours"]["reached"]:
        best_s = min(found["wall_s"] for found in peers)
        report["ratio"] = report["ours"]["wall_s"] / best_s
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", help="a model directory")
    parser.add_argument("--data", type=Path, help="a folder with train, valid and test.jsonl")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=20, help="steps between saved adapters")
    parser.add_argument("--target", type=float, default=0.6, help="share of exact answers")
    parser.add_argument("--rates", type=float, nargs="*", default=[2e-4, 5e-4, 1e-3])
    parser.add_argument("--json", action="store_true", help="one object instead of the table")
    args = parser.parse_args()
    if args.model is None:
        args.model = str(named.get("smollm2", lambda _: None))
    with tempfile.TemporaryDirectory(prefix="mlx-itune-quality-") as folder:
        report = measure(args, Path(folder))
    if args.json:
        print(json.dumps(report))
        return
    print("| | steps | wall clock | exact |\n|---|---|---|---|")
    for name, found in report.items():
        if name != "ratio":
            note = "" if found["reached"] else " (not reached)"
            line = f"| {name} | {found['step']} | {found['wall_s']:.0f} s |"
            print(f"{line} {found['exact_match']:.1%}{note} |")
    if "ratio" in report:
        print(f"ours over the best of mlx-lm's: {report['ratio']:.2f}")


if __name__ == "__main__":
    main()
