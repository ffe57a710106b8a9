"""The engine against mlx-lm's compiled step on a GPU, both in one process: model by model, work by
work, each on shapes that are new to it and then on the same again.

usage: python benchmarks/gpu.py --shared DIR [--shapes qwen3-0.6b,qwen3-4b] [--minutes 7] [--tiny]

Tokens are counted here, alike for both: targets that carry loss (mlx-lm counts a pad per row, too).
A table on stderr as it comes, one JSON object on stdout at the end. Every side of every work gets
an equal share of the minutes. --tiny: a small model, to see that all of it runs; no numbers.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import workloads

from mlx_itune.dataset.batching import batches
from mlx_itune.model.engine import backward
from mlx_itune.training import setup
from mlx_itune.training.settings import settings_from

import mlx.core as mx  # isort: skip
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx_lm.tuner import linear_to_lora_layers
from mlx_lm.tuner.datasets import CacheDataset, load_local_dataset
from mlx_lm.tuner.trainer import default_loss, iterate_batches
from mlx_lm.utils import load

RANK, RATE = 8, 1e-4
WORK = (("w1", 4), ("w2", 16), ("w3", 4))
TINY = workloads.Shape(64, 2, 128, 4, 2, 16, 32_000, "qwen3")
# A step: it begins to learn and says how many tokens that are; and what waits for all of them.
Step = Callable[[], int]
Side = tuple[list[Step], Callable[[], Any], dict[str, Any]]


def ours(model: Path, rows: Path, size: int, steps: int) -> Side:
    """Steps of the engine as `train` makes it ready."""
    given = {"model": str(model), "data": rows, "out": model / "adapter", "steps": steps}
    settings = settings_from({**given, "batch_size": size, "rank": RANK, "offline": True})
    material = setup.gather(settings)
    learner = setup.ready(settings, material).learner
    lengths = settings.lengths_of(material.train)
    plan = batches(len(material.train), size, seed=0, steps=steps, lengths=lengths)
    chosen = [[material.train[row] for row in batch.rows] for batch in plan]
    learner.plan_shapes(chosen)

    def step(examples: Any) -> int:
        learner.step(examples, RATE)
        return sum(int(np.count_nonzero(example.weights[1:])) for example in examples)

    timing = backward.timing(learner.model, learner.ways.micro_batch_tokens)
    more = {"how": learner.ways.words, "shapes": len(learner.shapes.shapes)}
    more["backward_s"] = None if timing is None else vars(timing)
    return [partial(step, examples) for examples in chosen], learner.finish, more


def mlx_lm(path: Path, rows: Path, size: int, steps: int) -> Side:
    """The compiled step of mlx-lm's trainer on its own batches."""
    model, tokenizer = load(str(path))
    model.freeze()
    linear_to_lora_layers(model, len(model.layers), {"rank": RANK, "scale": 2.0, "dropout": 0.0})
    model.train()
    optimizer = optim.AdamW(RATE)
    gradient = nn.value_and_grad(model, default_loss)
    state = [model.state, optimizer.state, mx.random.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def learn(ids: mx.array, spans: mx.array) -> Any:
        found, gradients = gradient(model, ids, spans)
        optimizer.update(model, gradients)
        return found

    def step(ids: mx.array, spans: mx.array, count: int) -> int:
        # Its trainer waits for each step, too.
        mx.eval(state, learn(ids, spans))
        return count

    data, _, _ = load_local_dataset(rows, tokenizer, types.SimpleNamespace(mask_prompt=True))
    made = iterate_batches(CacheDataset(data), size, 2048, loop=True, seed=0)
    plan = []
    for ids, spans in itertools.islice(made, steps):
        starts, ends = np.asarray(spans).T
        plan.append(partial(step, ids, spans, int((ends - np.maximum(starts, 1)).sum())))
    return plan, mx.synchronize, {}


def measured(side: Side, limit_s: float) -> dict[str, Any]:
    """Supervised tokens per second of the steps on new shapes, and of the same steps again."""
    steps, wait, more = side
    mx.clear_cache()
    mx.reset_peak_memory()
    found: dict[str, Any] = {}
    for name in ("new", "known"):
        began = time.perf_counter()
        tokens = done = 0
        for step in steps:
            tokens += step()
            done += 1
            if time.perf_counter() - began > limit_s / 2:
                break
        wait()
        seconds = time.perf_counter() - began
        found |= {f"{name}_steps": done, f"{name}_tokens_per_second": tokens / seconds}
        # Only what is known by then.
        steps = steps[:done]
    return {**found, "peak_memory_bytes": mx.get_peak_memory(), **more}


def cells(shared: Path, shapes: dict[str, Any], tiny: bool, steps: int) -> Iterator[Any]:
    """What is measured: names, and what makes a side ready."""
    with tempfile.TemporaryDirectory(prefix="mlx-itune-gpu-") as folder:
        work = Path(folder)
        workloads.write_rows(shared, work)
        for name, shape in shapes.items():
            model = work / name
            workloads.write_model(shared, model, shape, None if tiny else 4)
            for (rows, size), make in itertools.product(WORK, (ours, mlx_lm)):
                about = {"model": name, "work": rows, "batch": size, "side": make.__name__}
                yield about, partial(make, model, work / rows, size // 4 if tiny else size, steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--shapes", default="qwen3-0.6b,qwen3-4b")
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    names = args.shapes.split(",")
    shapes = {"tiny": TINY} if args.tiny else {name: workloads.SHAPES[name] for name in names}
    ends = time.perf_counter() + 60 * args.minutes
    left, results, rate = 2 * len(WORK) * len(shapes), [], {}
    say = partial(print, file=sys.stderr, flush=True)
    say("model | work | new shapes: ours, mlx-lm tok/s | known: ours, mlx-lm tok/s | ratios | GB")
    for about, make in cells(args.shared, shapes, args.tiny, 3 if args.tiny else args.steps):
        began = time.perf_counter()
        try:
            side = make()
            share_s = (ends - time.perf_counter()) / left - (time.perf_counter() - began)
            found = measured(side, max(1.0, share_s))
            del side
        # One side that fails is a finding; the others are measured all the same.
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        left -= 1
        results.append({**about, **found})
        rate[about["side"]] = found
        if about["side"] == "mlx_lm":
            say(_row(about, rate["ours"], rate["mlx_lm"]))
        gc.collect()
        mx.clear_cache()
    print(json.dumps({"device": dict(mx.device_info()), "results": results}))


def _row(about: dict[str, Any], one: dict[str, Any], other: dict[str, Any]) -> str:
    parts = [about["model"], about["work"]]
    for failed in (side["error"] for side in (one, other) if "error" in side):
        return " | ".join([*parts, failed])
    pairs = [[s[f"{n}_tokens_per_second"] for s in (one, other)] for n in ("new", "known")]
    parts += [", ".join(f"{value:,.0f}" for value in pair) for pair in pairs]
    parts += [", ".join(f"{mine / theirs:.2f}" for mine, theirs in pairs)]
    return " | ".join(
        [*parts, ", ".join(f"{s['peak_memory_bytes'] / 1e9:.1f}" for s in (one, other))]
    )


if __name__ == "__main__":
    main()
