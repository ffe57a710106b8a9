"""Export to transformers: a safetensors directory for ``AutoModelForCausalLM.from_pretrained``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.export.artifact import (
    Exported,
    carry_tokenizer,
    describe,
    in_shards,
    sealed,
    write_index,
)
from mlx_itune.export.cards import card
from mlx_itune.export.request import Observe, Request
from mlx_itune.export.transformers.hf_layout import (
    FloatSource,
    HfTensor,
    cleaned_config,
    placed,
    require_known,
    require_same_function,
)
from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.files import storage_errors
from mlx_itune.kit.json_files import read_object, write_object
from mlx_itune.kit.tensorfile import read_header, stream_tensors
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.adapters import lora
from mlx_itune.model.adapters.adapter import Adapter
from mlx_itune.model.loading import base
from mlx_itune.model.loading.fingerprint import weight_files

_FLOATS = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_STORED = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}


@dataclass(frozen=True)
class HfVerification:
    """Every number in the files against the source's, dequantized in float32. largest_difference:
    what rounding to the checkpoint's type changed at most; it is 0 in float32. opened_by: mlx-lm
    read the names and shapes by its own rules for transformers' checkpoints."""

    tensors: int
    numbers: int
    largest_difference: float
    opened_by: str


def export_hf(request: Request, source_dir: Path, observe: Observe) -> Exported:
    """Write a model directory of mlx-lm's, quantized or not, in transformers' layout, and verify.
    The adapter's update is added before the one rounding to the type. A tensor is held in memory
    once, and a piece of it as floats. Raises ModelError for an unknown layout, numbers that the
    type cannot hold, another base's adapter."""
    observe("writing transformers' layout, and reading it back")
    tokenizer = request.tokenizer
    adapter = request.trained() if request.adapter else None
    model_type = str(base.vet(source_dir)["model_type"])
    require_known(model_type, str(source_dir / "config.json"))
    deltas = _deltas(source_dir, adapter)
    source = FloatSource(source_dir, deltas)
    kind = _FLOATS[request.type] if request.type else source.dtype
    require_same_function(source)
    tensors = placed(source.shapes, model_type)
    stored, item_bytes = _STORED[kind]
    sizes = {t.name: int(np.prod(t.shape, dtype=np.int64)) * item_bytes for t in tensors}
    config = cleaned_config(source, kind)
    _name_tokens(config, tokenizer)
    by_name = {tensor.name: tensor for tensor in tensors}

    def parts(name: str) -> Iterator[bytes]:
        for piece in source.pieces(by_name[name].source, by_name[name].expert):
            yield _stored(piece, kind, name)

    with sealed(request.out, sum(sizes.values()), "the model") as stage:
        carry_tokenizer(stage, source_dir, config, tokenizer)
        write_object(stage / "config.json", config)
        shards = in_shards(sizes)
        for file, names in shards.items():
            described = {name: (stored, by_name[name].shape) for name in names}
            stream_tensors(stage / file, described, parts, {"format": "pt"})
        write_index(stage, shards, sum(sizes.values()))
        checked = verify_hf(stage, FloatSource(source_dir, deltas), tensors)
        # Where the adapter, or else the fused source, came from.
        file_of_papers = (request.adapter or source_dir) / adapters.PROVENANCE
        papers = read_object(file_of_papers, error=ModelError) if file_of_papers.is_file() else {}
        if papers:
            write_object(stage / adapters.PROVENANCE, papers)
        measured = (
            f"Weights in {kind}, exported by mlx-itune and read back: {checked.numbers:,} numbers "
            f"in {checked.tensors:,} tensors,",
            f"at most {checked.largest_difference:.3g} from the MLX model's, by rounding alone.",
        )
        name = request.name or base.public_id(request.model, source_dir)
        title = f"{name}{', tuned' if papers else ''}, for transformers"
        told = card("hf", name, title, measured=measured)
        (stage / "README.md").write_text(told, encoding="utf-8")
    return Exported((describe(request.out, "hf"),), checked)


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


def _stored(piece: Any, kind: str, name: str) -> bytes:
    """The bytes of a float32 piece in the file's type, ties to even."""
    if kind == "float32":
        return bytes(piece.tobytes())
    rounded = mx.array(piece).astype(getattr(mx, kind))
    if not np.isfinite(np.asarray(rounded.astype(mx.float32))).all():
        raise ModelError(
            f"{name} has numbers beyond what {kind} can hold", hint="use bfloat16 or float32"
        )
    return bytes(np.asarray(rounded.view(mx.uint16)).tobytes())


def verify_hf(out: Path, source: FloatSource, tensors: Sequence[HfTensor]) -> HfVerification:
    """Compare the files of `out` with `source`, number by number. Raises ModelError. Each number
    must be the source's, rounded by NumPy to the nearest that the file's type has; and mlx-lm,
    which knows transformers' layout, must make the same parameters of the files."""
    where = str(out)
    files = {n: (file, i) for file in weight_files(out) for n, i in read_header(file).items()}
    odd = sorted(files.keys() ^ {t.name for t in tensors})
    if odd:
        raise ModelError(f"tensor {odd[0]} is missing or should not be there", where=where)
    read = FloatSource(out).shapes
    differ = {name for name, _ in read.items() ^ source.shapes.items()}
    if differ:
        raise ModelError(f"mlx-lm reads another {min(differ)} from it", where=where)
    largest, numbers = 0.0, 0
    for tensor in tensors:
        file, info = files[tensor.name]
        if info.shape != tensor.shape:
            raise ModelError(f"tensor {tensor.name} has the shape {info.shape}", where=where)
        with storage_errors(file), file.open("rb") as stream:
            stream.seek(info.start)
            for piece in source.pieces(tensor.source, tensor.expert):
                wanted, wide = _rounded(piece, info.dtype)
                stored = np.fromfile(stream, dtype=wanted.dtype, count=wanted.size)
                if not np.array_equal(stored, wanted.reshape(-1)):
                    raise ModelError(f"tensor {tensor.name} is not its source's", where=where)
                largest = max(largest, float(np.abs(wide - piece).max(initial=0)))
                numbers += piece.size
    return HfVerification(len(tensors), numbers, largest, f"mlx-lm {base.mlx_lm_version()}")


def _rounded(piece: Any, dtype: str) -> tuple[Any, Any]:
    """float32 numbers as the file's type stores them, ties to even; and these in float32."""
    if dtype != "BF16":
        stored = piece.astype({"F32": "<f4", "F16": "<f2"}[dtype])
        return stored, stored.astype(np.float32)
    # NumPy has no bfloat16, whose bits are float32's upper half.
    bits = piece.view(np.uint32)
    upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return upper.astype(np.uint16), (upper.astype(np.uint32) << 16).view(np.float32)
