"""A GGUF file of llama.cpp as the model directory that MLX loads: repacked, not rounded again.

MLX's affine weight is w = scale * code + bias in groups of 32; so are the blocks of Q4_0, Q4_1 and
Q8_0. What else is quantized has no such form (Q6_K) and goes into 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.json_files import write_object

if TYPE_CHECKING:
    from gguf import ReaderTensor

Arrays = Mapping[str, Any]
GROUP = 32
_FLOATS = ("F32", "F16", "BF16")
_CONTROL, _USER_DEFINED = 3, 4


@dataclass(frozen=True)
class Family:
    """How the tensors of one architecture are called in MLX. rotary: those whose rows llama.cpp has
    in pairs within each head, and the key that counts their heads."""

    outside: Mapping[str, str]
    layers: Mapping[str, str]
    rotary: Mapping[str, str] = field(default_factory=dict)


LLAMA = Family(
    outside={"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"},
    layers={
        **{f"attn_{short}": f"self_attn.{short}_proj" for short in "qkv"},
        "attn_output": "self_attn.o_proj",
        **{f"ffn_{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    },
    rotary={"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"},
)
FAMILIES = {"llama": LLAMA}


def write_directory(gguf: Path, out: Path) -> None:
    """Write config, weights and tokenizer of a GGUF file into `out`, a directory that exists.
    Raises ModelError for what cannot be read the same."""
    from gguf import GGUFReader

    reader = GGUFReader(gguf)

    def key(name: str, default: Any = None) -> Any:
        found = reader.fields.get(name)
        return default if found is None else found.contents()

    kind = key("general.architecture")
    if kind not in FAMILIES:
        what = f"a GGUF file of the architecture {kind!r} cannot be read"
        raise ModelError(what, where=str(gguf), hint=f"those that can: {', '.join(FAMILIES)}")
    family, weights, widths = FAMILIES[kind], dict[str, mx.array](), dict[str, int]()
    for tensor in reader.tensors:
        stem = tensor.name.removesuffix(".weight")
        short = stem.rpartition(".")[2]
        heads = key(f"{kind}.{family.rotary[short]}") if short in family.rotary else None
        name = _name(stem, family, gguf)
        parts = _parts(tensor, heads)
        if "scales" in parts:
            widths[name] = 32 * parts["weight"].shape[-1] // int(tensor.shape[0])
        weights |= {f"{name}.{part}": mx.array(array) for part, array in parts.items()}
    mx.save_safetensors(str(out / "model.safetensors"), weights, metadata={"format": "mlx"})
    write_object(out / "config.json", _config(key, kind, "lm_head.weight" not in weights, widths))
    _write_tokenizer(key, out)


def _name(stem: str, family: Family, gguf: Path) -> str:
    """ "blk.3.attn_q" as "model.layers.3.self_attn.q_proj"."""
    if outside := family.outside.get(stem):
        return outside if outside == "lm_head" else f"model.{outside}"
    block, _, layer = stem.removeprefix("blk.").partition(".")
    if not (stem.startswith("blk.") and layer in family.layers):
        raise ModelError(f"the tensor {stem!r} has no place in the model", where=str(gguf))
    return f"model.layers.{block}.{family.layers[layer]}"


def _parts(tensor: ReaderTensor, heads: int | None) -> Arrays:
    """A tensor's arrays in MLX: `weight` and, of a quantized one, `scales` and `biases`."""
    from gguf import dequantize

    rows, kind = int(tensor.shape[-1]), tensor.tensor_type.name

    def in_order(array: NDArray[Any]) -> NDArray[Any]:
        if heads is None:
            return array
        paired = array.reshape(heads, rows // heads // 2, 2, -1).swapaxes(1, 2)
        apart: NDArray[Any] = paired.reshape(array.shape)
        return apart

    data = in_order(np.asarray(tensor.data))
    if kind in REPACKED:
        return REPACKED[kind](data.reshape(rows, -1))
    whole = dequantize(data, tensor.tensor_type).astype(np.float16)
    if kind in _FLOATS:
        return {"weight": whole}
    return _rounded(whole.astype(np.float32).reshape(rows, -1, GROUP))


def _halves(blocks: NDArray[np.uint8], at: int) -> NDArray[np.float16]:
    numbers: NDArray[np.float16] = blocks[..., at : at + 2].copy().view("<f2")[..., 0]
    return numbers


def _packed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint32]:
    """Codes (rows, blocks, 32) as MLX packs them, the first in the lowest bits: (rows, words)."""
    each = 32 // bits
    apart = codes.astype(np.uint32).reshape(len(codes), -1, each)
    words: NDArray[np.uint32] = (apart << (bits * np.arange(each, dtype=np.uint32))).sum(
        -1, dtype=np.uint32
    )
    return words


def _nibbles(blocks: NDArray[np.uint8]) -> NDArray[np.uint32]:
    return _packed(np.concatenate([blocks & 15, blocks >> 4], -1), 4)


def _q4_1(data: NDArray[np.uint8]) -> Arrays:
    """d, m, then 16 bytes: code j in the low half of byte j, j + 16 in its high half."""
    blocks = data.reshape(len(data), -1, 20)
    scales, biases = _halves(blocks, 0), _halves(blocks, 2)
    return {"weight": _nibbles(blocks[..., 4:]), "scales": scales, "biases": biases}


def _q4_0(data: NDArray[np.uint8]) -> Arrays:
    """w = d (code - 8)."""
    blocks = data.reshape(len(data), -1, 18)
    scales = _halves(blocks, 0)
    return {"weight": _nibbles(blocks[..., 2:]), "scales": scales, "biases": -8 * scales}


def _q8_0(data: NDArray[np.uint8]) -> Arrays:
    """w = d * int8; int8 + 128 is MLX's code."""
    blocks = data.reshape(len(data), -1, 34)
    scales = _halves(blocks, 0)
    codes = blocks[..., 2:] ^ np.uint8(128)
    return {"weight": _packed(codes, 8), "scales": scales, "biases": -128 * scales}


def _rounded(groups: NDArray[np.float32]) -> Arrays:
    """The nearest of 256 values between a group's least and greatest. Not mx.quantize: a base must
    have the same bytes, and so the same fingerprint, on every device."""
    low, high = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
    biases = low.astype(np.float16)
    scales = ((high - low) / 255).astype(np.float16)
    scales[scales == 0] = 1
    steps = np.rint((groups - biases.astype(np.float32)) / scales.astype(np.float32))
    codes = steps.clip(0, 255).astype(np.uint8)
    return {"weight": _packed(codes, 8), "scales": scales[..., 0], "biases": biases[..., 0]}


REPACKED: Mapping[str, Callable[[NDArray[np.uint8]], Arrays]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q8_0": _q8_0,
}


def _config(
    key: Callable[..., Any], kind: str, tied: bool, widths: Mapping[str, int]
) -> dict[str, Any]:
    """config.json; `widths`: bits of each quantized layer."""
    config: dict[str, Any] = {
        "model_type": kind,
        "hidden_size": key(f"{kind}.embedding_length"),
        "num_hidden_layers": key(f"{kind}.block_count"),
        "intermediate_size": key(f"{kind}.feed_forward_length"),
        "num_attention_heads": key(f"{kind}.attention.head_count"),
        "num_key_value_heads": key(f"{kind}.attention.head_count_kv"),
        "head_dim": key(f"{kind}.attention.key_length"),
        "rms_norm_eps": float(key(f"{kind}.attention.layer_norm_rms_epsilon")),
        "rope_theta": float(key(f"{kind}.rope.freq_base", 10000.0)),
        "vocab_size": len(key("tokenizer.ggml.tokens")),
        "max_position_embeddings": key(f"{kind}.context_length"),
        "tie_word_embeddings": tied,
        "bos_token_id": key("tokenizer.ggml.bos_token_id"),
        "eos_token_id": key("tokenizer.ggml.eos_token_id"),
    }
    config = {name: value for name, value in config.items() if value is not None}
    if widths:
        usual = max(widths.values(), key=[*widths.values()].count)
        others = {
            name: {"group_size": GROUP, "bits": bits}
            for name, bits in widths.items()
            if bits != usual
        }
        config["quantization"] = {"group_size": GROUP, "bits": usual, **others}
    return config


def _write_tokenizer(key: Callable[..., Any], out: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    cut = key("tokenizer.ggml.model"), key("tokenizer.ggml.pre")
    if cut != ("gpt2", "smollm"):
        raise ModelError(f"the tokenizer {cut[1] or cut[0]!r} of a GGUF file cannot be read")
    tokens, kinds = key("tokenizer.ggml.tokens"), key("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in key("tokenizer.ggml.merges")]
    made = Tokenizer(models.BPE({token: place for place, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, kinds, strict=True):
        added = [AddedToken(token, special=kind == _CONTROL, normalized=False)]
        if kind == _CONTROL:
            made.add_special_tokens(added)
        elif kind == _USER_DEFINED:
            made.add_tokens(added)
    made.save(str(out / "tokenizer.json"))
    ids = {name: key(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "padding")}
    ids["pad"] = ids.pop("padding") or ids["eos"]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": key(f"{key('general.architecture')}.context_length"),
        **{f"{name}_token": tokens[place] for name, place in ids.items() if place is not None},
        "chat_template": key("tokenizer.chat_template"),
    }
    write_object(out / "tokenizer_config.json", settings)
