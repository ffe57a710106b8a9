"""An adapter as GGUF, for llama.cpp's `--lora` and Ollama's `ADAPTER`, beside a base; read back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
from gguf import GGMLQuantizationType as Type

from mlx_itune.export.artifact import Exported, describe
from mlx_itune.export.gguf.architectures import (
    Architecture,
    Facts,
    Float32,
    architecture_of,
    gguf_name,
)
from mlx_itune.export.gguf.tensors import Planned, write
from mlx_itune.export.gguf.verify import Reader, in_halves, rotated
from mlx_itune.export.request import Observe, Request
from mlx_itune.export.stored import Stored
from mlx_itune.kit.errors import ModelError, located
from mlx_itune.kit.files import staged_file
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.adapters import lora
from mlx_itune.model.adapters.lowrank import LoRAEmbedding, LoRALinear, LowRank
from mlx_itune.model.loading import base

_NOT_A_PAIR = {
    "dora": "its rows change their length, too",
    "grid": "it moves scales and biases of the quantized weights",
}
# Of the largest entry: float32 products in another order.
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class GgufLoraVerification:
    """Pairs compared, and the largest difference of an update, relative to its largest entry."""

    reader: str
    pairs: int
    largest_difference: float


def export_gguf_lora(request: Request, source: Path, observe: Observe) -> Exported:
    """Write an adapter (lora, rslora, qalora) as a GGUF LoRA in float32. Raises ModelError for
    another base and what llama.cpp cannot adapt, StorageError."""
    adapter, where = request.trained(), str(request.adapter)
    kind, scale = adapter.config.kind, adapter.config.scale
    if kind in _NOT_A_PAIR:
        what = f"a {kind} adapter is no LoRA to llama.cpp: {_NOT_A_PAIR[kind]}"
        raise ModelError(what, where=where, hint="fuse it and export the model with --to gguf")
    if scale == 0:
        raise ModelError("has scale 0, which llama.cpp takes for 1", where=where)
    # The weights stay packed: none of them is computed with.
    loaded = base.load(request.model, compute="quantized")
    with located(where):
        architecture, facts = architecture_of(loaded.model, loaded.config)
        architecture.told(facts)
        adapters.apply(loaded, adapter)
        tensors = list(_tensors(loaded, architecture, facts))
    writer = gguf.GGUFWriter(None, architecture.name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(f"{loaded.id}, adapter")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, adapter.config.alpha)
    with staged_file(request.out) as stage:
        observe("writing the LoRA")
        write(stage, writer, tensors)
        observe("reading it back")
        checked = verify_gguf_lora(stage, loaded)
    note = "it belongs on the base it was trained on: export that with --to gguf"
    return Exported((describe(request.out, "gguf-lora"),), checked, notes=(note,))


def verify_gguf_lora(file: Path, loaded: base.LoadedModel) -> GgufLoraVerification:
    """Compare alpha / rank * B A of every pair in ``file`` with the update of the adapted model.
    Raises ModelError for a pair that is missing, extra or another one."""
    names = ("general.architecture", "general.type", "adapter.type", "adapter.lora.alpha")
    reader = Reader(file)
    architecture, what, kind, alpha = map(reader.keys().get, names)
    if architecture is None or alpha is None or (what, kind) != ("adapter", "lora"):
        raise ModelError("does not say that it is a LoRA", where=str(file))
    tensors = {t.name: np.array(t.data, dtype=np.float32) for t in reader.tensors}
    inner: Any = getattr(loaded.model, "language_model", loaded.model)
    furthest = 0.0
    pairs = 0
    for path, layer in lora.adapted(inner):
        name = f"{gguf_name(architecture, path, len(inner.layers))}.weight"
        a, b = tensors.pop(f"{name}.lora_a", None), tensors.pop(f"{name}.lora_b", None)
        if a is None or b is None:
            raise ModelError(f"{name} is not there", where=str(file))
        heads = rotated(name, inner.args, architecture)
        b = in_halves(b, heads) if heads else b
        # Of a token table A (vocabulary, rank) times B (dims, rank), transposed.
        product = a @ b.T if name == "token_embd.weight" else b @ a
        apart = _apart(float(alpha) / b.shape[-1] * product, np.array(layer.delta(), np.float32))
        if not apart <= _TOLERANCE:
            raise ModelError(f"{name} is not what the adapter adds", where=str(file))
        furthest, pairs = max(furthest, apart), pairs + 1
    if tensors:
        raise ModelError(f"{min(tensors)} has no place in the adapter", where=str(file))
    return GgufLoraVerification(f"gguf {version('gguf')}", pairs, furthest)


def _tensors(
    loaded: base.LoadedModel, architecture: Architecture, facts: Facts
) -> Iterator[Planned]:
    """A (rank, in) and B (out, rank) of each layer, experts before; rows of B as the base's."""
    for path, layer in lora.adapted(loaded.model):
        path = path.removeprefix("language_model.")
        name = architecture.tensor_name(f"{path}.weight", facts)
        if not isinstance(layer, LowRank):
            raise ModelError(f"{path} is adapted by a {type(layer).__name__}, no LoRA pair")
        a, b = layer.pair()
        if isinstance(layer, LoRALinear):
            a, b = a.T, b.T
        elif isinstance(layer, LoRAEmbedding):
            # llama.cpp looks rows of A up, and would multiply by it at the output.
            if facts.tied:
                what = f"llama.cpp cannot adapt {path}, which is the output layer, too"
                raise ModelError(what, hint="fuse the adapter and export the model with --to gguf")
            b = b.T
        order = architecture.row_order(name, b.shape[-2], facts)
        for end, factor, rows in (("lora_a", a, None), ("lora_b", b, order)):
            stored = Stored(f"{path}.{end}", mx.contiguous(factor.astype(mx.float32)))
            yield Planned(f"{name}.{end}", Type.F32, stored, rows)


def _apart(update: Float32, want: Float32) -> float:
    if update.shape != want.shape:
        return float("inf")
    largest = float(np.abs(want).max())
    return float(np.abs(update - want).max()) / largest if largest else float(np.abs(update).max())
