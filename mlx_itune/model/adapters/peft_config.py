"""PEFT's adapter_config.json, as far as a LoRA on a language model goes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_itune.kit.errors import ModelError
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.adapters import peft_format

# Each changes the function, and mlx-lm's adapters have no place for it.
_UNSUPPORTED = (
    "modules_to_save",
    "fan_in_fan_out",
    "trainable_token_indices",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "velora_config",
    "kasa_config",
    "monteclora_config",
    "arrow_config",
    "megatron_config",
)
# Starts that change the base's weights too, which an adapter does not hold.
_CHANGED_BASES = ("pissa", "olora", "loftq", "corda", "lora_ga")


@dataclass(frozen=True)
class PeftConfig:
    """What rebuilds the update: see PEFT's LoraConfig for the names."""

    r: int
    alpha: float
    rslora: bool
    dora: bool
    dropout: float
    base_model: str | None
    target_modules: str | tuple[str, ...]
    exclude_modules: str | tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()
    rank_pattern: dict[str, Any] = field(default_factory=dict)
    alpha_pattern: dict[str, Any] = field(default_factory=dict)

    @property
    def all_linear(self) -> bool:
        """Whether it aims at every linear layer but the head."""
        return self.target_modules == "all-linear"

    def rank_of(self, module: str) -> int:
        """The inner width at a module."""
        return int(peft_format.pattern_value(self.rank_pattern, module, self.r))

    def scale_of(self, module: str) -> float:
        """The factor of the product at a module."""
        alpha = float(peft_format.pattern_value(self.alpha_pattern, module, self.alpha))
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def aims_at(self, module: str) -> bool:
        """Whether PEFT puts an adapter on a module."""
        if _names(self.exclude_modules, module):
            return False
        if self.all_linear:
            return True
        if isinstance(self.target_modules, str) or module in self.target_modules:
            return _names(self.target_modules, module)
        return _names(self.target_modules, module) and self._in_layers(module)

    def _in_layers(self, module: str) -> bool:
        if self.layers is None:
            return True
        if not self.layers_pattern:
            found = re.match(r".*?\.[^.]*\.(?P<idx>\d+)\.", module)
        else:
            # PEFT goes by the last pattern where none matches; the first that matches counts.
            tried = (
                re.match(rf"(?:^|.*?\.){p}\.(?P<idx>\d+)\.", module) for p in self.layers_pattern
            )
            found = next((match for match in tried if match), None)
        return found is not None and int(found["idx"]) in self.layers


def read_config(peft_dir: Path) -> PeftConfig:
    """The configuration of a PEFT adapter directory that can be imported. Raises ModelError."""
    file = peft_dir / peft_format.CONFIG
    where = str(file)
    if not file.is_file():
        raise ModelError(f"is no PEFT adapter (no {peft_format.CONFIG})", where=str(peft_dir))
    if not (peft_dir / peft_format.TENSORS).is_file():
        pickled = (peft_dir / "adapter_model.bin").exists()
        raise ModelError(
            "adapter_model.bin is a pickle, which may run code when read"
            if pickled
            else f"has no {peft_format.TENSORS}",
            where=str(peft_dir),
            hint="save it with PEFT's save_pretrained(safe_serialization=True)",
        )
    raw = adapters.read_json(file)
    if raw.get("peft_type") != "LORA":
        raise ModelError(
            f"peft_type {raw.get('peft_type')!r} cannot be imported, only LORA", where=where
        )
    _refuse_unsupported(raw, where)
    try:
        return _config(raw)
    except (TypeError, ValueError, KeyError, re.error) as error:
        raise ModelError(
            f"r, lora_alpha, targets or patterns make no sense ({error})", where=where
        ) from error


def _refuse_unsupported(raw: dict[str, Any], where: str) -> None:
    hint = "merge it into the model with PEFT's merge_and_unload instead"
    for name in _UNSUPPORTED:
        if raw.get(name):
            raise ModelError(f"{name} has no form in an MLX adapter", where=where, hint=hint)
    if raw.get("bias", "none") != "none":
        raise ModelError(
            f"bias {raw['bias']!r}: an MLX adapter holds no biases", where=where, hint=hint
        )
    start = str(raw.get("init_lora_weights", True))
    if start.startswith(_CHANGED_BASES):
        raise ModelError(
            f"init_lora_weights {start!r} changed the base's weights too", where=where, hint=hint
        )


def _config(raw: dict[str, Any]) -> PeftConfig:
    layers = raw.get("layers_to_transform")
    patterns = [raw.get("rank_pattern") or {}, raw.get("alpha_pattern") or {}]
    numbers = [raw["r"], raw["lora_alpha"], *patterns[0].values(), *patterns[1].values()]
    if not all(_is_number(value) for value in numbers):
        raise ValueError("a number is not one")
    for rank in (raw["r"], *patterns[0].values()):
        if not isinstance(rank, int) or rank < 1:
            raise ValueError(f"rank {rank}")
    for pattern in (*patterns[0], *patterns[1]):
        re.compile(pattern)
    dropout = float(raw.get("lora_dropout") or 0)
    if not 0 <= dropout < 1:
        raise ValueError(f"lora_dropout {dropout}")
    aims = raw["target_modules"]
    if isinstance(aims, str) and aims != "all-linear":
        re.compile(aims)
    if not aims:
        raise ValueError("no target_modules")
    return PeftConfig(
        r=raw["r"],
        alpha=float(raw["lora_alpha"]),
        rslora=bool(raw.get("use_rslora")),
        dora=bool(raw.get("use_dora")),
        dropout=dropout,
        base_model=_public(raw.get("base_model_name_or_path")),
        target_modules=_listed(aims),
        exclude_modules=_listed(raw.get("exclude_modules") or ()),
        layers=None if layers in (None, []) else _integers(layers),
        layers_pattern=_as_tuple(raw.get("layers_pattern") or ()),
        rank_pattern=dict(patterns[0]),
        alpha_pattern=dict(patterns[1]),
    )


def _names(targets: str | tuple[str, ...], module: str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets)


def _listed(value: Any) -> str | tuple[str, ...]:
    return value if isinstance(value, str) else _as_tuple(value)


def _as_tuple(value: Any) -> tuple[str, ...]:
    values = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(item, str) for item in values):
        raise ValueError("a name is no text")
    return values


def _integers(value: Any) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(int(item) for item in value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _public(name: Any) -> str | None:
    """A base's name that may travel: no path of a machine."""
    if not isinstance(name, str) or not name:
        return None
    return Path(name).name if name.startswith(("/", ".", "~")) or "\\" in name else name
