"""Layers as a loaded model holds them, moved adapters, and how far numbers are apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)

import mlx.core as mx  # isort: skip
import mlx.nn as nn

from mlx_itune.model.adapters import adapter, lora
from mlx_itune.model.engine import compute
from mlx_itune.model.loading import base

Numbers = npt.NDArray[np.float64]
IDS = mx.array([[3, 7, 20, 9, 250, 11]])


def furthest(ours: Any, oracle: Any) -> float:
    """The largest difference, relative to the oracle's largest number."""
    return float(np.abs(np.array(ours) - oracle).max() / np.abs(oracle).max())


def held(layer: nn.Module, way: str, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A layer computed by the kernel, from unpacked codes, or unpacking inside the product."""
    model = nn.Sequential(layer)
    if way == "inside":
        monkeypatch.setattr(compute, "RESIDENT_SHARE", 0.0)
    compute.apply(model, "quantized" if way == "quantized" else "dequantized")
    kept: nn.Module = model.layers[0]
    return kept


def moved(layer: nn.Module, by: float = 0.1) -> dict[str, mx.array]:
    """Take a layer's factors away from their start; what they are now."""
    keys = mx.random.split(mx.random.key(0), len(layer.factors))
    values = {
        name: layer[name] + by * mx.random.normal(layer[name].shape, key=key)
        for name, key in zip(layer.factors, keys, strict=True)
    }
    layer.update(values)
    return values


def moved_model(path: Path, **options: Any) -> base.LoadedModel:
    """A model with a moved adapter of rank 4 and scale 2."""
    loaded = base.load(str(path))
    lora.attach(loaded.model, rank=4, scale=2.0, seed=3, **options)
    for _, layer in lora.adapted(loaded.model):
        moved(layer, 0.05)
    mx.eval(loaded.model.parameters())
    return loaded


def saved(path: Path, out: Path, kind: str = "lora", **options: Any) -> Any:
    """Write a moved adapter; the logits it gives."""
    loaded = moved_model(path, kind=kind, **options)
    config = adapter.config_of(loaded.model, kind=kind, rank=4, scale=2.0)
    adapter.save(out, loaded.model, config, {"base": loaded.papers()})
    return np.array(loaded.model(IDS))
