"""The training engine against mlx-lm's trainer: same model, rows, batch, rank, BLAS, machine.

usage: python benchmarks/engine.py [--shape m40] [--cases w1,w2,w3,memory] [--quantized]
       [--rounds 1] [--json] [--unsloth PYTHON SCRIPT] [--shared ../shared/data]

Each side is a process of its own, one after the other. Ratios are ours over theirs.
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
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import workloads
from workloads import matrices

from mlx_itune.model.loading import backend  # isort: skip  (before mlx.core)

import mlx.core as mx  # isort: skip

ROOT = Path(__file__).resolve().parents[1]
MLX_LM = str(Path(__file__).resolve().parent / "mlx_lm_trainer.py")
RANK = 8
Result = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """Rows, rows per step, and how many steps each side makes."""

    name: str
    rows: str
    batch_size: int
    steps: int
    peer_steps: int


CASES = (
    Case("W1, batch 4", "w1", 4, 30, 10),
    Case("W2, batch 16", "w2", 16, 8, 3),
    Case("W3, batch 4", "w3", 4, 40, 20),
)
# A step of mlx-lm's takes minutes on a quantized base here.
QUANTIZED = (
    Case("W1, batch 4, 4-bit", "w1", 4, 30, 1),
    Case("W2, batch 16, 4-bit", "w2", 16, 8, 1),
    Case("W3, batch 4, 4-bit", "w3", 4, 40, 2),
)
MANY_ROWS = 64


def called(*command: str, environment: dict[str, str] | None = None) -> Result:
    """Run one side; its last line on stdout that is an object is its result."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        sys.exit(f"benchmark: {' '.join(command)} ended with exit code {done.returncode}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    result: Result = json.loads(lines[-1])
    return result


def ours(model: Path, rows: Path, batch_size: int, steps: int) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mlx_itune", "train", "--offline", "--json"]
        command += ["--model", str(model), "--data", str(rows), "--rank", str(RANK)]
        command += ["--out", f"{folder}/adapter", "--runs", f"{folder}/runs"]
        return called(*command, "--steps", str(steps), "--batch-size", str(batch_size))


def mlx_lm(model: Path, rows: Path, batch_size: int, steps: int) -> Result:
    command = [sys.executable, MLX_LM, str(model), str(rows), "--rank", str(RANK)]
    return called(*command, "--iters", str(steps), "--batch", str(batch_size))


def unsloth(given: list[str], model: Path, rows: Path, batch_size: int, steps: int) -> Result:
    """Its trainer learns whole rows, so that steps are compared, not tokens."""
    python, script = given
    # The same BLAS as ours, where ours is not MLX's own.
    blas = "libopenblas.so.0" if backend.prepare().blas else ""
    environment = {**os.environ, "LD_PRELOAD": blas}
    found = called(
        *(python, script, str(model), str(rows)),
        *("--steps", str(steps), "--batch", str(batch_size)),
        environment=environment,
    )
    return {"steps_per_s": steps / found["wall_s"], "peak_memory_bytes": found["peak_bytes"]}


def median(results: list[Result], key: str) -> float:
    return statistics.median(float(result[key]) for result in results)


def compared(case: Case, model: Path, data: Path, args: argparse.Namespace) -> Result:
    """One line of the table."""
    sides: dict[str, list[Result]] = {"ours": [], "mlx_lm": [], "unsloth": []}
    rows = data / case.rows
    for _ in range(args.rounds):
        sides["ours"].append(ours(model, rows, case.batch_size, case.steps))
        sides["mlx_lm"].append(mlx_lm(model, rows, case.batch_size, case.peer_steps))
        if args.unsloth:
            steps = case.peer_steps
            sides["unsloth"].append(unsloth(args.unsloth, model, rows, case.batch_size, steps))
    speed, peak = "supervised_tokens_per_second", "peak_memory_bytes"
    line: Result = {"case": case.name, "batch_size": case.batch_size}
    for side in ("ours", "mlx_lm"):
        line[side] = {key: median(sides[side], key) for key in (speed, peak)}
    line["speed_ratio"] = line["ours"][speed] / line["mlx_lm"][speed]
    line["memory_ratio"] = line["ours"][peak] / line["mlx_lm"][peak]
    if args.unsloth:
        made = [r[speed] * r["steps"] / r["supervised_tokens"] for r in sides["ours"]]
        theirs = {key: median(sides["unsloth"], key) for key in ("steps_per_s", peak)}
        line["unsloth"] = {
            **theirs,
            "speed_ratio": statistics.median(made) / theirs["steps_per_s"],
            "memory_ratio": line["ours"][peak] / theirs[peak],
        }
    return line


def sgemm_flops_per_s() -> float:
    """The rate of a float32 product, 512 x 1024 by 1024 x 1024, all cores, the best of a few."""
    left, right = mx.random.normal((512, 1024)), mx.random.normal((1024, 1024))
    mx.eval(left, right)
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        mx.eval([left @ right for _ in range(8)])
        best = min(best, time.perf_counter() - start)
    return 8 * 2 * 512 * 1024 * 1024 / best


def needed_flops(shape: workloads.Shape, tokens: int, learned: int) -> float:
    """Products that a step cannot do without: per token forward and back through every linear
    layer, per learned token the same through the head; attention and LoRA not counted."""
    linear = shape.layers * sum(rows * columns for rows, columns in matrices(shape).values())
    return 4.0 * (tokens * linear + learned * shape.vocabulary * shape.hidden)


def floor(shape: workloads.Shape, run: Result) -> Result:
    """How near a run comes to the products alone."""
    rate = sgemm_flops_per_s()
    learned = run["supervised_tokens"]
    seconds = learned / run["supervised_tokens_per_second"]
    tokens = int(run["tokens_per_second"] * seconds)
    floor_s = needed_flops(shape, tokens, learned) / rate
    return {"sgemm_gflops_per_s": rate / 1e9, "share": floor_s / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", default="m40", choices=[*workloads.SHAPES])
    parser.add_argument("--cases", default="w1,w2,w3,memory")
    parser.add_argument("--quantized", action="store_true", help="the 4-bit model too: an hour")
    parser.add_argument("--rounds", type=int, default=1, help="medians of these are shown")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument(
        "--unsloth", nargs=2, metavar=("PYTHON", "SCRIPT"), help="its environment and its driver"
    )
    parser.add_argument("--json", action="store_true", help="one object instead of the table")
    args = parser.parse_args()
    if not (args.shared / "gsm8k.jsonl").is_file():
        sys.exit(f"benchmark: the rows are made from files that are not in {args.shared}")
    with tempfile.TemporaryDirectory(prefix="mlx-itune-bench-") as folder:
        report = measure(Path(folder), args)
    print(json.dumps(report) if args.json else text_of(report))


def measure(work: Path, args: argparse.Namespace) -> Result:
    chosen = args.cases.split(",")
    workloads.write_rows(args.shared, work)
    shape, model = workloads.SHAPES[args.shape], work / args.shape
    # The half-precision shapes are of models that people have in 4 bits.
    bits = None if shape.dtype == "float32" else 4
    workloads.write_model(args.shared, model, shape, bits)
    # Not counted: MLX keeps the kernels that it compiles the first time.
    ours(model, work / "w3", 4, 2)
    report: Result = {
        "model": f"{args.shape}, {'float32' if bits is None else '4-bit'}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs,"
        f" MLX on {backend.prepare().device}",
        "blas": backend.prepare().blas or "MLX's own",
        "versions": {name: importlib.metadata.version(name) for name in ("mlx", "mlx-lm")},
        "lines": [],
    }
    for case in CASES:
        if case.rows in chosen:
            report["lines"].append(compared(case, model, work, args))
    if args.quantized:
        workloads.write_model(args.shared, work / "m40-4bit", workloads.SHAPES["m40"], bits=4)
        for case in QUANTIZED:
            if case.rows in chosen:
                report["lines"].append(compared(case, work / "m40-4bit", work, args))
    if "memory" in chosen:
        few, many = (ours(model, work / "w1", size, 4) for size in (4, MANY_ROWS))
        report["batch_64_over_4_memory"] = many["peak_memory_bytes"] / few["peak_memory_bytes"]
    if "w1" in chosen and backend.on_cpu():
        report["floor"] = floor(shape, ours(model, work / "w1", 4, 30))
    return report


def text_of(report: Result) -> str:
    out = [f"{key}: {report[key]}" for key in ("model", "machine", "blas", "versions")]
    out += ["", "| work | ours, supervised tok/s | mlx-lm | ratio | ours, peak | mlx-lm | ratio |"]
    out += ["|---|---|---|---|---|---|---|"]
    for line in report["lines"]:
        mine, theirs = line["ours"], line["mlx_lm"]
        speeds, peaks = (
            [side[key] for side in (mine, theirs)]
            for key in ("supervised_tokens_per_second", "peak_memory_bytes")
        )
        out.append(
            f"| {line['case']} | {speeds[0]:,.1f} | {speeds[1]:,.1f} | {line['speed_ratio']:.1f}x"
            f" | {peaks[0] / 1e9:.2f} GB | {peaks[1] / 1e9:.2f} GB | {line['memory_ratio']:.2f}x |"
        )
    for line in report["lines"]:
        if "unsloth" in line:
            found = line["unsloth"]
            out.append(
                f"Unsloth, {line['case']}: {found['steps_per_s']:.2f} steps/s, ours"
                f" {found['speed_ratio']:.2f}x; peak {found['peak_memory_bytes'] / 1e9:.2f} GB,"
                f" ours {found['memory_ratio']:.2f}x"
            )
    if "batch_64_over_4_memory" in report:
        out.append(f"own peak, batch 64 over batch 4: {report['batch_64_over_4_memory']:.2f}x")
    if "floor" in report:
        found = report["floor"]
        out.append(
            f"W1 against its floor: {found['share']:.0%} of the speed of its matrix products alone"
            f" ({found['sgemm_gflops_per_s']:.0f} GFLOP/s)"
        )
    return "\n".join(out)


if __name__ == "__main__":
    main()
