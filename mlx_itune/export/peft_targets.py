"""Which modules PEFT shall adapt: names short enough to read that match no other module."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mlx.nn as nn

from mlx_itune.kit.errors import ModelError
from mlx_itune.model import peft_format


def targets(model: nn.Module, paths: Iterable[str], model_type: str, tied: bool) -> dict[str, Any]:
    """target_modules, and layers_to_transform where only some blocks carry the adapter.

    PEFT takes every module whose path is a target or ends with "." and a target. Names are used
    where they match the adapted layers and nothing else, full paths otherwise. "experts" is set
    where there are some: they go by name, and match those of every block. Raises ModelError.
    """
    adapted = set(paths)
    stacked = {path for path in adapted if ".switch_mlp." in path}
    plain = sorted(adapted - stacked)
    modules = [path for path, _ in model.named_modules() if path]
    found: dict[str, Any] = {}
    names, layers = _names(plain, modules)
    if tied and any(path.endswith("embed_tokens") for path in plain):
        names = [*names, "lm_head"]
    if stacked:
        names, layers = [*plain, *_experts(stacked, modules, model_type)], None
        found["experts"] = True
    found["target_modules"] = sorted(set(names))
    if layers is not None:
        found |= {"layers_to_transform": layers, "layers_pattern": "layers"}
    return found


def _names(paths: list[str], modules: list[str]) -> tuple[list[str], list[int] | None]:
    """Names for some layers, and the blocks they are meant in, None for all."""
    blocks = {path: int(path.split(".")[2]) for path in paths if path.startswith("model.layers.")}
    outside = [path for path in paths if path not in blocks]
    layers = sorted(set(blocks.values()))
    count = len({m for m in modules if m.startswith("model.layers.") and m.count(".") == 2})
    for parts in (1, 2):
        names = {".".join(path.split(".")[-parts:]) for path in blocks}
        matched = {
            m
            for m in modules
            if any(m == name or m.endswith(f".{name}") for name in names)
            and (not m.startswith("model.layers.") or int(m.split(".")[2]) in layers)
        }
        if blocks and matched == set(blocks):
            return [*sorted(names), *outside], None if len(layers) == count else layers
    return paths, None


def _experts(stacked: set[str], modules: list[str], model_type: str) -> list[str]:
    """The names that PEFT knows experts by; it joins gate and up, so that all three must be there.

    Raises ModelError where a name would match other layers too.
    """
    hint = "export base + adapter as one model instead: --to hf"
    blocks = {path.rpartition(".")[0] for path in stacked}
    kinds = {path.rpartition(".")[2] for path in stacked}
    whole = {f"{block}.{kind}" for block in blocks for kind in kinds}
    if whole != stacked or ("gate_proj" in kinds) != ("up_proj" in kinds):
        raise ModelError("PEFT adapts gate_proj and up_proj of experts together", hint=hint)
    clash = [m for m in modules if m.rpartition(".")[2] in kinds and ".switch_mlp." not in m]
    if clash:
        raise ModelError(f"PEFT cannot tell the experts from {clash[0]}", hint=hint)
    names = {
        peft_format.expert_modules(path, 1, model_type)[0].rpartition(".")[2] for path in stacked
    }
    return sorted(names)
