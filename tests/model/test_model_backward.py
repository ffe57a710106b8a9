"""Quantized layers go back by the kernel or through a copy: the same gradients, the faster way."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from architectures import bare, furthest, loss_and_gradients

import mlx.core as mx  # isort: skip
import mlx.nn as nn

from mlx_itune.model.adapters import lora
from mlx_itune.model.engine import backward, compute
from mlx_itune.model.engine.loss import plain_nll, weighted_nll
from mlx_itune.model.loading import backend
from mlx_itune.training.engine.step_ways import ways_for, with_backward
from tests.training.learners import settings_of


def quantized(tied: bool, **how: Any) -> Any:
    model = bare("qwen2", tie_word_embeddings=tied)
    nn.quantize(model, group_size=32, bits=4)
    compute.apply(model, "quantized")
    lora.attach(model, **{"rank": 4, "scale": 2.0, **how})
    for _, layer in lora.adapted(model):
        layer.update(
            {
                name: layer[name] + 0.05 * mx.random.normal(layer[name].shape)
                for name in layer.factors
            }
        )
    return model


@pytest.mark.parametrize("nll", [plain_nll, weighted_nll])
@pytest.mark.parametrize(
    ("tied", "how"),
    [
        (True, {}),
        (False, {"keys": ("mlp.up_proj",)}),
        (True, {"kind": "dora"}),
        (True, {"kind": "grid"}),
        (True, {"kind": "grid", "keys": ("embed_tokens", "q_proj")}),
        (False, {"kind": "qalora", "num_layers": 1}),
    ],
    ids=str,
)
def test_both_ways_give_the_same_gradients(tied: bool, how: Any, nll: Any) -> None:
    mx.random.seed(0)
    model = quantized(tied, **how)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 300, (2, 40)).astype(np.int32)
    weights = (rng.random((2, 40)) < 0.5).astype(np.float32)
    loss, gradients = loss_and_gradients(model, nll, ids, weights)
    backward.unpack(model, 1e9)
    assert not [path for path, m in model.named_modules() if type(m) is nn.QuantizedLinear]
    other, others = loss_and_gradients(model, nll, ids, weights)
    assert other == loss
    assert furthest(gradients, others) < 2e-5


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[float]]:
    """A device on which the two ways take so many seconds a product; those that were asked for."""
    monkeypatch.setattr(backend, "prepare", lambda: backend.Backend("gpu", None, None))
    monkeypatch.setenv("MLX_ITUNE_CACHE", str(tmp_path))
    takes = [1.0, 1.0, 0.2, 0.2]
    monkeypatch.setattr(backward, "seconds", lambda call: (mx.eval(call()), takes.pop(0))[1])
    yield takes


def test_the_faster_way_is_taken_and_remembered(gpu: list[float]) -> None:
    def word(chosen: str | None = None, rows: int = 500, **more: Any) -> str | None:
        model, settings = quantized(True), settings_of(**more)
        ways = with_backward(ways_for(model, settings, 1), model, settings, rows, chosen=chosen)
        found = ways.words.get("backward")
        kinds = {type(m) for _, m in model.named_modules()}
        small = more.get("memory_gb", 9) < 1e-6
        assert (compute.DequantizingLinear in kinds) == (found == "dequantized" and not small)
        return found

    assert word() == "dequantized" and not gpu
    assert word() == "dequantized"
    assert word("quantized") == "quantized" and word("dequantized", rows=2) == "dequantized"
    assert word(compute="quantized") is None
    gpu[:] = [1.0, 1.0, 1.1, 1.1]
    assert word(rows=700) == "quantized" and not gpu
    assert word("dequantized", memory_gb=1e-7) == "dequantized"
