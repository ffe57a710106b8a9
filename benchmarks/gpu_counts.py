"""What a training step asks of a GPU, counted on a CPU: ours against mlx-lm's compiled step.

usage: python benchmarks/gpu_counts.py [--json] [--shared ../shared/data]

Counts do not depend on the machine, so they can be held in a test; times need a GPU (gpu.py).
The engine is told that it runs on one, both steps are traced by mx.compile, and the graphs are
counted, not computed: a fused chain or a product is one launch, a view is none, a copy of a view
behind a transpose is one. Norms and rotations, one kernel each on a GPU, have stand-ins. What a
layer costs is half the difference of two models of two and four layers.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from mlx_itune.model.loading import backend  # isort: skip  (before mlx.core)

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten
from mlx_lm.models import qwen3
from mlx_lm.tuner import linear_to_lora_layers
from mlx_lm.tuner.trainer import default_loss

from mlx_itune.dataset.batching import batches
from mlx_itune.model.adapters import lora
from mlx_itune.model.engine import compute
from mlx_itune.model.engine.probe import Exact
from mlx_itune.training.engine import step_ways
from mlx_itune.training.engine.footprint import Row
from mlx_itune.training.engine.microbatch import Device
from mlx_itune.training.engine.step import Learner
from mlx_itune.training.settings import settings_from

KINDS = ("lora", "dora", "grid", "qalora")
VOCABULARY, LAYERS = 256, 36
_VIEWS = frozenset(
    "Broadcast Reshape Transpose ExpandDims Squeeze Slice AsStrided Split StopGradient Flatten "
    "Unflatten Depends CustomTransforms Copy View NumberOfElements BroadcastAxes".split()
)


@dataclass(frozen=True)
class Step:
    """One step's launches; evaluations that the host asked for, and those it waited for."""

    launches: int
    evaluations: int = 1
    waits: int = 0


def launches(arrays: Any) -> int:
    """How many kernels the evaluation of a tree of arrays would launch."""
    flat = [array for _, array in tree_flatten(arrays)]
    with tempfile.NamedTemporaryFile("r", suffix=".dot") as file:
        mx.export_to_dot(file.name, *flat)
        text = file.read()
    label = dict(re.findall(r'\{ (\d+) \[label ="(\w+)"', text))
    made: dict[str, str] = {}
    inputs = collections.defaultdict(list)
    for one, other in re.findall(r'^"?(\w+)"? -> "?(\w+)"?$', text, re.M):
        if one in label:
            made[other] = one
        else:
            inputs[other].append(one)

    def is_copy(node: str) -> bool:
        """Whether a reshape's input is a view behind a transpose, which has to be laid out."""
        while inputs[node] and (source := made.get(inputs[node][0])) is not None:
            if label[source] == "Transpose":
                return True
            if label[source] not in _VIEWS:
                return False
            node = source
        return False

    count = 0
    for node, name in label.items():
        if name in ("Reshape", "Flatten"):
            count += is_copy(node)
        elif name == "Concatenate":
            count += len(inputs[node])
        elif name in ("Scatter", "ScatterAxis", "SliceUpdate"):
            count += 2
        elif name not in _VIEWS:
            count += 1
    return count


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """The engine believes in a Metal GPU; one kernel each for what the CPU build takes apart."""

    def one(x: mx.array, weight: Any = None, *_: Any, **__: Any) -> mx.array:
        def backward(primals: Any, cotangent: mx.array, _: Any) -> list[mx.array]:
            # Both gradients come of one kernel.
            made = mx.cummin(cotangent, axis=-1)
            return [made, *(made.reshape(-1, made.shape[-1])[0] for _ in primals[1:])]

        operation: Any = mx.custom_function(
            lambda x, *weights: mx.cummax(mx.depends(x, weights) if weights else x, axis=-1)
        )
        operation.vjp(backward)
        made: mx.array = operation(x, *([weight] if isinstance(weight, mx.array) else []))
        return made

    def dequantized(weight: mx.array, scales: mx.array, *_: Any, **options: Any) -> mx.array:
        wide = (*scales.shape, options["group_size"])
        whole = mx.broadcast_to(scales[..., None], wide).reshape(*scales.shape[:-1], -1)
        return mx.cummax(whole, axis=-1)

    gpu = backend.Backend("gpu", None, None)
    device = Device(1, multiple=16, bucketed=True, overhead_tokens=512)
    with (
        mock.patch.object(backend, "prepare", lambda: gpu),
        mock.patch.object(step_ways, "device_here", lambda _: device),
        mock.patch.object(mx.fast, "rms_norm", one),
        mock.patch.object(mx.fast, "rope", one),
        mock.patch.object(mx, "dequantize", dequantized),
    ):
        mx.enable_compile()
        try:
            yield
        finally:
            mx.disable_compile()


def model_of(layers: int, hidden: int = 128) -> Any:
    """A random model in 4 bits with bfloat16 activations."""
    args = qwen3.ModelArgs(
        model_type="qwen3",
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=192,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        rms_norm_eps=1e-6,
        vocab_size=VOCABULARY,
        max_position_embeddings=4096,
        rope_theta=1e6,
        tie_word_embeddings=True,
    )
    model = qwen3.Model(args)
    model.set_dtype(mx.bfloat16)
    nn.quantize(model, group_size=64, bits=4)
    return model


def learner_of(layers: int, kind: str) -> Learner:
    """The engine on such a model."""
    model = model_of(layers)
    compute.apply(model, "quantized")
    lora.attach(model, rank=8, scale=2.0, kind=kind)
    settings = settings_from({"model": "m", "data": Path("d"), "out": Path("o"), "adapter": kind})
    ways = step_ways.ways_for(model, settings, 1, Exact(caches=(0,) * layers))
    return Learner(model, settings, ways=ways)


def ours(learner: Learner, rows: Sequence[Row]) -> Step:
    """A step of the engine: what it launches, and how often the host asks or waits."""
    learner.model.train()
    found: list[int] = []
    waits = 0

    def count(*arrays: Any) -> None:
        found.append(launches(arrays))

    def wait(*arrays: Any) -> None:
        nonlocal waits
        waits += 1
        count(*arrays)

    with mock.patch.object(mx, "async_eval", count), mock.patch.object(mx, "eval", wait):
        held = learner.held, learner.states
        learner.step(rows, 1e-4)
        learner.held, learner.states = held
        learner._running = None
    return Step(sum(found), len(found), waits)


def compiled_step(layers: int) -> Callable[[mx.array, mx.array], list[Any]]:
    """mlx-lm's compiled step on the same model; it gives all that is evaluated after it."""
    model = model_of(layers)
    model.freeze()
    linear_to_lora_layers(model, layers, {"rank": 8, "scale": 2.0, "dropout": 0.0})
    model.train()
    mx.eval(model.parameters())
    optimizer = optim.AdamW(1e-4)
    gradient = nn.value_and_grad(model, default_loss)
    optimizer.init(model.trainable_parameters())
    state = [model.state, optimizer.state, mx.random.state]
    mx.eval(state)

    @partial(mx.compile, inputs=state, outputs=state)
    def step(ids: mx.array, lengths: mx.array) -> Any:
        (loss, tokens), gradients = gradient(model, ids, lengths)
        optimizer.update(model, gradients)
        return loss, tokens

    return lambda ids, lengths: [step(ids, lengths), state]


def theirs(layers: int) -> Step:
    """A step of mlx-lm's on four rows of 256 tokens."""
    step = compiled_step(layers)
    return Step(launches(step(mx.ones((4, 257), mx.int32), mx.array([[8, 257]] * 4))[::-1]))


def host_times(kind: str, steps: int = 8) -> tuple[float, float]:
    """Seconds of the main thread for a step of ours and of mlx-lm's, with hardly anything to
    compute: the least of some steps, one of each in turn."""
    with as_on_a_gpu():
        learner, their_step = learner_of(LAYERS, kind), compiled_step(LAYERS)
        rows = [Row(np.arange(17, dtype=np.int32), np.ones(17, np.float32))] * 4

        def ours() -> None:
            learner.step(rows, 1e-4)

        def other() -> None:
            ids = np.stack([row.input_ids for row in rows])
            mx.eval(their_step(mx.array(ids), mx.array([[1, 17]] * 4)))

        found: list[list[float]] = [[], []]
        for _ in range(steps):
            for step, seconds in zip((ours, other), found, strict=True):
                before = time.thread_time()
                step()
                seconds.append(time.thread_time() - before)
                mx.synchronize()
    return min(found[0]), min(found[1])


def lengths_of(shared: Path, work: str) -> list[tuple[int, int]]:
    """(prompt, answer) tokens of a workload's rows: real ones, or some like them."""
    if (shared / "gsm8k.jsonl").is_file():
        rows = [json.loads(line) for line in (shared / "gsm8k.jsonl").open()]
        # Llama 2's tokenizer makes a token of 3.6 characters of this text.
        sizes = [(len(r["question"]) * 10 // 36, len(r["answer"]) * 10 // 36) for r in rows]
    else:
        rng = np.random.default_rng(0)
        sizes = [(int(q), int(a)) for q, a in rng.lognormal((4.2, 4.4), 0.4, (2500, 2))]
    if work == "w2":
        return [(385 + q, 4) for q, _ in sizes]
    return sizes


def rows_of(shared: Path, work: str) -> list[Row]:
    """Rows of these lengths; those of w2 begin alike."""
    rng = np.random.default_rng(1)
    common = rng.integers(0, VOCABULARY, 385)
    made = []
    for prompt, answer in lengths_of(shared, work):
        ids = rng.integers(0, VOCABULARY, prompt + answer).astype(np.int32)
        if work == "w2":
            ids[:385] = common
        weights = np.zeros(len(ids), np.float32)
        weights[prompt:] = 1
        made.append(Row(ids, weights))
    return made


def positions(learner: Learner, rows: Sequence[Row], batch_size: int) -> tuple[float, set[Any]]:
    """Positions that 64 steps compute, over mlx-lm's; and the shapes they have."""
    lengths = [len(row.input_ids) for row in rows]
    plan = batches(len(rows), batch_size, seed=0, steps=64, lengths=lengths)
    steps = [[rows[index] for index in batch.rows] for batch in plan]
    learner.plan_shapes(steps)
    mine, shapes = 0, set()
    for step in steps:
        for batch in learner.arranged(step):
            prefix = batch.prefix.tokens if batch.prefix else 0
            mine += prefix
            for part in batch.parts:
                shape = learner.shapes.fit(learner._shape(part, batch.prefix))
                shapes.add(shape)
                mine += shape.rows * shape.width
    # mlx-lm sorts all rows by length, cuts them into batches and pads to 32.
    order = sorted(lengths)
    cut = [order[at : at + batch_size] for at in range(0, len(order) - batch_size + 1, batch_size)]
    chosen = np.random.default_rng(0).permutation(len(cut))[:64]
    padded = sum(batch_size * (-(-max(cut[n]) // 32) * 32) for n in chosen)
    return mine / padded, shapes


def measure(shared: Path) -> dict[str, Any]:
    """All counts, by their names in the design."""
    w1, w2 = rows_of(shared, "w1"), rows_of(shared, "w2")
    four = [row for row in w1 if 200 < len(row.input_ids) <= 256][:4]
    with as_on_a_gpu():
        their_two, their_four = theirs(2), theirs(4)
        per_layer = (their_four.launches - their_two.launches) / 2
        whole = their_four.launches + (LAYERS - 4) * per_layer
        report: dict[str, Any] = {"mlx_lm": {"launches_per_layer": per_layer}, "adapters": {}}
        for kind in KINDS:
            two, other = (ours(learner_of(layers, kind), four) for layers in (2, 4))
            layer = (other.launches - two.launches) / 2
            report["adapters"][kind] = {
                "launches_per_layer": layer,
                "launches_per_layer_ratio": layer / per_layer,
                "launches_36_layers_ratio": (other.launches + (LAYERS - 4) * layer) / whole,
                "evaluations_per_step": other.evaluations,
                "waits_per_step": other.waits,
            }
        report |= report["adapters"]["lora"]
        learner = learner_of(2, "lora")
        ratio, shapes = positions(learner, w1, 4)
        report["shapes_in_64_steps"] = len(shapes)
        report["positions_ratio"] = {"w1": ratio, "w2": positions(learner, w2, 16)[0]}
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--host", action="store_true", help="times of the main thread instead")
    args = parser.parse_args()
    if args.host:
        found = {kind: host_times(kind) for kind in KINDS}
        report = {
            k: {"ms": 1e3 * a, "mlx_lm_ms": 1e3 * b, "ratio": a / b} for k, (a, b) in found.items()
        }
    else:
        report = measure(args.shared)
    if args.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
