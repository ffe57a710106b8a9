"""Export to transformers: a safetensors directory for ``AutoModelForCausalLM.from_pretrained``.
mlx-lm keeps transformers' names but for the experts of a mixture, which it stacks. Checkpoints keep
them one by one; transformers 5 stacks them when it loads."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

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
from mlx_itune.export.stored import stored_tensors
from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.files import storage_errors
from mlx_itune.kit.json_files import read_object, write_object
from mlx_itune.kit.tensorfile import read_header, stream_tensors
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.adapters import lora
from mlx_itune.model.adapters.adapter import Adapter
from mlx_itune.model.adapters.peft_format import expert_modules
from mlx_itune.model.loading import base
from mlx_itune.model.loading.fingerprint import weight_files

# The types whose logits were compared with transformers' own (tests/parity). gemma, helium, olmo3
# and starcoder2 keep the names, but compute something else there.
COMPARED = frozenset(
    "cohere cohere2 gemma2 gemma3_text glm4 granite llama mistral mixtral nemotron olmo2 olmoe phi "
    "phi3 qwen2 qwen2_moe qwen3 qwen3_moe smollm3 stablelm".split()
)
# What mlx-lm calls its own switches; transformers has no such setting.
_OURS_ALONE = {"model_type", "rope_traditional"}
# Those of the above whose heads transformers, too, rotates by neighbouring values.
_NEIGHBOURS = {"glm4"}
# Sliding windows that mlx-lm's modules leave out; those of llama and mistral only with layer_types.
_WINDOW = {"mistral", "mixtral", "phi3"}
_SWITCHED_WINDOW = {"qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3"}
# Biases that mlx-lm's module may have, and transformers' would drop when it loads.
_DROPPED = {
    "mistral": r".*_proj\.bias",
    "olmo2": r".*\.mlp\..*\.bias",
    "olmoe": r".*\.mlp\..*\.bias",
    "cohere": r".*norm\.bias",
    "cohere2": r".*norm\.bias",
}
# A piece of a matrix in float32; MLX holds two or three of them at once.
_PIECE_BYTES = 8 << 20


class FloatSource:
    """The parameters of a model directory, dequantized and merged as they are read, each once.
    settings: mlx-lm's, defaults filled in. shapes: unpacked. dtype: of most floats. scaled: whether
    any layer scales its rotary positions, which some modules of mlx-lm do not whatever config.json
    says. What `deltas[path]` makes, (..., out, in) float32, is added to the weight at `path`."""

    def __init__(self, path: Path, deltas: Mapping[str, Callable[[], Any]] | None = None) -> None:
        model, _ = base.read(path)
        self.path = path
        self.config = base.vet(path)
        self.settings: dict[str, Any] = dict(vars(model.args))
        rotary = [m for _, m in model.named_modules() if "rope" in type(m).__name__.lower()]
        self.scaled = any(type(m) is not nn.RoPE or m.scale != 1 for m in rotary)
        self.dtype = _float_type(model)
        self._stored = stored_tensors(model)
        self._deltas = {f"{name}.weight": delta for name, delta in (deltas or {}).items()}
        self._made: dict[str, Any] = {}
        if any(name.endswith(".global_scale") for name in self._stored):
            raise ModelError("weights with a global scale cannot be exported", where=str(path))
        self.shapes = {name: stored.shape for name, stored in self._stored.items()}
        lost = sorted(self._deltas.keys() - self.shapes.keys())
        if lost:
            raise ModelError(f"the model has no layer {lost[0][:-7]}", where=str(path))

    def pieces(self, name: str, expert: int | None = None) -> Iterator[Any]:
        """A parameter, or one expert of it, as float32 NumPy arrays, some rows at a time. After it,
        or its last expert, the parameter's memory is free again. Raises ModelError for NaN or
        infinity."""
        stored = self._stored[name]
        if name in self._deltas and name not in self._made:
            self._made[name] = self._deltas[name]()
        delta = self._made.get(name)
        if expert is not None:
            stored, delta = stored.rows(expert), None if delta is None else delta[expert]
        count, *rest = stored.shape or (1,)
        step = max(1, _PIECE_BYTES // max(4 * math.prod(rest), 1))
        for start in range(0, count, step):
            rows = slice(start, min(start + step, count))
            floats = stored.rows(rows).floats()
            piece = np.asarray(floats if delta is None else floats + delta[rows])
            # NumPy's is some thirty times as fast as MLX's on a CPU.
            if not np.isfinite(piece).all():
                raise ModelError(f"{name} holds NaN or infinity", where=str(self.path))
            yield piece
        if expert is None or expert == self.shapes[name][0] - 1:
            self._stored.pop(name)
            self._made.pop(name, None)


def _float_type(model: nn.Module) -> str:
    """The float type most of the weights have, or that their scales have."""
    sizes: Counter[str] = Counter()
    for _, tensor in tree_flatten(model.parameters()):
        if mx.issubdtype(tensor.dtype, mx.floating):
            sizes[str(tensor.dtype).rpartition(".")[2]] += tensor.size
    # The scales of mxfp4 and nvfp4 are bytes; their products are bfloat16.
    return sizes.most_common(1)[0][0] if sizes else "bfloat16"


@dataclass(frozen=True)
class HfTensor:
    """A tensor of the checkpoint: `source` is mlx-lm's name, of which it is one `expert` or all."""

    name: str
    shape: tuple[int, ...]
    source: str
    expert: int | None = None


def require_known(model_type: str, where: str) -> None:
    """Raises ModelError for a model type that was not compared."""
    if model_type not in COMPARED:
        what = f"model_type {model_type!r} has no export to transformers"
        raise ModelError(what, where=where, hint="it is known for " + ", ".join(sorted(COMPARED)))


def require_same_function(source: FloatSource) -> None:
    """Raises ModelError for what transformers' class of this type would compute otherwise."""
    model_type, settings = source.config["model_type"], source.settings
    lost = [name for name in source.shapes if re.fullmatch(_DROPPED.get(model_type, ""), name)]
    reason = None
    if settings.get("rope_traditional") not in (None, model_type in _NEIGHBOURS):
        reason = f"rope_traditional is not what transformers' {model_type} computes"
    elif model_type in ("llama", "mistral") and "sliding_attention" in settings["layer_types"]:
        reason = f"has a sliding window in some layers, which transformers' {model_type} has not"
    elif lost:
        reason = f"transformers' {model_type} has no {min(lost)}"
    if reason is not None:
        raise ModelError(reason, where=str(source.path / "config.json"))


def placed(shapes: Mapping[str, tuple[int, ...]], model_type: str) -> list[HfTensor]:
    """The checkpoint's tensors for mlx-lm's parameters, of which `shapes` has the float shapes. In
    the order of mlx-lm's names, so that what is cut from one tensor stands together."""
    found = []
    for source in sorted(shapes):
        shape = shapes[source]
        modules = expert_modules(source.removesuffix(".weight"), shape[0], model_type)
        found += [
            HfTensor(f"{module}.weight", shape[1:], source, e) for e, module in enumerate(modules)
        ] or [HfTensor(source, shape, source)]
    return found


def cleaned_config(source: FloatSource, dtype: str) -> dict[str, Any]:
    """config.json for transformers: no quantization, its class, and no number left to a default.
    Rotary positions and windows are as mlx-lm computes them. mlx-lm's defaults are not always those
    of transformers. Lists stay out: by `layer_types` transformers tells Ministral from Mistral."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    config, model_type = source.config, str(source.config["model_type"])
    left_out = {"quantization", "quantization_config", "auto_map", "_name_or_path"}
    cleaned = {key: value for key, value in config.items() if key not in left_out}
    for key, value in source.settings.items():
        plain = isinstance(value, (bool, int, float, str)) and key not in _OURS_ALONE
        if plain and cleaned.get(key) is None:
            cleaned[key] = value
    if "rope_parameters" not in source.settings:
        cleaned.pop("rope_parameters", None)
    scaling = cleaned.get("rope_scaling")
    if not source.scaled:
        for key in ("rope_scaling", "rope_parameters"):
            cleaned.pop(key, None)
    elif isinstance(scaling, dict) and "long_factor" in scaling:
        # transformers takes the short factors in short texts; mlx-lm takes the long ones always.
        cleaned["rope_scaling"] = {**scaling, "short_factor": scaling["long_factor"]}
    _drop_window(cleaned, model_type)
    if model_type == "qwen2_moe":
        # mlx-lm's module has no such step.
        cleaned["norm_topk_prob"] = False
    cleaned["architectures"] = [CLASSES[model_type]]
    cleaned["tie_word_embeddings"] = "lm_head.weight" not in source.shapes
    cleaned["vocab_size"] = source.shapes["model.embed_tokens.weight"][0]
    # The older key and, since transformers 4.56, the newer one.
    cleaned["torch_dtype"] = cleaned["dtype"] = dtype
    return cleaned


def _drop_window(config: dict[str, Any], model_type: str) -> None:
    """No sliding window where mlx-lm computes none; Gemma 2's, which must be, hides nothing."""
    if model_type in _WINDOW:
        config["sliding_window"] = None
    elif model_type in _SWITCHED_WINDOW:
        config["use_sliding_window"] = False
    elif model_type == "gemma2":
        context = config.get("max_position_embeddings") or 8192
        config["sliding_window"] = max(context, config.get("sliding_window") or 4096)
    if model_type in _WINDOW | _SWITCHED_WINDOW and "layer_types" in config:
        config["layer_types"] = ["full_attention"] * len(config["layer_types"])


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
        what = f"{name} has numbers beyond what {kind} can hold"
        raise ModelError(what, hint="use bfloat16 or float32")
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
