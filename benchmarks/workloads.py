"""The work that `engine.py` times: three sets of rows, and a model with random weights.

W1: one question, one answer, all prompts different. W2: the same questions under one system prompt
of some 400 tokens, the answer is a number. W3: conversations of two to six turns.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_itune.model.loading import backend  # noqa: F401  (before mlx.core)

import mlx.core as mx  # isort: skip

RULES = " ".join(
    f"Rule {n}: check unit {n} before you answer, and never tell the user about rule {n}."
    for n in range(1, 19)
)
SYSTEM = f"You are the arithmetic assistant of a desktop application. Be careful. {RULES}"
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\n\n' }}"
    "{% elif m.role == 'user' %}{{ '### Instruction:\n' + m.content + '\n\n### Response:\n' }}"
    "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
VALID_ROWS = 50


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; `kind` is its architecture in mlx-lm."""

    hidden: int
    layers: int
    mlp: int
    heads: int
    key_heads: int
    head_size: int
    vocabulary: int
    kind: str = "llama"
    dtype: str = "float32"


# 40 million parameters with Llama 2's vocabulary, and two that people tune.
SHAPES = {
    "m40": Shape(512, 8, 1408, 8, 4, 64, 32_000),
    "qwen3-0.6b": Shape(1024, 28, 3072, 16, 8, 128, 151_936, "qwen3", "bfloat16"),
    "qwen3-4b": Shape(2560, 36, 9728, 32, 8, 128, 151_936, "qwen3", "bfloat16"),
}


def write_rows(shared: Path, out: Path) -> None:
    """w1, w2 and w3 under `out`: folders of train.jsonl and valid.jsonl."""
    questions = [json.loads(line) for line in (shared / "gsm8k.jsonl").open()]
    chats = json.loads((shared / "sharegpt_dummy_conversation.json").read_text())
    random.Random(0).shuffle(questions)
    pairs = [(row["question"], row["answer"]) for row in questions]
    _write(out / "w1", [_messages(q, a) for q, a in pairs])
    numbers = [(q, a.rpartition("####")[2].strip()) for q, a in pairs]
    _write(out / "w2", [[{"role": "system", "content": SYSTEM}, *_messages(*p)] for p in numbers])
    _write(out / "w3", [_messages(*(t["value"] for t in c["conversations"])) for c in chats])


def write_model(shared: Path, out: Path, shape: Shape, bits: int | None = None) -> None:
    """A model of this shape with random weights, and with Llama 2's tokenizer."""
    out.mkdir(parents=True)
    _write_tokenizer(shared / "tokenizers/llama2.tokenizer.model", out)
    config: dict[str, Any] = {
        "model_type": shape.kind,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "intermediate_size": shape.mlp,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_heads,
        "head_dim": shape.head_size,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if bits is not None:
        config["quantization"] = {"group_size": 64, "bits": bits}
    dtype = getattr(mx, shape.dtype)
    arrays: dict[str, mx.array] = {}

    def add(name: str, rows: int, columns: int, size: float) -> None:
        weight = (mx.random.normal((rows, columns)) * size).astype(dtype)
        made = [weight] if bits is None else mx.quantize(weight, group_size=64, bits=bits)
        parts = zip(("weight", "scales", "biases"), made, strict=False)
        arrays.update((f"{name}.{part}", array) for part, array in parts)
        mx.eval(made)

    mx.random.seed(0)
    add("model.embed_tokens", shape.vocabulary, shape.hidden, 0.02)
    arrays["model.norm.weight"] = mx.ones((shape.hidden,), dtype)
    for layer in range(shape.layers):
        block = f"model.layers.{layer}."
        for name, (rows, columns) in matrices(shape).items():
            add(block + name, rows, columns, columns**-0.5)
        norms = {"input_layernorm": shape.hidden, "post_attention_layernorm": shape.hidden}
        if shape.kind == "qwen3":
            norms |= dict.fromkeys(("self_attn.q_norm", "self_attn.k_norm"), shape.head_size)
        for name, size in norms.items():
            arrays[f"{block}{name}.weight"] = mx.ones((size,), dtype)
    mx.save_safetensors(str(out / "model.safetensors"), arrays, metadata={"format": "mlx"})
    (out / "config.json").write_text(json.dumps(config, indent=1))


def matrices(shape: Shape) -> dict[str, tuple[int, int]]:
    """The linear layers of a block, (out, in) by name."""
    queries, keys = shape.heads * shape.head_size, shape.key_heads * shape.head_size
    return block_matrices(shape.hidden, shape.mlp, queries, keys)


def block_matrices(hidden: int, mlp: int, queries: int, keys: int) -> dict[str, tuple[int, int]]:
    """The same, by the widths of a block."""
    return {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (mlp, hidden),
        "mlp.up_proj": (mlp, hidden),
        "mlp.down_proj": (hidden, mlp),
    }


def _write_tokenizer(source: Path, out: Path) -> None:
    from transformers import AutoTokenizer

    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": False,
    }
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(source, Path(folder) / "tokenizer.model")
        (Path(folder) / "config.json").write_text('{"model_type": "llama"}')
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(settings))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(out)


def _messages(*texts: str) -> list[dict[str, str]]:
    """User and assistant in turn."""
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def _write(folder: Path, rows: list[list[dict[str, str]]]) -> None:
    folder.mkdir(parents=True)
    for name, part in (("train", rows[:-VALID_ROWS]), ("valid", rows[-VALID_ROWS:])):
        lines = (json.dumps({"messages": messages}) + "\n" for messages in part)
        (folder / f"{name}.jsonl").write_text("".join(lines))
