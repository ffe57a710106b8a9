"""How PEFT stores a LoRA: configuration, names, layouts and scale.

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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import mlx.core as mx
import numpy as np
from annotated_types import Ge, Le, Lt

from mlx_itune.kit import json_files
from mlx_itune.kit.errors import ModelError
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.adapters.targets import matched

PREFIX = "base_model.model."
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"

_STACK = re.compile(r"(.+)\.switch_mlp\.(gate_proj|up_proj|down_proj)")
_MIXTRAL = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
_NAME = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)\."
    r"(?P<part>lora_embedding_[AB]|lora_[AB]|lora_magnitude_vector)(?:\.default)?(?:\.weight)?"
)
# PEFT saves the tables themselves along with adapters on them, unchanged.
_COPY = re.compile(r".*\.base_layer\.weight")
# Each changes the function, and mlx-lm's adapters have no place for it.
_UNSUPPORTED = (
    "modules_to_save fan_in_fan_out trainable_token_indices lora_bias layer_replication "
    "target_parameters use_qalora use_bdlora alora_invocation_tokens velora_config kasa_config "
    "monteclora_config arrow_config megatron_config"
).split()
# Starts that change the base's weights too, which an adapter does not hold.
_CHANGED_BASES = ("pissa", "olora", "loftq", "corda", "lora_ga")
_Rank = Annotated[int, Ge(1)]
# Large enough for every alpha, and no infinity, which a number of 400 digits would become.
_Number = Annotated[float, Ge(-1e30), Le(1e30)]
_Names = str | tuple[str, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class PeftConfig:
    """What rebuilds the update, under the names of PEFT's LoraConfig."""

    r: _Rank
    lora_alpha: _Number
    target_modules: _Names
    use_rslora: bool = False
    use_dora: bool = False
    lora_dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    base_model_name_or_path: str = ""
    exclude_modules: _Names = ()
    layers_to_transform: int | tuple[int, ...] = ()
    layers_pattern: _Names = ()
    rank_pattern: dict[str, _Rank] = field(default_factory=dict)
    alpha_pattern: dict[str, _Number] = field(default_factory=dict)

    @property
    def all_linear(self) -> bool:
        """Whether it aims at every linear layer but the head."""
        return self.target_modules == "all-linear"

    @property
    def base_model(self) -> str | None:
        """The base's name where it may travel: no path of a machine."""
        name = self.base_model_name_or_path
        is_path = name.startswith(("/", ".", "~")) or "\\" in name
        return (Path(name).name if is_path else name) or None

    def rank_of(self, module: str) -> int:
        """The inner width at a module."""
        return _by_pattern(self.rank_pattern, module, self.r)

    def scale_of(self, module: str) -> float:
        """The factor of the product at a module."""
        alpha, rank = _by_pattern(self.alpha_pattern, module, self.lora_alpha), self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def aims_at(self, module: str) -> bool:
        """Whether PEFT puts an adapter on a module. Raises ModelError for a broken pattern."""
        if _names(self.exclude_modules, module):
            return False
        if self.all_linear:
            return True
        if isinstance(self.target_modules, str) or module in self.target_modules:
            return _names(self.target_modules, module)
        return _names(self.target_modules, module) and self._in_layers(module)

    def _in_layers(self, module: str) -> bool:
        if self.layers_to_transform == ():
            return True
        # PEFT goes by the last pattern where none matches; the first that matches counts.
        patterns = [rf"(?:^|.*?\.){p}\.(?P<idx>\d+)\." for p in _listed(self.layers_pattern)]
        tried = (
            matched(p, module, whole=False) for p in patterns or [r".*?\.[^.]*\.(?P<idx>\d+)\."]
        )
        found = next((match for match in tried if match), None)
        return found is not None and int(found["idx"]) in _listed(self.layers_to_transform)


@dataclass(frozen=True)
class PeftLayer:
    """W + scale * b a: a (rank, in), b (out, rank) float32; of a table a (rank, V), b (dims, rank).

    magnitude: DoRA's lengths (out,).
    """

    a: Any
    b: Any
    scale: float
    magnitude: Any | None
    is_table: bool

    @property
    def rank(self) -> int:
        """The inner width."""
        return int(self.a.shape[0])


def read_config(peft_dir: Path) -> PeftConfig:
    """The configuration of a PEFT adapter directory that can be imported. Raises ModelError."""
    file = peft_dir / CONFIG
    where = str(file)
    if not file.is_file():
        raise ModelError(f"is no PEFT adapter (no {CONFIG})", where=str(peft_dir))
    if not (peft_dir / TENSORS).is_file():
        pickled = (peft_dir / "adapter_model.bin").exists()
        raise ModelError(
            "adapter_model.bin is a pickle, which may run code when read"
            if pickled
            else f"has no {TENSORS}",
            where=str(peft_dir),
            hint="save it with PEFT's save_pretrained(safe_serialization=True)",
        )
    raw = json_files.read_object(file, error=ModelError)
    if raw.get("peft_type") != "LORA":
        raise ModelError(
            f"peft_type {raw.get('peft_type')!r} cannot be imported, only LORA", where=where
        )
    _refuse_unsupported(raw, where)
    given = {name: value for name, value in raw.items() if value is not None}
    config = json_files.to_record(given, PeftConfig, where=where, error=ModelError)
    if not config.target_modules:
        raise ModelError("target_modules: is empty", where=where)
    return config


def read_layers(file: Path, config: PeftConfig) -> dict[str, PeftLayer]:
    """The layers of a PEFT adapter, by module path. Raises ModelError."""
    found: dict[str, dict[str, Any]] = {}
    for name, tensor in adapters.read_arrays(file).items():
        match = _NAME.fullmatch(name)
        if match is None:
            if _COPY.fullmatch(name):
                continue
            raise ModelError(f"tensor {name} is none of a LoRA", where=str(file))
        parts = found.setdefault(match["module"], {})
        part = {"A": "a", "B": "b"}.get(match["part"][-1], "magnitude")
        if part in parts:
            raise ModelError(f"{match['module']} has two of {match['part']}", where=str(file))
        parts[part] = np.array(tensor.astype(mx.float32))
        parts["is_table"] = parts.get("is_table", False) or "embedding" in match["part"]
    if not found:
        raise ModelError("holds no LoRA", where=str(file))
    return {module: _layer(module, parts, config, str(file)) for module, parts in found.items()}


def expert_modules(path: str, count: int, model_type: str) -> list[str]:
    """The modules that mlx-lm's stacked experts at `path` are to PEFT; empty for another layer."""
    stack = _STACK.fullmatch(path)
    if stack is None:
        return []
    block, name = stack.groups()
    name = _MIXTRAL[name] if model_type == "mixtral" else name
    return [f"{block}.experts.{e}.{name}" for e in range(count)]


def alpha_of(config: adapters.AdapterConfig) -> float | int:
    """The lora_alpha that PEFT, dividing it by the rank, reads as the scale of this adapter:
    exactly so for every scale that once was some alpha / rank, else to the last bit of a double."""
    alpha = config.alpha
    for candidate in (alpha, math.nextafter(alpha, 0), math.nextafter(alpha, 2 * alpha)):
        if candidate / config.rank == config.scale:
            alpha = candidate
            break
    return int(alpha) if alpha == int(alpha) else alpha


def _refuse_unsupported(raw: Mapping[str, Any], where: str) -> None:
    hint = "merge it into the model with PEFT's merge_and_unload instead"
    start, bias = str(raw.get("init_lora_weights", True)), raw.get("bias") or "none"
    faults = [f"{name} has no form in an MLX adapter" for name in _UNSUPPORTED if raw.get(name)]
    if bias != "none":
        faults.append(f"bias {bias!r}: an MLX adapter holds no biases")
    if start.startswith(_CHANGED_BASES):
        faults.append(f"init_lora_weights {start!r} changed the base's weights too")
    if faults:
        raise ModelError(faults[0], where=where, hint=hint)


def _layer(module: str, parts: Mapping[str, Any], config: PeftConfig, where: str) -> PeftLayer:
    for part in ("a", "b"):
        if part not in parts:
            raise ModelError(f"{module} has no lora_{part.upper()}", where=where)
    a, b, rank = parts["a"], parts["b"], config.rank_of(module)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise ModelError(
            f"{module} has factors {list(a.shape)} and {list(b.shape)}, the rank is {rank}",
            where=where,
        )
    magnitude = parts.get("magnitude")
    if (magnitude is not None) is not config.use_dora:
        stated = "use_dora is set" if config.use_dora else "use_dora is not set"
        raise ModelError(f"{stated}, but {module} says otherwise", where=where)
    if config.use_dora and parts["is_table"]:
        raise ModelError(f"PEFT's DoRA of a token table ({module}) is another one", where=where)
    if magnitude is not None:
        magnitude = magnitude.reshape(-1)
    return PeftLayer(a, b, config.scale_of(module), magnitude, parts["is_table"])


def _by_pattern(patterns: Mapping[str, T], module: str, default: T) -> T:
    """What rank_pattern or alpha_pattern says of a module: the first key that matches its end."""
    found = (v for key, v in patterns.items() if matched(rf"(.*\.)?({key})", module))
    return next(found, default)


def _names(targets: _Names, module: str) -> bool:
    if isinstance(targets, str):
        return matched(targets, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets)


def _listed(value: T | tuple[T, ...]) -> tuple[T, ...]:
    return value if isinstance(value, tuple) else (value,)
