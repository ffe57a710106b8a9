"""Tuning throughput on the starter: ours against mlx-lm's trainer, same work, same run.

usage: python benchmarks/starter.py [--steps 40] [--batch-size 8] [--rank 16] [--rounds 1] [--json]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MLX_LM = str(Path(__file__).resolve().parent / "mlx_lm_trainer.py")
QUANTIZED, FLOAT32, OURS = "mlx-lm, quantized base", "mlx-lm, float32 copy", "mlx-itune"
ROWS = 800
WARM_UP_STEPS = 3


def run(*command: str) -> dict[str, Any]:
    """Run one side; its last line on stdout is a JSON object."""
    done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"benchmark: {' '.join(command)} ended with exit code {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def ours(data: Path, work: Path, args: argparse.Namespace, steps: int) -> dict[str, Any]:
    command = ["-m", "mlx_itune", "train", "--model", args.model, "--data", str(data)]
    command += ["--out", str(work / "adapter"), "--runs", str(work / "runs")]
    command += ["--steps", str(steps), "--batch-size", str(args.batch_size)]
    command += ["--rank", str(args.rank), "--alpha", str(args.rank), "--seed", "0"]
    return run(*command, "--offline", "--json")


def mlx_lm(data: Path, args: argparse.Namespace, steps: int, *flags: str) -> dict[str, Any]:
    command = [MLX_LM, args.model, str(data), "--iters", str(steps)]
    command += ["--batch", str(args.batch_size), "--rank", str(args.rank), *flags]
    return run(*command)


def measure(args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Every side once per round, in turn, so that a busy machine slows all of them."""
    sides: dict[str, list[dict[str, Any]]] = {QUANTIZED: [], FLOAT32: [], OURS: []}
    with tempfile.TemporaryDirectory(prefix="mlx-itune-bench-") as folder:
        data = Path(folder) / "data"
        sample = ["-m", "mlx_itune", "data", "sample", "--out", str(data), "--seed", "7"]
        run(*sample, "--train", str(ROWS), "--valid", "20", "--test", "20", "--json")
        for round_ in range(args.rounds + 1):
            # Round 0 is not counted: MLX keeps the CPU kernels that it compiles then.
            steps = args.steps if round_ else WARM_UP_STEPS
            work = Path(folder) / str(round_)
            results = {
                QUANTIZED: mlx_lm(data, args, steps),
                FLOAT32: mlx_lm(data, args, steps, "--dequantize"),
                OURS: ours(data, work, args, steps),
            }
            if round_:
                for name, result in results.items():
                    sides[name].append(result)
    return sides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1, help="the median of these is shown")
    parser.add_argument("--json", action="store_true", help="one object instead of the table")
    args = parser.parse_args()
    sides = measure(args)
    table = {
        name: {
            key: statistics.median(float(result[key]) for result in results)
            for key in ("supervised_tokens_per_second", "peak_memory_bytes")
        }
        for name, results in sides.items()
    }
    facts = {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "blas": sides[QUANTIZED][0]["blas"],
        "versions": {name: importlib.metadata.version(name) for name in ("mlx", "mlx-lm")},
        "work": f"{args.model}, {args.steps} steps of {args.batch_size}, rank {args.rank}",
        "rounds": args.rounds,
    }
    if args.json:
        print(json.dumps({**facts, "sides": table}))
        return
    for key, value in facts.items():
        print(f"{key}: {value}")
    first = table[QUANTIZED]["supervised_tokens_per_second"]
    print("\n| trainer | supervised tok/s | ratio | peak memory |\n|---|---|---|---|")
    for name, row in table.items():
        speed, peak = row["supervised_tokens_per_second"], row["peak_memory_bytes"]
        print(f"| {name} | {speed:,.0f} | {speed / first:.2f} | {peak / 1e9:.2f} GB |")


if __name__ == "__main__":
    main()
