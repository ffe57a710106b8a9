"""`plan` against what training measures: peak memory of many shapes, predicted and real.

    python benchmarks/plan.py [--only TEXT] [--steps 3] [--table]

Models have random weights and a small byte-level tokenizer, rows are invented; each is planned and
then trained for a few steps, one after the other. The ratio has to lie within 0.9 and 1.2.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from workloads import block_matrices

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)

import mlx.core as mx  # isort: skip

from mlx_itune.model.engine import memory
from mlx_itune.model.engine.shapes import Matrix, Shapes
from mlx_itune.training.engine.footprint import Row, Workload
from mlx_itune.training.engine.loop import train
from mlx_itune.training.engine.memory_plan import make_plan, workload
from mlx_itune.training.settings import TrainSettings, settings_from
from mlx_itune.training.setup import gather

TEMPLATE = (
    "{% for m in messages %}{{ m.content }}"
    "{% if m.role == 'assistant' %}<|end|>{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Shape:
    """A Llama- or Qwen3-like model."""

    hidden: int = 256
    layers: int = 4
    mlp: int = 704
    heads: int = 8
    kv_heads: int = 4
    vocabulary: int = 4096
    head_dim: int | None = None
    bits: int | None = None
    dtype: str = "float32"
    kind: str = "llama"


M40 = Shape(512, 8, 1408, 8, 4, 32000)
WIDE = Shape(1024, 4, 3072, 16, 8, 32000, 128, 4, "bfloat16", "qwen3")
# name, model, lengths of prompt and answer in tokens, settings
CASES: list[tuple[str, Shape, tuple[int, int], dict[str, Any]]] = [
    ("small, short rows", Shape(), (64, 64), {"batch_size": 4}),
    ("small, 512 tokens", Shape(), (256, 256), {"batch_size": 2}),
    ("small, 1024 tokens, batch 1", Shape(), (512, 512), {"batch_size": 1}),
    ("small, batch 16", Shape(), (100, 100), {"batch_size": 16}),
    ("small, batch 16 in 512s", Shape(), (100, 100), {"batch_size": 16, "micro_batch_tokens": 512}),
    ("small, rank 128", Shape(), (64, 64), {"batch_size": 4, "rank": 128}),
    ("small, 152k vocabulary", Shape(vocabulary=151936), (64, 192), {"batch_size": 2}),
    ("small, 32k, all learned", Shape(vocabulary=32000), (8, 500), {"batch_size": 2}),
    ("wide MLP", Shape(mlp=2816), (128, 128), {"batch_size": 4}),
    ("12 layers", Shape(layers=12), (128, 128), {"batch_size": 4}),
    ("qwen3, wide heads", Shape(kind="qwen3", head_dim=64), (128, 128), {"batch_size": 4}),
    ("4-bit, dequantized", Shape(bits=4), (128, 128), {"batch_size": 4}),
    (
        "4-bit, quantized",
        Shape(bits=4, layers=2),
        (32, 32),
        {"compute": "quantized", "batch_size": 2},
    ),
    ("bfloat16 on disk", Shape(dtype="bfloat16"), (128, 128), {"batch_size": 4}),
    ("dora", Shape(), (128, 128), {"batch_size": 4, "adapter": "dora"}),
    ("4-bit, grid", Shape(bits=4), (128, 128), {"batch_size": 4, "adapter": "grid"}),
    (
        "checkpointing",
        Shape(layers=12),
        (256, 256),
        {"batch_size": 2, "gradient_checkpointing": "on"},
    ),
    ("m40, batch 4", M40, (100, 120), {"batch_size": 4}),
    ("m40, 1024 tokens", M40, (512, 512), {"batch_size": 1}),
    ("m40, 2048 tokens", M40, (1024, 1024), {"batch_size": 2}),
    ("qwen3, wide, 1800 tokens", WIDE, (900, 900), {"batch_size": 1}),
    ("m40, 4-bit", dataclasses.replace(M40, bits=4), (100, 120), {"batch_size": 8}),
]


def matrices_of(shape: Shape) -> dict[str, tuple[int, int]]:
    """The matrices of a block, (out, in) by name."""
    head_dim = shape.head_dim or shape.hidden // shape.heads
    query, key = shape.heads * head_dim, shape.kv_heads * head_dim
    return block_matrices(shape.hidden, shape.mlp, query, key)


def sizes(shape: Shape, *, tied: bool) -> Shapes:
    """The sizes of a 4-bit model (groups of 64, 16-bit scales and biases) that need not exist."""

    def matrix(name: str, block: int | None, size: tuple[int, int]) -> Matrix:
        numbers = size[0] * size[1]
        path = name if block is None else f"model.layers.{block}.{name}"
        grid = numbers // 16
        return Matrix(path, name, block, *size, 1, 4, 64, numbers // 2 + grid, grid, True)

    head_dim = shape.head_dim or shape.hidden // shape.heads
    tables = ["model.embed_tokens", *([] if tied else ["lm_head"])]
    blocks = matrices_of(shape).items()
    norms = 2 * shape.hidden + 2 * head_dim
    return Shapes(
        layers=shape.layers,
        hidden=shape.hidden,
        heads=shape.heads,
        query=shape.heads * head_dim,
        key=shape.kv_heads * head_dim,
        vocabulary=shape.vocabulary,
        experts_per_token=1,
        matrices=(
            *(matrix(name, None, (shape.vocabulary, shape.hidden)) for name in tables),
            *(matrix(n, layer, size) for layer in range(shape.layers) for n, size in blocks),
        ),
        norms=dict.fromkeys(range(shape.layers), norms),
        other_bytes=2 * shape.layers * norms,
    )


def print_table() -> None:
    """Predictions for common 4-bit models on an Apple GPU, in GB; docs/memory.md has them."""
    kind = {"kind": "qwen3", "vocabulary": 151936, "head_dim": 128, "kv_heads": 8}
    models = {
        "Qwen3 0.6B": (Shape(1024, 28, 3072, 16, **kind), True),
        "Qwen3 1.7B": (Shape(2048, 28, 6144, 16, **kind), True),
        "Qwen3 4B": (Shape(2560, 36, 9728, 32, **kind), True),
        "Qwen3 8B": (Shape(4096, 36, 12288, 32, **kind), False),
    }
    gpu = memory.Machine("gpu", 1 << 40, 1 << 40, 1 << 40, "a table")
    for name, (shape, tied) in models.items():
        for switch in ("off", "on"):
            cells, detail = [], {}
            for tokens in (512, 1024, 2048, 4096):
                row = Row(np.arange(tokens + 1, dtype=np.int32), np.ones(tokens + 1, np.float32))
                settings = settings_from(
                    {
                        "model": name,
                        "data": Path("rows"),
                        "out": Path("out"),
                        "compute": "quantized",
                        "micro_batch_tokens": tokens,
                        "gradient_checkpointing": switch,
                        "batch_size": 1,
                    }
                )
                work = Workload(settings, sizes(shape, tied=tied), gpu, [row])
                cells.append(f"{work.peak_bytes / 1e9:.1f}")
                detail = work.breakdown if tokens == 2048 else detail
            print(f"| {name} | {switch} | {' | '.join(cells)} |")
            print("   ", {part: f"{size / 1e9:.2f}" for part, size in detail.items()})


def write_model(out: Path, shape: Shape) -> None:
    """A model directory with random weights."""
    out.mkdir(parents=True)
    _write_tokenizer(out)
    block, head_dim = matrices_of(shape), shape.head_dim or shape.hidden // shape.heads
    shapes = {"model.embed_tokens": (shape.vocabulary, shape.hidden)}
    weights: dict[str, Any] = {"model.norm.weight": mx.ones((shape.hidden,))}
    for layer in range(shape.layers):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.{name}": size for name, size in block.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{at}.{norm}.weight"] = mx.ones((shape.hidden,))
        if shape.kind == "qwen3":
            for norm in ("q_norm", "k_norm"):
                weights[f"{at}.self_attn.{norm}.weight"] = mx.ones((head_dim,))
    for number, (name, size) in enumerate(shapes.items()):
        weight = mx.random.normal(size, key=mx.random.key(number)) * 0.02
        if shape.bits is None:
            weights[f"{name}.weight"] = weight
        else:
            parts = mx.quantize(weight, group_size=64, bits=shape.bits)
            names = ("weight", "scales", "biases")
            weights |= {f"{name}.{part}": a for part, a in zip(names, parts, strict=True)}
    dtype = getattr(mx, shape.dtype)
    weights = {n: a if a.dtype == mx.uint32 else a.astype(dtype) for n, a in weights.items()}
    mx.save_safetensors(str(out / "model.safetensors"), weights, metadata={"format": "mlx"})
    config: dict[str, Any] = {
        "model_type": shape.kind,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "intermediate_size": shape.mlp,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": head_dim,
        "rms_norm_eps": 1e-5,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }
    if shape.bits is not None:
        config["quantization"] = {"group_size": 64, "bits": shape.bits, "mode": "affine"}
    (out / "config.json").write_text(json.dumps(config))


def _write_tokenizer(out: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=258,
        special_tokens=["<|pad|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["a"], trainer)
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<|end|>",
                "pad_token": "<|pad|>",
            }
        )
    )
    (out / "chat_template.jinja").write_text(TEMPLATE)


def write_rows(out: Path, prompt: int, answer: int, count: int, seed: int = 0) -> None:
    """Rows of about so many tokens, one a byte, some shorter by up to a quarter."""
    rng = random.Random(seed)

    def text(tokens: int) -> str:
        size = tokens - rng.randrange(max(1, tokens // 4))
        return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz ", k=max(1, size - 1))) + "."

    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": text(prompt)},
                    {"role": "assistant", "content": text(answer)},
                ]
            }
        )
        for _ in range(count)
    ]
    out.write_text("\n".join(lines) + "\n")


def compare(folder: Path, case: Any, steps: int) -> tuple[int, int, float, float]:
    """(predicted bytes, measured bytes, predicted s, measured s) of some steps of a case."""
    _, shape, (prompt, answer), values = case
    model, data = folder / "model", folder / "rows.jsonl"
    write_model(model, shape)
    write_rows(data, prompt, answer, steps * values["batch_size"])
    settings: TrainSettings = settings_from(
        {
            "model": str(model),
            "data": data,
            "out": folder / "adapter",
            "runs": folder / "runs",
            "steps": steps,
            "save_every": 0,
            "save_every_s": 0.0,
            "offline": True,
            **values,
        }
    )
    material = gather(settings)
    plan = make_plan(workload(settings, material.path, material.config, material.train))
    gc.collect()
    result = train(settings)
    predicted_s = plan.time_per_epoch_s * steps / plan.steps_per_epoch
    return plan.peak_memory_bytes, result.peak_memory_bytes, predicted_s, result.wall_s


def main() -> int:
    """Print the table; 1 if a ratio lies outside of the bounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="predictions for common models")
    arguments = parser.parse_args()
    if arguments.table:
        print_table()
        return 0
    outside = 0
    print(f"{'case':30} {'predicted':>12} {'measured':>12} {'ratio':>6} {'s pred.':>8} {'s':>6}")
    for case in CASES:
        if arguments.only not in case[0]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            predicted, measured, plan_s, wall_s = compare(Path(folder), case, arguments.steps)
        ratio = predicted / measured
        outside += not 0.9 <= ratio <= 1.2
        print(
            f"{case[0]:30} {predicted / 1e6:9.1f} MB {measured / 1e6:9.1f} MB {ratio:6.2f} "
            f"{plan_s:8.2f} {wall_s:6.2f}",
            flush=True,
        )
    print(f"{outside} outside of 0.9 to 1.2")
    return 1 if outside else 0


if __name__ == "__main__":
    sys.exit(main())
