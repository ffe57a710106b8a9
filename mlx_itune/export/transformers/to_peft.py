"""Export to PEFT: adapter_config.json and adapter_model.safetensors for transformers; read back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.nn as nn
import numpy as np

from mlx_itune.export.artifact import Exported, carry_tokenizer, describe, sealed
from mlx_itune.export.cards import card
from mlx_itune.export.request import Observe, Request
from mlx_itune.export.transformers.to_hf import COMPARED
from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.json_files import read_object, write_object
from mlx_itune.kit.tensorfile import write_tensors
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.adapters import lora, peft_format
from mlx_itune.model.adapters.lowrank import EMBEDDING, AdapterLayer, LowRank
from mlx_itune.model.engine.compute import dequantized_weight
from mlx_itune.model.loading import base

_ELSEWAY = "export base + adapter as one model instead: --to hf"
# float32 products in another order; relative to the update's largest entry.
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class PeftVerification:
    """Updates recomputed from the files against the adapter's, entry by entry."""

    layers: int
    tensors: int
    numbers: int
    largest_difference: float


def export_peft(request: Request, source: Path, observe: Observe) -> Exported:
    """Write an adapter as PEFT reads it, and compare each update with its own. Raises ModelError
    for what PEFT has no form of (grid; DoRA of a token table, whose lengths PEFT takes by column)
    and another base's adapter."""
    observe("writing PEFT's layout, and reading it back")
    adapter = request.trained()
    if adapter.config.kind == "grid":
        what = "PEFT has no adapter that moves scales and biases"
        raise ModelError(what, where=str(request.adapter), hint=_ELSEWAY)
    loaded = base.load(request.model, compute="dequantized")
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
    notes = _notes(loaded, layers, tied)
    config = _config(adapter, loaded) | _targets(loaded.model, layers, model_type, tied)
    with sealed(request.out, sum(t.nbytes for t in tensors.values()), "the adapter") as stage:
        write_tensors(
            stage / peft_format.TENSORS,
            {n: ("F32", tuple(t.shape), np.array(t).tobytes()) for n, t in tensors.items()},
            {"format": "pt"},
        )
        write_object(stage / peft_format.CONFIG, config)
        carry_tokenizer(stage, source, dict(loaded.config), request.tokenizer)
        checked = verify_peft(stage, layers, model_type)
        own = adapter.config
        measured = (
            f"{own.kind}, rank {own.rank}, scale {own.scale:g}, on {checked.layers} layers; "
            "exported by mlx-itune and read back:",
            f"each update is within {checked.largest_difference:.3g} of the MLX adapter's.",
        )
        title = f"LoRA for {loaded.id}"
        told = card("peft", loaded.id, title, measured=measured, notes=notes)
        (stage / "README.md").write_text(told, encoding="utf-8")
        if adapter.provenance:
            write_object(stage / adapters.PROVENANCE, adapter.provenance)
    return Exported((describe(request.out, "peft"),), checked, notes=notes)


def _modules(path: str, layer: LowRank, model_type: str, tied: bool) -> dict[str, dict[str, Any]]:
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


def _config(adapter: adapters.Adapter, loaded: base.LoadedModel) -> dict[str, Any]:
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
    }


def _notes(loaded: base.LoadedModel, layers: Mapping[str, Any], tied: bool) -> tuple[str, ...]:
    model_type = loaded.config.get("model_type")
    told = {
        f"model_type {model_type!r} was never compared with transformers: see that PEFT finds "
        "every key when it loads the adapter": model_type not in COMPARED,
        "the base is quantized by MLX: put the adapter on what --to hf makes of that base": (
            loaded.config.get("quantization") is not None
        ),
        "the token table is tied to the head: do not merge it with merge_and_unload": (
            tied and any("embedding" in layer for layer in layers.values())
        ),
        "experts were checked with PEFT 0.21 under transformers 5; older ones may not know them": (
            any("switch_mlp" in path for path in layers)
        ),
    }
    return tuple(note for note, applies in told.items() if applies)


def _targets(model: nn.Module, paths: Iterable[str], model_type: str, tied: bool) -> dict[str, Any]:
    """target_modules, and layers_to_transform where only some blocks carry the adapter. PEFT takes
    every module whose path is a target or ends with "." and a target. Names are used where they
    match the adapted layers and nothing else, full paths otherwise. Raises ModelError."""
    experts = {
        path: module.num_experts
        for path, module in model.named_modules()
        if ".switch_mlp." in path and hasattr(module, "num_experts")
    }

    def as_modules(path: str) -> list[str]:
        count = experts.get(path, 0)
        return peft_format.expert_modules(path, count, model_type) if count else [path]

    adapted = list(paths)
    _require_expressible(adapted, experts)
    modules = [module for path, _ in model.named_modules() if path for module in as_modules(path)]
    names, layers = _names({m for path in adapted for m in as_modules(path)}, modules)
    if tied and any(path.endswith("embed_tokens") for path in adapted):
        names.add("lm_head")
    found: dict[str, Any] = {"target_modules": sorted(names)}
    if layers is not None:
        found |= {"layers_to_transform": layers, "layers_pattern": "layers"}
    return found


def _names(paths: set[str], modules: list[str]) -> tuple[set[str], list[int] | None]:
    """Names for some modules, and the blocks they are meant in, None for all."""
    inside = {path for path in paths if _block(path) is not None}
    layers = {block for path in inside if (block := _block(path)) is not None}
    for parts in (1, 2):
        names = {_end(path, parts) for path in inside}
        within = [m for m in modules if _block(m) in (None, *layers)]
        if inside and {m for m in within if _end(m, parts) in names} == inside:
            every = {_block(module) for module in modules} - {None}
            return names | (paths - inside), None if layers == every else sorted(layers)
    return paths, None


def _end(module: str, parts: int) -> str:
    return ".".join(module.split(".")[-parts:])


def _block(module: str) -> int | None:
    parts = module.split(".")
    return int(parts[2]) if parts[:2] == ["model", "layers"] and len(parts) > 3 else None


def _require_expressible(adapted: list[str], experts: Iterable[str]) -> None:
    """What PEFT does to experts under transformers 5, where gate and up of all are one tensor. It
    takes every target that is called as they are for theirs. Raises ModelError."""
    names = {path.rpartition(".")[2] for path in experts}
    for path in adapted:
        block, _, name = path.rpartition(".")
        if path not in experts and name in names:
            raise ModelError(f"PEFT cannot tell {path} from the experts", hint=_ELSEWAY)
        twin = {"gate_proj": "up_proj", "up_proj": "gate_proj"}.get(name)
        if path in experts and twin and f"{block}.{twin}" not in adapted:
            raise ModelError("PEFT adapts gate_proj and up_proj of experts together", hint=_ELSEWAY)


def verify_peft(out: Path, layers: Mapping[str, AdapterLayer], model_type: str) -> PeftVerification:
    """Compare B A alpha / r, or what DoRA makes of it, with each layer's own update. Read by the
    safetensors package, computed by NumPy. Raises ModelError where they differ by more than
    rounding, or a tensor is not accounted for."""
    from safetensors.numpy import load_file

    config = read_object(out / peft_format.CONFIG, error=ModelError)
    scale = config["lora_alpha"] / config["r"]
    left = {
        name.removeprefix(peft_format.PREFIX): array
        for name, array in load_file(out / peft_format.TENSORS).items()
    }
    tensors, numbers, largest = len(left), 0, 0.0
    if "lm_head" not in layers and "lm_head.lora_A.weight" in left:
        # Of a tied head, which is no layer: the token table's very numbers.
        for head, own in (("lora_A.weight", "B"), ("lora_B.weight", "A")):
            table = left.get(f"model.embed_tokens.lora_embedding_{own}", np.zeros(0))
            if not np.array_equal(left.pop(f"lm_head.{head}"), table.T):
                raise ModelError("the tied head's update is not the token table's")
    for path, layer in layers.items():
        wanted = np.array(layer.delta())
        modules = peft_format.expert_modules(path, wanted.shape[0], model_type)
        if modules:
            got = np.stack([_product(left, module) for module in modules]) * scale
        else:
            got = _update(left, path, layer, scale)
        gap = float(np.abs(got - wanted).max())
        if not gap <= _TOLERANCE * max(float(np.abs(wanted).max()), 1e-6):
            raise ModelError(f"the update of {path} reads back as another, by {gap:.3g}")
        largest, numbers = max(largest, gap), numbers + wanted.size
    if left:
        raise ModelError(f"tensor {min(left)} belongs to no layer", where=str(out))
    return PeftVerification(len(layers), tensors, numbers, largest)


def _product(left: dict[str, Any], module: str) -> Any:
    """B A of a module's tensors, which are taken out of `left`."""
    a, b = left.pop(f"{module}.lora_A.weight"), left.pop(f"{module}.lora_B.weight")
    return b @ a


def _update(left: dict[str, Any], path: str, layer: AdapterLayer, scale: float) -> Any:
    """One layer's update from PEFT's tensors, which are taken out of `left`."""
    if f"{path}.lora_embedding_A" in left:
        a, b = left.pop(f"{path}.lora_embedding_A"), left.pop(f"{path}.lora_embedding_B")
        return (b @ a).T * scale
    update = _product(left, path) * scale
    magnitude = left.pop(f"{path}.lora_magnitude_vector", None)
    if magnitude is None:
        return update
    held = layer["linear"]
    weight = np.array(dequantized_weight(held) if hasattr(held, "bits") else held["weight"])
    tuned = weight.astype(np.float64) + update
    return magnitude[:, None] / np.linalg.norm(tuned, axis=1, keepdims=True) * tuned - weight
