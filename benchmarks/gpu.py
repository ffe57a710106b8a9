"""The engine against mlx-lm's trainer on a GPU, both in one process: model by model, work by work.

usage: python benchmarks/gpu.py --shared DIR [--shapes qwen3-0.6b,qwen3-4b] [--steps 24]

Steps that meet a shape for the first time compile kernels on both sides; the first quarter is not
counted. One object per line on stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

import workloads

from mlx_itune.dataset.batching import batches
from mlx_itune.training import setup
from mlx_itune.training.settings import settings_from

import mlx.core as mx  # isort: skip
import mlx.optimizers as optim
import numpy as np
from mlx_lm.tuner import TrainingArgs, linear_to_lora_layers
from mlx_lm.tuner import train as mlx_lm_train
from mlx_lm.tuner.callbacks import TrainingCallback
from mlx_lm.tuner.datasets import CacheDataset, load_local_dataset
from mlx_lm.utils import load

RANK = 8
WORK = (("w1", 4), ("w2", 16), ("w3", 4))


def ours(model: Path, rows: Path, batch_size: int, steps: int, **how: Any) -> dict[str, Any]:
    settings = settings_from(
        {
            "model": str(model),
            "data": rows,
            "out": model / "adapter",
            "steps": steps,
            "batch_size": batch_size,
            "rank": RANK,
            "offline": True,
            **how,
        }
    )
    material = setup.gather(settings)
    learner = setup.ready(settings, material).learner
    mx.clear_cache()
    mx.reset_peak_memory()
    lengths = settings.lengths_of(material.train)
    plan = batches(len(material.train), batch_size, seed=0, steps=steps, lengths=lengths)
    chosen = [[material.train[row] for row in batch.rows] for batch in plan]
    learner.plan_shapes(chosen)
    times, tokens = [], []
    began = time.perf_counter()
    for metrics in (*(learner.step(rows, 1e-4) for rows in chosen), learner.finish()):
        if metrics is not None:
            # Of the step before; the next one was begun.
            now = time.perf_counter()
            times.append(now - began)
            tokens.append(metrics.supervised_tokens)
            began = now
    return {**_rates(times, tokens), "how": learner.ways.words}


class Reports(TrainingCallback):  # type: ignore[misc]
    """What each step learned, and how long the trainer says it took."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.tokens: list[float] = []

    def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
        tokens = train_info["trained_tokens"] - sum(self.tokens)
        self.tokens.append(tokens)
        self.times.append(tokens / train_info["tokens_per_second"])


def mlx_lm(path: Path, rows: Path, batch_size: int, steps: int) -> dict[str, Any]:
    model, tokenizer = load(str(path))
    np.random.seed(0)
    mx.random.seed(0)
    model.freeze()
    linear_to_lora_layers(model, len(model.layers), {"rank": RANK, "scale": 2.0, "dropout": 0.0})
    found, _, _ = load_local_dataset(rows, tokenizer, types.SimpleNamespace(mask_prompt=True))
    reports = Reports()
    mx.clear_cache()
    mx.reset_peak_memory()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        plan = TrainingArgs(
            batch_size=batch_size,
            iters=steps,
            steps_per_report=1,
            steps_per_save=steps + 1,
            adapter_file=f"{folder}/adapters.safetensors",
        )
        mlx_lm_train(
            model, optim.AdamW(1e-4), CacheDataset(found), None, plan, training_callback=reports
        )
    return _rates(reports.times, reports.tokens)


def _rates(times: list[float], tokens: list[Any]) -> dict[str, Any]:
    counted = slice(len(times) // 4, None)
    return {
        "supervised_tokens_per_second": float(sum(tokens[counted]) / sum(times[counted])),
        "peak_memory_bytes": mx.get_peak_memory(),
        "seconds": [round(seconds, 3) for seconds in times],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--shapes", default="qwen3-0.6b,qwen3-4b")
    parser.add_argument("--steps", type=int, default=24)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlx-itune-gpu-") as folder:
        work = Path(folder)
        workloads.write_rows(args.shared, work)
        for name in args.shapes.split(","):
            model, shape = work / name, workloads.SHAPES[name]
            workloads.write_model(
                args.shared, model, shape, None if shape.dtype == "float32" else 4
            )
            for rows, size in WORK:
                for side in (ours, mlx_lm):
                    began = time.perf_counter()
                    found = side(model, work / rows, size, args.steps)
                    line = {"model": name, "work": rows, "batch": size, "side": side.__name__}
                    print(json.dumps({**line, **found}), flush=True)
                    gc.collect()
                    mx.clear_cache()
                    print(f"{time.perf_counter() - began:.1f} s in all", file=sys.stderr)


if __name__ == "__main__":
    main()
