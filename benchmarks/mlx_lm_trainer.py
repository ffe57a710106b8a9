"""mlx-lm's own LoRA trainer on one model and data folder; the last line is a JSON object.

The comparison side of the other benchmarks. Importing mlx_itune.model first gives it the same BLAS.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

from mlx_itune.model.loading import backend

from mlx_itune.model.loading import base  # isort: skip  (before mlx.core)

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_map
from mlx_lm.tuner import TrainingArgs, linear_to_lora_layers, train
from mlx_lm.tuner.callbacks import TrainingCallback
from mlx_lm.tuner.datasets import CacheDataset, load_local_dataset
from mlx_lm.utils import dequantize_model, load


class Reports(TrainingCallback):  # type: ignore[misc]
    """Adds up learned tokens and the time that the trainer says they took."""

    def __init__(self) -> None:
        self.tokens = 0.0
        self.time_s = 0.0

    def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
        tokens = train_info["trained_tokens"] - self.tokens
        self.tokens += tokens
        self.time_s += tokens / train_info["tokens_per_second"]


def keep(folder: Path, out: Path, num_layers: int, settings: dict[str, Any]) -> None:
    """Every adapter that was saved on the way, with its time, as mlx-lm loads one."""
    config = {"fine_tune_type": "lora", "num_layers": num_layers, "lora_parameters": settings}
    for file in folder.glob("0*_adapters.safetensors"):
        step = out / f"step-{file.name[1:7]}"
        step.mkdir(parents=True)
        shutil.copy2(file, step / "adapters.safetensors")
        (step / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    model, tokenizer = load(str(base.resolve(args.model)))
    if args.dequantize:
        model = dequantize_model(model)
        model.update(tree_map(lambda weight: weight.astype(mx.float32), model.parameters()))
        mx.eval(model.parameters())
    np.random.seed(0)  # mlx-lm draws its batch order from the global generator
    mx.random.seed(0)
    model.freeze()
    settings = {"rank": args.rank, "scale": args.scale, "dropout": 0.0}
    linear_to_lora_layers(model, len(model.layers), settings)
    rows, _, _ = load_local_dataset(args.data, tokenizer, types.SimpleNamespace(mask_prompt=True))
    reports = Reports()
    mx.reset_peak_memory()
    with tempfile.TemporaryDirectory() as folder:
        plan = TrainingArgs(
            batch_size=args.batch,
            iters=args.iters,
            steps_per_report=1,
            steps_per_save=args.every or args.iters + 1,
            adapter_file=f"{folder}/adapters.safetensors",
        )
        optimizer = optim.AdamW(args.rate)
        train(model, optimizer, CacheDataset(rows), None, plan, training_callback=reports)
        if args.save:
            keep(Path(folder), args.save, len(model.layers), settings)
    return {
        "supervised_tokens": int(reports.tokens),
        "supervised_tokens_per_second": reports.tokens / reports.time_s,
        "peak_memory_bytes": mx.get_peak_memory(),
        "blas": backend.prepare().blas,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--iters", type=int, required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--save", type=Path, help="a new folder for adapters saved on the way")
    parser.add_argument("--every", type=int, default=0, help="steps between them; 0 is never")
    parser.add_argument("--dequantize", action="store_true", help="train on a float32 copy")
    args = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):  # mlx-lm prints its progress
        result = measure(args)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
