"""A GGUF LoRA read back: what llama.cpp will add to each weight, against what the adapter adds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from mlx_itune.export.gguf.verify import NEIGHBOURS, Float32
from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.files import storage_errors
from mlx_itune.model.adapters import lora
from mlx_itune.model.loading.base import LoadedModel

# Of the largest entry: float32 products in another order.
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class GgufLoraVerification:
    """Pairs compared, and the largest difference of an update, relative to its largest entry."""

    reader: str
    pairs: int
    largest_difference: float


def verify_gguf_lora(file: Path, loaded: LoadedModel) -> GgufLoraVerification:
    """Compare alpha / rank * B A of every pair in ``file`` with the update of the adapted model.

    Raises ModelError for a pair that is missing, extra or another one.
    """
    try:
        with storage_errors(file):
            reader = gguf.GGUFReader(file)
        fields = {
            key: reader.fields[key].contents()
            for key in (
                "general.architecture",
                "general.type",
                "adapter.type",
                "adapter.lora.alpha",
            )
        }
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ModelError(f"is no readable GGUF LoRA ({error})", where=str(file)) from error
    architecture = str(fields["general.architecture"])
    if (fields["general.type"], fields["adapter.type"]) != ("adapter", "lora"):
        raise ModelError("does not say that it is a LoRA", where=str(file))
    tensors = {t.name: np.array(t.data, dtype=np.float32) for t in reader.tensors}
    inner = getattr(loaded.model, "language_model", loaded.model)
    number = next(n for n, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, len(inner.layers))
    furthest = 0.0
    pairs = 0
    for path, layer in lora.adapted(inner):
        theirs = re.sub(r"(mlp|block_sparse_moe)\.switch_mlp", "mlp.experts", path)
        name = f"{names.get_name(theirs)}.weight"
        a, b = tensors.pop(f"{name}.lora_a", None), tensors.pop(f"{name}.lora_b", None)
        if a is None or b is None:
            raise ModelError(f"{name} is not there", where=str(file))
        b = _in_order(b, name, inner.args, architecture)
        update = float(fields["adapter.lora.alpha"]) / b.shape[-1] * _product(a, b, name)
        want = np.array(layer.delta(), dtype=np.float32)
        apart = _apart(update, want)
        if not apart <= _TOLERANCE:
            raise ModelError(f"{name} is not what the adapter adds", where=str(file))
        furthest, pairs = max(furthest, apart), pairs + 1
    if tensors:
        raise ModelError(f"{min(tensors)} has no place in the adapter", where=str(file))
    return GgufLoraVerification(f"gguf {version('gguf')}", pairs, furthest)


def _product(a: Float32, b: Float32, name: str) -> Float32:
    """B A (out, in); of a token table A (vocabulary, rank) times B (dims, rank), transposed."""
    product: Float32 = a @ b.T if name == "token_embd.weight" else b @ a
    return product


def _in_order(b: Float32, name: str, args: Any, architecture: str) -> Float32:
    """Rows of B as the model's q and k have them."""
    swapped = architecture in NEIGHBOURS and not getattr(args, "rope_traditional", False)
    found = re.search(r"attn_([qk])\.weight", name)
    if not swapped or found is None:
        return b
    heads = args.num_attention_heads
    heads = heads if found[1] == "q" else args.num_key_value_heads or heads
    pairs: Float32 = b.reshape(heads, -1, 2, b.shape[-1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(b.shape)


def _apart(update: Float32, want: Float32) -> float:
    if update.shape != want.shape:
        return float("inf")
    largest = float(np.abs(want).max())
    return float(np.abs(update - want).max()) / largest if largest else float(np.abs(update).max())
