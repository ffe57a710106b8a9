"""The norms that a grid adapter moves: their gradient, what ships, and who knows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)

import mlx.core as mx  # isort: skip
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.gemma2 import RMSNorm as GemmaNorm

from mlx_itune.kit.errors import ModelError
from mlx_itune.model.adapters import adapter, lora
from mlx_itune.model.adapters.adapter import AdapterSet
from mlx_itune.model.adapters.grid import GridNorm, is_norm
from mlx_itune.model.engine import compute
from mlx_itune.model.loading import base
from tests.model.adapter_layers import IDS, saved
from tests.model.architectures import build


@pytest.mark.parametrize("added", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_the_gain_multiplies_the_weight_and_has_its_gradient(added: float, dtype: Any) -> None:
    norm: Any = GemmaNorm(16, 1e-5) if added else nn.RMSNorm(16, 1e-5)
    weight = 1 - added + 0.1 * mx.random.normal((16,), key=mx.random.key(1))
    norm.weight = weight.astype(dtype)
    model = nn.Sequential(norm)
    compute.apply(model)
    layer = GridNorm(model.layers[0])
    x = mx.random.normal((2, 5, 16), key=mx.random.key(2))
    assert mx.array_equal(layer(x), model.layers[0](x))

    gain = 0.3 * mx.random.normal((16,), key=mx.random.key(3))
    ahead = mx.random.normal(x.shape, key=mx.random.key(4))

    def output(gain: mx.array) -> mx.array:
        layer.gain = gain
        return (layer(x) * ahead).sum()

    gradient = mx.grad(output)(gain)
    layer.gain = gain
    rows, by = np.array(x, np.float64), np.array(ahead, np.float64)
    plain = rows / np.sqrt((rows**2).mean(-1, keepdims=True) + 1e-5)
    full = np.array(norm.weight.astype(mx.float32), np.float64) + added
    exact = (by * plain * full).sum((0, 1))
    assert np.abs(np.array(gradient) - exact).max() <= 1e-5 * np.abs(exact).max()
    tuned = full * (1 + np.array(gain, np.float64)) - added
    assert np.abs(np.array(layer.moved()) - tuned).max() <= 2 * mx.finfo(dtype).eps
    assert layer.shipped()["weight"].dtype == dtype
    assert mx.array_equal(layer.shipped()["weight"].astype(mx.float32), layer.moved())


def test_they_are_the_blocks_own_and_nothing_else(tiny_quantized_dir: Path) -> None:
    loaded = base.load(str(tiny_quantized_dir))
    paths = lora.attach(loaded.model, rank=2, scale=2.0, kind="grid", num_layers=1)
    names = ("input_layernorm", "post_attention_layernorm")
    norms = [path for path, layer in lora.adapted(loaded.model) if isinstance(layer, GridNorm)]
    assert norms == [f"model.layers.1.{name}" for name in names]
    assert set(norms) < set(paths)
    learned = dict(tree_flatten(loaded.model.trainable_parameters()))
    assert {name for name in learned if "norm" in name} == {f"{path}.gain" for path in norms}
    only = base.load(str(tiny_quantized_dir))
    lora.attach(only.model, rank=2, scale=2.0, kind="grid", keys=["q_proj"])
    assert not any(isinstance(layer, GridNorm) for _, layer in lora.adapted(only.model))
    another = base.load(str(tiny_quantized_dir)).model
    with pytest.raises(ModelError, match="cannot adapt"):
        lora.attach(another, rank=2, scale=2.0, kind="lora", keys=["input_layernorm"])


def test_a_set_of_adapters_gives_the_base_back(tiny_quantized_dir: Path, tmp_path: Path) -> None:
    adapted = mx.array(saved(tiny_quantized_dir, tmp_path / "a", "grid"))
    assert "input_layernorm" in adapter.load(tmp_path / "a").config.keys
    bare = base.load(str(tiny_quantized_dir)).model(IDS)
    both = AdapterSet(base.load(str(tiny_quantized_dir)), {"a": adapter.load(tmp_path / "a")})
    for name, wanted in ((None, bare), ("a", adapted), (None, bare)):
        both.use(name)
        assert mx.array_equal(both.loaded.model(IDS), wanted)


@pytest.mark.parametrize("name", ["gemma3_text", "qwen3", "phi3"])
def test_norms_of_other_architectures_are_known(name: str) -> None:
    model = build(name)
    found = {type(m).__module__ for block in model.layers for m in block.modules() if is_norm(m)}
    assert found
