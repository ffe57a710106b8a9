"""Export to transformers: a safetensors directory for ``AutoModelForCausalLM.from_pretrained``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.export.artifact import (
    SHARD_BYTES,
    Exported,
    describe,
    in_shards,
    refuse_same,
    sealed,
    write_config,
    write_index,
)
from mlx_itune.export.cards import transformers_card
from mlx_itune.export.transformers.hf_layout import (
    HfTensor,
    class_name,
    cleaned_config,
    placed,
    require_same_function,
)
from mlx_itune.export.transformers.hf_source import FloatSource
from mlx_itune.export.transformers.hf_verify import verify_hf
from mlx_itune.kit.errors import ModelError, UsageError
from mlx_itune.kit.json_files import read_object, write_object
from mlx_itune.kit.tensorfile import stream_tensors
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.adapters import lora
from mlx_itune.model.adapters.adapter import Adapter
from mlx_itune.model.loading import base

_STORED = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}
_EXPONENTS = {"float16": 0x7C00, "bfloat16": 0x7F80}


def export_hf(
    source_dir: Path,
    out: Path,
    *,
    tokenizer: ChatTokenizer,
    dtype: str | None = None,
    adapter_dir: Path | None = None,
    any_base: bool = False,
    base_id: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Exported:
    """Write a model directory of mlx-lm's, quantized or not, in transformers' layout, and verify.

    dtype: "float16", "bfloat16" or "float32"; None keeps the type of the base's floats.
    adapter_dir: its update is added in float32, before the one rounding to ``dtype``.
    base_id: the model's public name, for the card. A tensor is held in memory once, and a piece of
    it as floats. Raises ModelError for an architecture whose layout is not known, numbers that are
    not finite or that ``dtype`` cannot hold, and another base's adapter; UsageError, StorageError.
    """
    refuse_same(source_dir, out)
    if dtype is not None and dtype not in _STORED:
        raise UsageError(f"unknown dtype {dtype!r}", hint="one of " + ", ".join(_STORED))
    adapter = None
    if adapter_dir is not None:
        refuse_same(adapter_dir, out)
        adapter = adapters.load(adapter_dir, any_base=any_base)
        adapter.require_template(tokenizer.name, tokenizer.template_sha256)
    own, where = base.vet(source_dir), str(source_dir / "config.json")
    model_type, name = str(own["model_type"]), base_id or source_dir.resolve().name
    class_name(model_type, where)
    deltas = _deltas(source_dir, adapter)
    source = FloatSource(source_dir, deltas)
    kind = dtype or source.dtype
    require_same_function(model_type, source.settings, source.shapes, where)
    tensors = placed(source.shapes, model_type)
    sizes = {t.name: int(np.prod(t.shape, dtype=np.int64)) * _STORED[kind][1] for t in tensors}
    config = cleaned_config(own, source.settings, source.shapes, kind, where, scaled=source.scaled)
    _name_tokens(config, tokenizer)
    with sealed(out, sum(sizes.values()), "the model") as stage:
        write_config(stage, source_dir, config, tokenizer)
        shards = in_shards(sizes, shard_bytes)
        _write_tensors(stage, source, tensors, kind, shards)
        write_index(stage, shards, sum(sizes.values()))
        checked = verify_hf(stage, FloatSource(source_dir, deltas), tensors)
        # Where the adapter, or else the fused source, came from.
        file = (adapter_dir or source_dir) / adapters.PROVENANCE
        papers = read_object(file, error=ModelError) if file.is_file() else {}
        if papers:
            write_object(stage / adapters.PROVENANCE, papers)
        measured = (
            f"Weights in {kind}, exported by mlx-itune and read back: {checked.numbers:,} numbers "
            f"in {checked.tensors:,} tensors,",
            f"at most {checked.largest_difference:.3g} from the MLX model's, by rounding alone.",
        )
        card = transformers_card(name, measured, tuned=bool(papers))
        (stage / "README.md").write_text(card, encoding="utf-8")
    return Exported((describe(out, "hf"),), checked)


def _name_tokens(config: dict[str, Any], tokenizer: ChatTokenizer) -> None:
    """Special tokens that config.json leaves out; transformers would take another model's."""
    ends = sorted(tokenizer.eos_ids)
    config.setdefault("bos_token_id", tokenizer.hf.bos_token_id)
    config.setdefault("pad_token_id", tokenizer.hf.pad_token_id)
    config.setdefault("eos_token_id", ends[0] if len(ends) == 1 else ends)


def _deltas(source_dir: Path, adapter: Adapter | None) -> dict[str, Callable[[], Any]]:
    """What makes each adapted layer's update; none stays in memory."""
    if adapter is None:
        return {}
    # Of these kinds only DoRA's update is made of the weights.
    compute = "dequantized" if adapter.config.kind == "dora" else "quantized"
    loaded = base.load(str(source_dir), compute=compute)
    adapters.apply(loaded, adapter)
    return {path: layer.delta for path, layer in lora.adapted(loaded.model)}


def _write_tensors(
    stage: Path,
    source: FloatSource,
    tensors: Sequence[HfTensor],
    kind: str,
    shards: dict[str, tuple[str, ...]],
) -> None:
    last = {tensor.source: tensor.name for tensor in tensors}
    by_name = {tensor.name: tensor for tensor in tensors}

    def parts(name: str) -> Iterator[bytes]:
        tensor = by_name[name]
        for piece in source.pieces(tensor.source, tensor.expert):
            yield _stored(piece, kind, name)
        if last[tensor.source] == name:
            source.release(tensor.source)

    for file, names in shards.items():
        described = {name: (_STORED[kind][0], by_name[name].shape) for name in names}
        stream_tensors(stage / file, described, parts, {"format": "pt"})


def _stored(piece: Any, kind: str, name: str) -> bytes:
    """The bytes of a float32 piece in the file's type, ties to even."""
    if kind == "float32":
        return bytes(piece.tobytes())
    rounded = np.asarray(mx.array(piece).astype(getattr(mx, kind)).view(mx.uint16))
    # All bits of the exponent: infinity, of a number that was none.
    exponent = np.uint16(_EXPONENTS[kind])
    if piece.size and ((rounded & exponent) == exponent).any():
        raise ModelError(
            f"{name} has numbers beyond what {kind} can hold", hint="use bfloat16 or float32"
        )
    return bytes(rounded.tobytes())
