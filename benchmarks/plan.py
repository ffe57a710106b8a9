"""`plan` against what training measures: peak memory of many shapes, predicted and real.

    python benchmarks/plan.py [--only TEXT] [--steps 3]

Models have random weights and a small byte-level tokenizer, rows are invented; each is planned and
then trained for a few steps, one after the other. The ratio has to lie within 0.95 and 1.15.
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

import mlx_itune.training  # noqa: F401  (loads a fast BLAS before mlx.core)

import mlx.core as mx  # isort: skip

from mlx_itune.training.loop import train
from mlx_itune.training.plan import make_plan
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
    ("m40, 4-bit", dataclasses.replace(M40, bits=4), (100, 120), {"batch_size": 8}),
]


def write_model(out: Path, shape: Shape) -> None:
    """A model directory with random weights."""
    out.mkdir(parents=True)
    _write_tokenizer(out)
    head_dim = shape.head_dim or shape.hidden // shape.heads
    query, key = shape.heads * head_dim, shape.kv_heads * head_dim
    block = {
        "self_attn.q_proj": (query, shape.hidden),
        "self_attn.k_proj": (key, shape.hidden),
        "self_attn.v_proj": (key, shape.hidden),
        "self_attn.o_proj": (shape.hidden, query),
        "mlp.gate_proj": (shape.mlp, shape.hidden),
        "mlp.up_proj": (shape.mlp, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.mlp),
    }
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
    plan = make_plan(settings, material.path, material.config, material.train)
    gc.collect()
    step_s: list[float] = []
    result = train(settings, observe=lambda event: step_s.append(event.get("eta_s", 0.0)))
    predicted_s = plan.time_per_epoch_s * steps / plan.steps_per_epoch
    return plan.peak_memory_bytes, result.peak_memory_bytes, predicted_s, result.wall_s


def main() -> int:
    """Print the table; 1 if a ratio lies outside of the bounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    outside = 0
    print(f"{'case':30} {'predicted':>12} {'measured':>12} {'ratio':>6} {'s pred.':>8} {'s':>6}")
    for case in CASES:
        if arguments.only not in case[0]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            predicted, measured, plan_s, wall_s = compare(Path(folder), case, arguments.steps)
        ratio = predicted / measured
        outside += not 0.95 <= ratio <= 1.15
        print(
            f"{case[0]:30} {predicted / 1e6:9.1f} MB {measured / 1e6:9.1f} MB {ratio:6.2f} "
            f"{plan_s:8.2f} {wall_s:6.2f}",
            flush=True,
        )
    print(f"{outside} outside of 0.95 to 1.15")
    return 1 if outside else 0


if __name__ == "__main__":
    sys.exit(main())
