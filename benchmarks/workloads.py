"""The work that `engine.py` times: three sets of rows, and a model with random weights.

W1: one question, one answer, all prompts different. W2: the same questions under one system prompt
of some 400 tokens, the answer is a number. W3: conversations of two to six turns.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mlx_itune.model import backend  # noqa: F401  (before mlx.core)

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
# Hidden size, layers, MLP, heads, key heads: 40 million parameters with Llama 2's vocabulary.
M40 = (512, 8, 1408, 8, 4)
VALID_ROWS = 50


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


def write_model(shared: Path, out: Path, bits: int | None = None) -> None:
    """A Llama of M40's shape with random weights, float32 or quantized, and Llama 2's tokenizer."""
    out.mkdir(parents=True)
    vocabulary = _write_tokenizer(shared / "tokenizers/llama2.tokenizer.model", out)
    hidden, layers, mlp, heads, key_heads = M40
    size = hidden // heads
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "head_dim": size,
        "rms_norm_eps": 1e-5,
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    shapes = {
        "self_attn.q_proj": (heads * size, hidden),
        "self_attn.k_proj": (key_heads * size, hidden),
        "self_attn.v_proj": (key_heads * size, hidden),
        "self_attn.o_proj": (hidden, heads * size),
        "mlp.gate_proj": (mlp, hidden),
        "mlp.up_proj": (mlp, hidden),
        "mlp.down_proj": (hidden, mlp),
    }
    mx.random.seed(0)
    weights = {"model.embed_tokens.weight": mx.random.normal((vocabulary, hidden)) * 0.02}
    weights["model.norm.weight"] = mx.ones((hidden,))
    for layer in range(layers):
        block = f"model.layers.{layer}."
        for name, (rows, columns) in shapes.items():
            weights[f"{block}{name}.weight"] = mx.random.normal((rows, columns)) * columns**-0.5
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{block}{name}.weight"] = mx.ones((hidden,))
    if bits is not None:
        config["quantization"] = {"group_size": 64, "bits": bits}
        for name in [name for name, array in weights.items() if array.ndim == 2]:
            codes, scales, biases = mx.quantize(weights[name], group_size=64, bits=bits)
            prefix = name.removesuffix("weight")
            weights |= {name: codes, f"{prefix}scales": scales, f"{prefix}biases": biases}
    mx.save_safetensors(str(out / "model.safetensors"), weights, metadata={"format": "mlx"})
    (out / "config.json").write_text(json.dumps(config, indent=1))


def _write_tokenizer(source: Path, out: Path) -> int:
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
    return len(tokenizer)


def _messages(*texts: str) -> list[dict[str, str]]:
    """User and assistant in turn."""
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def _write(folder: Path, rows: list[list[dict[str, str]]]) -> None:
    folder.mkdir(parents=True)
    for name, part in (("train", rows[:-VALID_ROWS]), ("valid", rows[-VALID_ROWS:])):
        lines = (json.dumps({"messages": messages}) + "\n" for messages in part)
        (folder / f"{name}.jsonl").write_text("".join(lines))
