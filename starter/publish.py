"""Write the pretrained starter as a 4-bit mlx-lm model directory with tokenizer and model card."""

from __future__ import annotations

import ctypes
import json
from contextlib import suppress
from pathlib import Path

from tokenizers import Tokenizer

from starter.network import Llama
from starter.vocabulary import END

BITS, GROUP_SIZE = 4, 64

# Blank-line separated sections. The space before an answer keeps its first word the same token
# that it is inside a note: byte-level BPE has other tokens for a word without its space.
CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ '### System:\\n' + m['content'] + '\\n\\n' }}"
    "{% elif m['role'] == 'user' %}{{ '### Instruction:\\n' + m['content'] + '\\n\\n' }}"
    "{% else %}{{ '### Response: ' + m['content'] + eos_token + '\\n\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### Response:' }}{% endif %}"
)


CARD = """---
license: mit
library_name: mlx
tags: [mlx, llama, base-model, synthetic]
---

# mlx_itune starter

A {parameters:.1f}-million-parameter base model in {bits}-bit MLX affine quantization (group
{group_size}), made so that instruction tuning can be tried, end to end and offline, in minutes.

- **Architecture**: Llama; hidden {hidden}, {layers} layers, {heads} heads, MLP {mlp}, vocabulary
  {vocab}, tied embeddings, rotary base {theta:,.0f}; trained on rows of 512 tokens.
- **Training text**: {tokens:.0f} million tokens written by a program: invented clinical charts and
  handovers, registers, stories, JSON. No instruction, no response, no real person, and nothing
  that anybody else wrote.
- **What it does**: it continues such text. It does not follow instructions: that is what tuning
  is for.
- **What it is not**: it knows no medicine, no facts and no language beyond its generator's. Never
  use it, tuned or not, for anything but trying this software.
- **Licence**: MIT, as the project.

The recipe, the loss curve and the measurements stand in `docs/starter.md` of the repository.
"""


def config_of(model: Llama) -> dict[str, object]:
    """The config.json of a Hugging Face Llama, with mlx-lm's quantization entry."""
    shape = model.shape
    quantization = {"group_size": GROUP_SIZE, "bits": BITS, "mode": "affine"}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "intermediate_size": shape.intermediate_size,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_attention_heads,
        "head_dim": shape.head_dim,
        "rms_norm_eps": shape.rms_norm_eps,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_position_embeddings,
        "rope_theta": shape.rope_theta,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "torch_dtype": "float16",
        "quantization": quantization,
        "quantization_config": quantization,
    }


def publish(
    model: Llama, tokenizer: Tokenizer, out: Path, curve: list[dict[str, float]], tokens: int
) -> None:
    """Quantize the weights and write the directory; the loss curve goes beside the script."""
    with suppress(OSError):
        ctypes.CDLL("libopenblas.so.0", ctypes.RTLD_GLOBAL)
    import mlx.core as mx  # after OpenBLAS, and only here: the rest of the script is torch

    out.mkdir(parents=True, exist_ok=True)
    weights: dict[str, mx.array] = {}
    for name, p in model.named_parameters():
        array = mx.array(p.detach().float().numpy())
        part = name.rsplit(".", 2)[-2]
        folder = "self_attn." if part[0] in "qkvo" and part.endswith("_proj") else ""
        folder = "mlp." if part in ("gate_proj", "up_proj", "down_proj") else folder
        full = f"model.{name.replace(f'{part}.weight', f'{folder}{part}.weight')}"
        if array.ndim == 1:
            weights[full] = array.astype(mx.float16)
            continue
        stem = full.removesuffix("weight")
        packed, scales, biases = mx.quantize(array.astype(mx.float16), GROUP_SIZE, BITS)
        weights |= {full: packed, f"{stem}scales": scales, f"{stem}biases": biases}
    mx.save_safetensors(str(out / "model.safetensors"), weights, metadata={"format": "mlx"})
    (out / "config.json").write_text(json.dumps(config_of(model), indent=1) + "\n")
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END,
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.shape.max_position_embeddings,
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    shape = model.shape
    card = CARD.format(
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        bits=BITS,
        group_size=GROUP_SIZE,
        hidden=shape.hidden_size,
        layers=shape.num_hidden_layers,
        heads=shape.num_attention_heads,
        mlp=shape.intermediate_size,
        vocab=shape.vocab_size,
        theta=shape.rope_theta,
        tokens=tokens / 1e6,
    )
    (out / "README.md").write_text(card)
    curve_file = Path(__file__).with_name("curve.json")
    curve_file.write_text("[\n" + ",\n".join(json.dumps(c) for c in curve) + "\n]\n")
