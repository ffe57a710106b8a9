"""Which modules PEFT shall adapt: names short enough to read that match no other module."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mlx.nn as nn

from mlx_itune.kit.errors import ModelError
from mlx_itune.model.adapters import peft_format


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
    hint = "export base + adapter as one model instead: --to hf"
    names = {path.rpartition(".")[2] for path in experts}
    for path in adapted:
        block, _, name = path.rpartition(".")
        if path not in experts and name in names:
            raise ModelError(f"PEFT cannot tell {path} from the experts", hint=hint)
        twin = {"gate_proj": "up_proj", "up_proj": "gate_proj"}.get(name)
        if path in experts and twin and f"{block}.{twin}" not in adapted:
            raise ModelError("PEFT adapts gate_proj and up_proj of experts together", hint=hint)
