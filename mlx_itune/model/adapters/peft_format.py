"""How PEFT stores a LoRA: names, layouts and scale.

https://huggingface.co/docs/peft/developer_guides/checkpoint. A tensor is called after the module it
adapts: `base_model.model.<path>.lora_A.weight`. PEFT's factors are the transposes of mlx-lm's:

ours                       PEFT's
lora_a (in, r)             lora_A.weight (r, in)
lora_b (r, out)            lora_B.weight (out, r)
m (out,)                   lora_magnitude_vector (out,), older versions with .weight
table: lora_a (V, r)       lora_embedding_A (r, V)
table: lora_b (r, dims)    lora_embedding_B (dims, r)
experts, stacked           one pair for each: <block>.experts.<e>.gate_proj
"""

from __future__ import annotations

import math
import re
from typing import Any

PREFIX = "base_model.model."
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"

_STACK = re.compile(r"(.+)\.switch_mlp\.(gate_proj|up_proj|down_proj)")
_EXPERT = re.compile(r"(.+)\.experts\.(\d+)\.(\w+)")
_MIXTRAL = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def expert_modules(path: str, count: int, model_type: str) -> list[str]:
    """The modules that mlx-lm's stacked experts at `path` are to PEFT; empty for another layer."""
    stack = _STACK.fullmatch(path)
    if stack is None:
        return []
    block, name = stack.groups()
    name = _MIXTRAL[name] if model_type == "mixtral" else name
    return [f"{block}.experts.{e}.{name}" for e in range(count)]


def stacked_path(module: str) -> tuple[str, int] | None:
    """mlx-lm's path of the stack that one expert's module is in, and its place there."""
    found = _EXPERT.fullmatch(module)
    if found is None:
        return None
    block, place, name = found.groups()
    ours = {theirs: name for name, theirs in _MIXTRAL.items()}.get(name, name)
    return f"{block}.switch_mlp.{ours}", int(place)


def alpha_for(scale: float, rank: int) -> float | int:
    """The lora_alpha that PEFT, dividing it by the rank, reads as this scale.

    Exactly so wherever a float is: for every scale that once was some alpha / rank, and for ranks
    that are powers of two; otherwise to the last bit of a double.
    """
    alpha = scale * rank
    for candidate in (alpha, math.nextafter(alpha, 0), math.nextafter(alpha, 2 * alpha)):
        if candidate / rank == scale:
            alpha = candidate
            break
    return int(alpha) if alpha == int(alpha) else alpha


def pattern_value(patterns: dict[str, Any], module: str, default: Any) -> Any:
    """What rank_pattern or alpha_pattern says of a module: the first key that matches its end."""
    for key, value in patterns.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default
