"""Export to PEFT: adapter_config.json and adapter_model.safetensors for transformers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import mlx.nn as nn
import numpy as np

from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.export.artifact import (
    Exported,
    carry_tokenizer,
    describe,
    refuse_same,
    sealed,
)
from mlx_itune.export.cards import peft_card
from mlx_itune.export.transformers.hf_layout import compared
from mlx_itune.export.transformers.peft_verify import verify_peft
from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.json_files import write_object
from mlx_itune.kit.tensorfile import write_tensors
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.adapters import lora, peft_format
from mlx_itune.model.adapters.lowrank import EMBEDDING, LowRank
from mlx_itune.model.loading import base

_ELSEWAY = "export base + adapter as one model instead: --to hf"


def export_peft(
    adapter_dir: Path,
    model: str,
    out: Path,
    *,
    tokenizer: ChatTokenizer | None = None,
    any_base: bool = False,
) -> Exported:
    """Write an adapter as PEFT reads it, and compare each update with the adapter's own.

    ``model`` is the base it was trained on; ``tokenizer`` travels with the adapter where given.
    A qalora adapter is written as the LoRA that it is. Raises ModelError for what PEFT has no form
    of (grid; DoRA of a token table, whose lengths PEFT takes by column) and another base's adapter.
    """
    source = base.resolve(model)
    refuse_same(source, out)
    refuse_same(adapter_dir, out)
    adapter = adapters.load(adapter_dir, any_base=any_base)
    if tokenizer is not None:
        adapter.require_template(tokenizer.name, tokenizer.template_sha256)
    if adapter.config.kind == "grid":
        raise ModelError(
            "PEFT has no adapter that moves scales and biases",
            where=str(adapter_dir),
            hint=_ELSEWAY,
        )
    loaded = base.load(model, compute="dequantized")
    adapters.apply(loaded, adapter)
    loaded.model.eval()
    tied = not any(path == "lm_head" for path, _ in loaded.model.named_modules())
    model_type = str(loaded.config.get("model_type"))
    layers = {p: layer for p, layer in lora.adapted(loaded.model) if isinstance(layer, LowRank)}
    if any(path.startswith("language_model.") for path in layers):
        # transformers has such models' layers elsewhere, and PEFT passes over what it cannot find.
        raise ModelError(
            f"model_type {model_type!r} wraps its language model, and transformers' names for its "
            "layers are not known",
            where=str(source / "config.json"),
        )
    tensors: dict[str, Any] = {}
    for path, layer in layers.items():
        for module, factors in _modules(path, layer, model_type, tied).items():
            tensors |= {f"{peft_format.PREFIX}{module}.{n}": t for n, t in factors.items()}
    quantized = loaded.config.get("quantization") is not None
    notes = _notes(layers, tied, model_type, quantized=quantized)
    config = _config(adapter, loaded, targets(loaded.model, layers, model_type, tied))
    with sealed(out, sum(t.nbytes for t in tensors.values()), "the adapter") as stage:
        write_tensors(
            stage / peft_format.TENSORS,
            {n: ("F32", tuple(t.shape), np.array(t).tobytes()) for n, t in tensors.items()},
            {"format": "pt"},
        )
        write_object(stage / peft_format.CONFIG, config)
        if tokenizer is not None:
            carry_tokenizer(stage, source, dict(loaded.config), tokenizer)
        checked = verify_peft(stage, loaded.model, layers, model_type)
        own = adapter.config
        measured = (
            f"{own.kind}, rank {own.rank}, scale {own.scale:g}, on {checked.layers} layers; "
            "exported by mlx-itune and read back:",
            f"each update is within {checked.largest_difference:.3g} of the MLX adapter's.",
        )
        card = peft_card(loaded.id, measured, notes)
        (stage / "README.md").write_text(card, encoding="utf-8")
        if adapter.provenance:
            write_object(stage / adapters.PROVENANCE, adapter.provenance)
    return Exported((describe(out, "peft"),), checked, notes=notes)


def _modules(path: str, layer: LowRank, model_type: str, tied: bool) -> dict[str, dict[str, Any]]:
    """PEFT's tensors of one adapted layer, by the module they belong to."""
    a, b = layer.pair()
    if isinstance(layer[layer.held], EMBEDDING):
        if "m" in layer:
            raise ModelError(f"PEFT's DoRA of a token table ({path}) is another one", hint=_ELSEWAY)
        found = {path: {"lora_embedding_A": a.T, "lora_embedding_B": b.T}}
        if tied:
            # The table is the output head too, which transformers has as a module of its own.
            found["lm_head"] = {"lora_A.weight": b, "lora_B.weight": a}
        return found
    if a.ndim == 3:
        modules = peft_format.expert_modules(path, a.shape[0], model_type)
        if not modules:
            raise ModelError(f"PEFT has no name for the experts at {path}", hint=_ELSEWAY)
        return {
            module: {"lora_A.weight": a[e], "lora_B.weight": b[e]}
            for e, module in enumerate(modules)
        }
    factors = {"lora_A.weight": a.T, "lora_B.weight": b.T}
    if "m" in layer:
        factors["lora_magnitude_vector"] = layer.m
    return {path: factors}


def _config(
    adapter: adapters.Adapter, loaded: base.LoadedModel, where: Mapping[str, Any]
) -> dict[str, Any]:
    own = adapter.config
    experts = any(".switch_mlp." in name for name in adapter.tensors)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": loaded.id,
        "r": own.rank,
        "lora_alpha": peft_format.alpha_of(own),
        # The scale is written as it is; PEFT's rsLoRA would derive another one from alpha.
        "use_rslora": False,
        "use_dora": own.kind == "dora",
        # PEFT has no dropout on experts.
        "lora_dropout": 0.0 if experts else own.dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        **where,
    }


def _notes(
    layers: Mapping[str, Any], tied: bool, model_type: str, *, quantized: bool
) -> tuple[str, ...]:
    notes = []
    if not compared(model_type):
        notes.append(
            f"model_type {model_type!r} was never compared with transformers: see that PEFT finds "
            "every key when it loads the adapter"
        )
    if quantized:
        notes.append(
            "the base is quantized by MLX: put the adapter on what --to hf makes of that base"
        )
    if tied and any("embedding" in layer for layer in layers.values()):
        notes.append("the token table is tied to the head: do not merge it with merge_and_unload")
    if any("switch_mlp" in path for path in layers):
        notes.append(
            "experts were checked with PEFT 0.21 under transformers 5; older ones may not know them"
        )
    return tuple(notes)


def targets(model: nn.Module, paths: Iterable[str], model_type: str, tied: bool) -> dict[str, Any]:
    """target_modules, and layers_to_transform where only some blocks carry the adapter.

    PEFT takes every module whose path is a target or ends with "." and a target. Names are used
    where they match the adapted layers and nothing else, full paths otherwise. Raises ModelError.
    """
    experts = {p: m.num_experts for p, m in model.named_modules() if hasattr(m, "num_experts")}
    experts = {path: count for path, count in experts.items() if ".switch_mlp." in path}

    def as_modules(path: str) -> list[str]:
        count = experts.get(path, 0)
        return peft_format.expert_modules(path, count, model_type) if count else [path]

    adapted = list(paths)
    if experts:
        _require_expressible(adapted, experts)
    modules = [module for path, _ in model.named_modules() if path for module in as_modules(path)]
    names, layers = _names(sorted(m for path in adapted for m in as_modules(path)), modules)
    if tied and any(path.endswith("embed_tokens") for path in adapted):
        names = [*names, "lm_head"]
    found: dict[str, Any] = {"target_modules": sorted(set(names))}
    if layers is not None:
        found |= {"layers_to_transform": layers, "layers_pattern": "layers"}
    return found


def _names(paths: list[str], modules: list[str]) -> tuple[list[str], list[int] | None]:
    """Names for some modules, and the blocks they are meant in, None for all."""
    blocks = {path: _block(path) for path in paths}
    outside = [path for path in paths if blocks[path] is None]
    inside = {path for path in paths if blocks[path] is not None}
    layers = sorted({block for block in blocks.values() if block is not None})
    every = {_block(module) for module in modules} - {None}
    for parts in (1, 2):
        names = {".".join(path.split(".")[-parts:]) for path in inside}
        matched = {
            module
            for module in modules
            if ".".join(module.split(".")[-parts:]) in names
            and (_block(module) is None or _block(module) in layers)
        }
        if inside and matched == inside:
            return [*sorted(names), *outside], None if set(layers) == every else layers
    return paths, None


def _block(module: str) -> int | None:
    parts = module.split(".")
    return int(parts[2]) if parts[:2] == ["model", "layers"] and len(parts) > 3 else None


def _require_expressible(adapted: list[str], experts: dict[str, int]) -> None:
    """What PEFT does to experts under transformers 5, where gate and up of all are one tensor.

    It takes every target that is called as they are for theirs. Raises ModelError.
    """
    names = {path.rpartition(".")[2] for path in experts}
    for path in adapted:
        block, _, name = path.rpartition(".")
        if path not in experts and name in names:
            raise ModelError(f"PEFT cannot tell {path} from the experts", hint=_ELSEWAY)
        twin = {"gate_proj": "up_proj", "up_proj": "gate_proj"}.get(name)
        if path in experts and twin and f"{block}.{twin}" not in adapted:
            raise ModelError("PEFT adapts gate_proj and up_proj of experts together", hint=_ELSEWAY)
