"""Import a PEFT adapter: LoRA, rsLoRA and DoRA as mlx-lm's adapter directory.

mlx-lm has one rank and one scale for all layers. Factors of a lower rank get columns of zeros, and
where a layer's scale is another one, the ratio goes into its B: the product stays what it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_itune import __version__
from mlx_itune.kit.errors import ModelError, located
from mlx_itune.kit.files import sha256_file
from mlx_itune.kit.json_files import read_object
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.adapters import lora, peft_format
from mlx_itune.model.adapters.lowrank import EMBEDDING, SWITCH, adaptable
from mlx_itune.model.adapters.peft_format import PeftConfig, PeftLayer, read_config, read_layers
from mlx_itune.model.loading import base

# float32 products in another order; relative to the update's largest entry.
_TOLERANCE = 1e-5
# The path of a layer of ours, and which of its experts if it is a stack.
Place = tuple[str, int | None]


@dataclass(frozen=True)
class PeftImport:
    """The adapter written, and how far its updates are from PEFT's at most.

    padded: layers whose rank was below `rank`; folded: layers whose scale was another one.
    """

    out: str
    kind: str
    rank: int
    scale: float
    layers: int
    padded: int
    folded: int
    largest_difference: float


def import_peft(peft_dir: Path, model: str, out: Path) -> PeftImport:
    """Write a PEFT adapter directory as an adapter of ours on ``model``.

    Raises ModelError for what has no such form, does not fit or would not have been used;
    StorageError.
    """
    config = read_config(peft_dir)
    loaded = base.load(model, compute="dequantized")
    with located(peft_dir):
        layers = read_layers(peft_dir / peft_format.TENSORS, config)
        places = _places(loaded.model, str(loaded.config.get("model_type")))
        _require_targets(places, config, layers)
        if "lm_head" not in dict(loaded.model.named_modules()):
            layers = _one_table(layers)
        rank = max(layer.rank for layer in layers.values())
        # Only a scale of zero is passed over, which nothing could be divided by.
        counts = Counter(layer.scale for layer in layers.values() if layer.scale)
        scale = counts.most_common(1)[0][0] if counts else 1.0
        tensors = _tensors(loaded.model, places, layers, rank, scale)
        kind = "dora" if config.use_dora else "rslora" if config.use_rslora else "lora"
        paths = sorted({name.rpartition(".")[0] for name in tensors})
        own = adapters.AdapterConfig(rank, scale, config.lora_dropout, tuple(paths), -1, kind)
        adapters.apply(loaded, adapters.Adapter(own, tensors, _papers_of(peft_dir), peft_dir))
        largest = _compare(loaded.model, places, layers)
    own = adapters.config_of(
        loaded.model, kind=kind, rank=rank, scale=scale, dropout=config.lora_dropout
    )
    adapters.save(out, loaded.model, own, _provenance(loaded, peft_dir, config))
    padded = sum(layer.rank < rank for layer in layers.values())
    folded = sum(layer.scale != scale for layer in layers.values())
    return PeftImport(str(out), kind, rank, scale, len(paths), padded, folded, largest)


def _places(model: nn.Module, model_type: str) -> dict[str, Place]:
    """Where each module that PEFT could adapt is here; to it a stack's experts are modules."""
    found: dict[str, Place] = {"lm_head": ("lm_head", None)}
    for path, module in model.named_modules():
        if isinstance(module, SWITCH):
            experts = peft_format.expert_modules(path, module.num_experts, model_type)
            found |= {expert: (path, at) for at, expert in enumerate(experts)}
        elif adaptable(module):
            found[path] = (path, None)
    return found


def _require_targets(
    places: Collection[str], config: PeftConfig, layers: Mapping[str, PeftLayer]
) -> None:
    """Every tensor is one that PEFT would use, and none that it would look for is missing."""
    for module in sorted(layers):
        if module not in places:
            raise ModelError(f"the model has no layer {module}")
        if not config.aims_at(module):
            raise ModelError(f"has tensors for {module}, which target_modules leaves out")
    for module in sorted({*places} - layers.keys()):
        # A head may be none of its own here; "all-linear" means neither it nor the table.
        spared = module == "lm_head" or (config.all_linear and module.endswith("embed_tokens"))
        if config.aims_at(module) and not spared:
            raise ModelError(f"lacks the tensors of {module}, which it targets")


def _one_table(layers: dict[str, PeftLayer]) -> dict[str, PeftLayer]:
    """A tied table and head as the one layer that they are here."""
    table = next((layer for layer in layers.values() if layer.is_table), None)
    head = layers.get("lm_head")
    if table is None and head is None:
        return layers
    same = (
        table is not None
        and head is not None
        and head.scale == table.scale
        and np.array_equal(head.a, table.b.T)
        and np.array_equal(head.b, table.a.T)
    )
    if not same:
        raise ModelError(
            "adapts one of token table and output head, which this model has as one",
            hint="train without embed_tokens and lm_head, or merge it into the model with PEFT",
        )
    return {path: layer for path, layer in layers.items() if path != "lm_head"}


def _tensors(
    model: nn.Module,
    places: Mapping[str, Place],
    layers: Mapping[str, PeftLayer],
    rank: int,
    scale: float,
) -> dict[str, Any]:
    """Factors by our names, all of one rank and scale."""
    modules = dict(model.named_modules())
    tensors: dict[str, Any] = {}
    stacks: dict[str, dict[int, tuple[Any, Any]]] = {}
    for module, layer in layers.items():
        a = np.zeros((rank, layer.a.shape[1]), np.float32)
        b = np.zeros((layer.b.shape[0], rank), np.float32)
        a[: layer.rank] = layer.a
        b[:, : layer.rank] = layer.b * np.float64(layer.scale / scale)
        path, expert = places[module]
        if expert is not None:
            stacks.setdefault(path, {})[expert] = (a, b)
            continue
        if layer.is_table is not isinstance(modules[path], EMBEDDING):
            raise ModelError(f"{module} is no {'token table' if layer.is_table else 'layer'}")
        tensors |= {f"{path}.lora_a": a.T, f"{path}.lora_b": b.T}
        if layer.magnitude is not None:
            tensors[f"{path}.m"] = layer.magnitude
    for path, experts in stacks.items():
        count = modules[path].num_experts
        if len(experts) < count:
            raise ModelError(f"adapts {len(experts)} of the {count} experts at {path}")
        for n, name in enumerate(("lora_a", "lora_b")):
            tensors[f"{path}.{name}"] = np.stack([experts[e][n] for e in range(count)])
    return {name: mx.array(np.ascontiguousarray(t, np.float32)) for name, t in tensors.items()}


def _compare(
    model: nn.Module, places: Mapping[str, Place], layers: Mapping[str, PeftLayer]
) -> float:
    """The largest difference of any layer's product from PEFT's own. Raises ModelError."""
    largest = 0.0
    adapted = dict(lora.adapted(model))
    for module, theirs in layers.items():
        path, expert = places[module]
        layer = adapted[path]
        a, b = np.array(layer.lora_a), np.array(layer.lora_b)
        got = layer.scale * ((a @ b).T if expert is None else b[expert] @ a[expert])
        wanted = theirs.scale * (theirs.b @ theirs.a)
        gap = float(np.abs(got - wanted).max())
        if not gap <= _TOLERANCE * max(float(np.abs(wanted).max()), 1e-6):
            raise ModelError(f"{module} cannot be told in one rank and scale ({gap:.3g})")
        largest = max(largest, gap)
    return largest


def _papers_of(peft_dir: Path) -> dict[str, Any]:
    """The base's fingerprint, where the adapter is one that mlx-itune exported."""
    papers = peft_dir / adapters.PROVENANCE
    return read_object(papers, error=ModelError) if papers.is_file() else {}


def _provenance(loaded: base.LoadedModel, peft_dir: Path, config: PeftConfig) -> dict[str, Any]:
    return {
        "v": 1,
        **_papers_of(peft_dir),
        "base": loaded.papers(),
        "imported": {
            "from": "peft",
            "base_model": config.base_model,
            "sha256": sha256_file(peft_dir / peft_format.TENSORS),
            "mlx_itune": __version__,
        },
    }
