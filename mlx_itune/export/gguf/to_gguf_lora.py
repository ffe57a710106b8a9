"""Export an adapter to GGUF: for llama.cpp's `--lora` and Ollama's `ADAPTER`, beside a base."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import mlx.core as mx
from gguf import GGMLQuantizationType as Type

from mlx_itune.export.gguf.architectures import architecture_of
from mlx_itune.export.gguf.blocks import Stored
from mlx_itune.export.gguf.file import header, write
from mlx_itune.export.gguf.layout import Architecture, Facts, metadata
from mlx_itune.export.gguf.lora_verify import GgufLoraVerification, verify_gguf_lora
from mlx_itune.export.gguf.plan import Planned, interleaved, rotated_heads, tensor_name
from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.files import staged_file
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.adapters import lora
from mlx_itune.model.adapters.lowrank import LoRAEmbedding, LoRALinear, LoRASwitchLinear
from mlx_itune.model.loading import base

_PAIRS = (LoRALinear, LoRASwitchLinear, LoRAEmbedding)
_NOT_A_PAIR = {
    "dora": "its rows change their length, too",
    "grid": "it moves scales and biases of the quantized weights",
}

Observe = Callable[[str], None]


@dataclass(frozen=True)
class GgufLoraExport:
    """The file written, what the runtime will scale it by, and what reading it back showed."""

    path: str
    architecture: str
    bytes: int
    rank: int
    alpha: float
    verify: GgufLoraVerification


def export_gguf_lora(
    adapter_dir: Path,
    model: str,
    out_file: Path,
    *,
    offline: bool = False,
    allow_other_base: bool = False,
    overwrite: bool = False,
    observe: Observe | None = None,
) -> GgufLoraExport:
    """Write an adapter (lora, rslora, qalora) of ``model`` as a GGUF LoRA in float32.

    The runtime adds alpha / rank * B A, which is the adapter's scale. Raises ModelError for
    adapters that are no such pair, for another base (unless ``allow_other_base``), and for layers
    that llama.cpp cannot adapt; StorageError.
    """
    adapter = adapters.load(adapter_dir)
    kind, scale = adapter.config.kind, adapter.config.scale
    if kind in _NOT_A_PAIR:
        raise ModelError(
            f"a {kind} adapter is no LoRA to llama.cpp: {_NOT_A_PAIR[kind]}",
            where=str(adapter_dir),
            hint="fuse it and export the model with --to gguf",
        )
    if scale == 0:
        raise ModelError("has scale 0, which llama.cpp takes for 1", where=str(adapter_dir))
    # The weights stay packed: none of them is computed with.
    loaded = base.load(model, compute="quantized", offline=offline)
    try:
        architecture, facts = architecture_of(loaded.model, loaded.config)
        metadata(architecture, facts)
        adapters.apply(loaded, adapter, allow_other_base=allow_other_base)
        tensors = list(_tensors(loaded, architecture, facts))
    except ModelError as error:
        raise ModelError(
            error.message, where=error.where or str(adapter_dir), hint=error.hint
        ) from None
    writer = gguf.GGUFWriter(None, architecture.name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(f"{loaded.id}, adapter")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, adapter.config.alpha)
    start = header(writer, tensors)
    with staged_file(out_file, overwrite=overwrite) as stage:
        if observe:
            observe("writing the LoRA")
        size_bytes = write(stage, start, tensors)
        if observe:
            observe("reading it back")
        checked = verify_gguf_lora(stage, loaded)
    return GgufLoraExport(
        str(out_file),
        architecture.name,
        size_bytes,
        adapter.config.rank,
        adapter.config.alpha,
        checked,
    )


def _tensors(
    loaded: base.LoadedModel, architecture: Architecture, facts: Facts
) -> Iterator[Planned]:
    """A (rank, in) and B (out, rank) of each layer, experts before; rows of B as the base's."""
    permuted = architecture.permuted(facts)
    for path, layer in lora.adapted(loaded.model):
        path = path.removeprefix("language_model.")
        name = tensor_name(architecture, f"{path}.weight")
        if not isinstance(layer, _PAIRS):
            raise ModelError(f"{path} is adapted by a {type(layer).__name__}, no LoRA pair")
        a, b = layer.pair()
        if isinstance(layer, LoRALinear):
            a, b = a.T, b.T
        elif isinstance(layer, LoRAEmbedding):
            # llama.cpp looks rows of A up, and would multiply by it at the output.
            if facts.tied:
                raise ModelError(
                    f"llama.cpp cannot adapt {path}, which is the output layer, too",
                    hint="fuse the adapter and export the model with --to gguf",
                )
            b = b.T
        heads = rotated_heads(name, facts) if permuted else None
        order = None if heads is None else interleaved(b.shape[-2], heads)
        for end, factor, rows in (("lora_a", a, None), ("lora_b", b, order)):
            stored = Stored(f"{path}.{end}", mx.contiguous(factor.astype(mx.float32)))
            yield Planned(f"{name}.{end}", Type.F32, stored, rows)
