"""Adapters on a model: put them on, find them, merge them.

kind     layers                 what is learned
lora     lowrank                W + scale * A B
rslora   lowrank                the same; its scale is alpha / sqrt(rank) (2312.03732)
dora     lowrank                W + scale * A B, and the length of each of its rows
grid     grid                   the scales and biases of a quantized W
qalora   grid                   the biases of a quantized W
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.wording import listing
from mlx_itune.model.adapters import grid
from mlx_itune.model.adapters.grid import GridNorm, is_norm
from mlx_itune.model.adapters.lowrank import (
    EMBEDDING,
    LINEAR,
    SWITCH,
    AdapterLayer,
    DoRAEmbedding,
    DoRALinear,
    LoRAEmbedding,
    LoRALinear,
    LoRASwitchLinear,
    LowRank,
)
from mlx_itune.model.adapters.targets import Target, choose, placement
from mlx_itune.model.engine.compute import packed, release

KINDS = ("lora", "rslora", "dora", "grid", "qalora")
ON_THE_GRID = ("grid", "qalora")
_LAYERS = {
    "lora": (LoRALinear, LoRASwitchLinear, LoRAEmbedding),
    "dora": (DoRALinear, None, DoRAEmbedding),
    "grid": (grid.GridLinear, grid.GridSwitchLinear, grid.GridEmbedding),
    "qalora": (grid.QALinear, grid.QASwitchLinear, grid.QAEmbedding),
}


def attach(
    model: nn.Module,
    *,
    rank: int,
    scale: float,
    dropout: float = 0.0,
    keys: Sequence[str] | None = None,
    num_layers: int = -1,
    seed: int = 0,
    kind: str = "lora",
) -> list[str]:
    """Put an adapter on the model, in place; the model is frozen but for it. Returns the paths.

    keys and num_layers: see `targets.choose`; None takes every linear layer of the blocks (for
    dora without experts, for which mlx-lm has none; on the grid those that are quantized). The
    start is a pure function of (seed, path), and the adapted model equals the base bit for bit.
    Raises ModelError, on the grid also for layers that are not quantized in affine mode.
    """
    if kind not in KINDS:
        raise ModelError(f"unknown adapter {kind!r}", hint="one of " + ", ".join(KINDS))
    if kind == "grid" and dropout:
        raise ModelError("a grid adapter has no dropout", hint="set dropout to 0")
    if adapted(model):
        raise ModelError("the model already carries an adapter", hint="load it anew")
    also = is_norm if kind == "grid" else (lambda _: False)
    chosen = choose(model, keys, num_layers, experts=kind != "dora", also=also)
    if kind in ON_THE_GRID:
        chosen = _on_the_grid(chosen, everything=keys is None)
    paths = [target.path for target in chosen]
    model.freeze()
    # One after the other: a float weight that a grid layer replaces goes before the next is made.
    while chosen:
        target = chosen.pop()
        layer = _wrap(target, kind, rank, scale, dropout, seed)
        layer.unfreeze(keys=list(layer.factors), recurse=False)
        layer.train(model.training)
        mx.eval(layer.parameters())
        model.update_modules(tree_unflatten([(target.path, layer)]))
    release(model)
    return paths


def adapted(model: nn.Module) -> list[tuple[str, AdapterLayer]]:
    """(path, layer) of every adapter layer, in the model's order."""
    found = [(path, m) for path, m in model.named_modules() if isinstance(m, AdapterLayer)]
    return sorted(found, key=lambda item: item[0])


def placed(model: nn.Module) -> tuple[tuple[str, ...], int]:
    """(keys, num_layers) that put an adapter where this model's is."""
    return placement(model, [path for path, _ in adapted(model)])


@contextmanager
def in_a_step(model: nn.Module, dropout_key: mx.array | None = None) -> Iterator[None]:
    """Within it layers may have their factors as `together` gives them, and dropout is drawn from
    the key, or not at all."""
    layers = [layer for _, layer in adapted(model)]
    scales = [layer.scale for layer in layers]
    set_dropout_key(model, dropout_key)
    try:
        yield
    finally:
        set_dropout_key(model, None)
        for layer, scale in zip(layers, scales, strict=True):
            layer.scale = scale
            layer.let_go()


def together(
    model: nn.Module, kinds: Sequence[Sequence[str]]
) -> Callable[[Sequence[Mapping[str, mx.array]]], None]:
    """A function that gives the model's layers their factors for a step.

    kinds: the layers' paths, those together whose factors have one shape. The function takes, for
    each of them, the factors by name, those of all layers as one array.
    """
    layers, dtype = dict(adapted(model)), activation_type(model)
    gives = []
    for paths in kinds:
        alike = [layers[path] for path in paths]
        kind = type(alike[0])
        one = kind if all(type(layer) is kind for layer in alike) else AdapterLayer
        gives.append(one.together(alike, dtype))

    def give(stacks: Sequence[Mapping[str, mx.array]]) -> None:
        for one, arrays in zip(gives, stacks, strict=True):
            one(arrays)

    return give


def activation_type(model: nn.Module) -> Any:
    """What the model computes in: the type of its floating-point numbers that are not learned."""
    frozen = dict(tree_flatten(model.parameters()))
    for name, _ in tree_flatten(model.trainable_parameters()):
        frozen.pop(name)
    kinds = [a.dtype for a in frozen.values() if mx.issubdtype(a.dtype, mx.floating)]
    return max(set(kinds), key=kinds.count)


def set_dropout_key(model: nn.Module, key: mx.array | None) -> None:
    """Draw the next forward pass's dropout from `key`; None turns dropout off."""
    layers = [layer for _, layer in adapted(model) if isinstance(layer, LowRank) and layer.dropout]
    keys = [None] * len(layers) if key is None else mx.random.split(key, max(1, len(layers)))
    for layer, own in zip(layers, keys, strict=False):
        layer._key = own


def _wrap(
    target: Target, kind: str, rank: int, scale: float, dropout: float, seed: int
) -> AdapterLayer:
    digest = hashlib.sha256(f"{seed}\0{target.path}".encode()).digest()
    key = mx.random.key(int.from_bytes(digest[:8], "little"))
    base = target.module
    if kind == "grid" and is_norm(base):
        return GridNorm(base)
    at = next(i for i, kinds in enumerate((LINEAR, SWITCH, EMBEDDING)) if isinstance(base, kinds))
    wrapper = _LAYERS["lora" if kind == "rslora" else kind][at]
    if wrapper is None:
        raise ModelError(f"dora cannot adapt a {type(base).__name__}", where=target.path)
    with_dropout = () if kind == "grid" else (dropout,)
    layer: AdapterLayer = wrapper(base, rank, scale, *with_dropout, key)
    return layer


def _on_the_grid(chosen: Sequence[Target], *, everything: bool) -> list[Target]:
    """The chosen layers whose grid an adapter can move."""
    layers = [target for target in chosen if not is_norm(target.module)]
    modes = {target.path: _mode(target.module) for target in layers}
    affine = [target for target in layers if modes[target.path] == "affine"]
    # Of every layer there is, those that are not quantized are left as they are.
    spared = (None, "affine") if everything else ("affine",)
    if wrong := [target.path for target in layers if modes[target.path] not in spared]:
        raise ModelError(
            f"a grid adapter needs layers quantized in affine mode; {len(wrong)} are not "
            f"({modes[wrong[0]] or 'not quantized'}): {listing(wrong)}",
            hint="choose other layers with --keys, or --adapter lora",
        )
    if not affine and (everything or layers == list(chosen)):
        raise ModelError(
            "a grid adapter needs a quantized model, and this one is not",
            hint="quantize it with mlx_lm.convert -q, or use --adapter lora",
        )
    return [target for target in chosen if target in affine or target not in layers]


def _mode(module: nn.Module) -> str | None:
    """How a layer is quantized; None where it is not."""
    stored = packed(module)
    if stored is not None:
        return str(stored.mode)
    return str(getattr(module, "mode", "another")) if hasattr(module, "bits") else None
