"""DoRA against NumPy in float64, against mlx-lm's layer, and at every width."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)

import mlx.core as mx  # isort: skip
import mlx.nn as nn

from mlx_itune.kit.errors import ModelError
from mlx_itune.model.adapters import lora, lowrank
from mlx_itune.model.loading import base
from tests.model.adapter_layers import IDS, furthest, held, moved

INPUTS, OUTPUTS, RANK, SCALE = 128, 96, 3, 2.0


@pytest.mark.parametrize("way", ["quantized", "resident", "inside"])
@pytest.mark.parametrize("bits", [None, 2, 3, 4, 5, 6, 8])
def test_product_and_gradients(bits: int | None, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = nn.Linear(INPUTS, OUTPUTS, bias=bits != 4)
    weight = np.array(source.weight, np.float64)
    base_layer: nn.Module = source
    if bits is not None:
        quantized = nn.QuantizedLinear.from_linear(source, 32, bits)
        parts = quantized.weight, quantized.scales, quantized.biases
        weight = np.array(mx.dequantize(*parts, group_size=32, bits=bits), np.float64)
        base_layer = quantized
    base_layer = held(base_layer, way, monkeypatch)
    layer = lowrank.DoRALinear(base_layer, RANK, SCALE, 0.0, mx.random.key(1))
    x = mx.random.normal((2, 5, INPUTS), key=mx.random.key(2))
    assert mx.array_equal(layer(x), base_layer(x)).item()
    assert furthest(layer.m, np.sqrt((weight**2).sum(1))) < 1e-6

    values = moved(layer)
    cotangent = mx.random.normal((2, 5, OUTPUTS), key=mx.random.key(3))
    flat, c = (np.array(a, np.float64).reshape(10, -1) for a in (x, cotangent))
    a, b, m = (np.array(values[name], np.float64) for name in ("lora_a", "lora_b", "m"))
    whole = weight + SCALE * (a @ b).T
    norm = np.sqrt((whole**2).sum(1))
    bias = np.array(source.bias) if "bias" in source else 0.0
    assert furthest(layer(x).reshape(10, -1), m / norm * (flat @ whole.T) + bias) < 3e-6

    def loss(x: mx.array, values: dict[str, mx.array]) -> mx.array:
        layer.update(values)
        return (layer(x) * cotangent).sum()

    d_x, gradients = mx.grad(loss, argnums=(0, 1))(x, values)
    layer.update(values)
    # The norm is a constant (2402.09353, section 4.3).
    scaled = c * (m / norm)
    assert furthest(d_x.reshape(10, -1), scaled @ whole) < 1e-5
    assert furthest(gradients["m"], (c * (flat @ whole.T) / norm).sum(0)) < 1e-5
    assert furthest(gradients["lora_a"], SCALE * flat.T @ (scaled @ b.T)) < 1e-5
    assert furthest(gradients["lora_b"], SCALE * (flat @ a).T @ scaled) < 1e-5
    assert furthest(layer.delta(), (m / norm)[:, None] * whole - weight) < 1e-5


@pytest.mark.parametrize("mode", ["quantized", "dequantized"])
def test_a_token_table(mode: str, tiny_quantized_dir: Path) -> None:
    loaded = base.load(str(tiny_quantized_dir), compute=mode)
    before = np.array(loaded.model(IDS))
    lora.attach(loaded.model, rank=4, scale=2.0, keys=["model.embed_tokens"], kind="dora")
    assert np.array_equal(np.array(loaded.model(IDS)), before)
    table = loaded.model.model.embed_tokens
    values = moved(table)
    plain = base.load(str(tiny_quantized_dir), compute="quantized").model.model.embed_tokens
    weight = np.array(plain(mx.arange(plain.weight.shape[0])), np.float64)
    a, b, m = (np.array(values[name], np.float64) for name in ("lora_a", "lora_b", "m"))
    whole = weight + 2.0 * a @ b
    full = (m / np.sqrt((whole**2).sum(1)))[:, None] * whole
    assert furthest(table(IDS), full[np.array(IDS)]) < 1e-5
    x = mx.random.normal((3, 64))
    assert furthest(table.as_linear(x), np.array(x) @ full.T) < 1e-5
    assert furthest(table.delta(), full - weight) < 1e-5


def test_half_precision_stays_half_and_a_row_of_zeros_stays_zero() -> None:
    source = nn.Linear(INPUTS, OUTPUTS, bias=False)
    source.weight = source.weight.at[0].multiply(0).astype(mx.bfloat16)
    layer = lowrank.DoRALinear(source, RANK, SCALE, 0.0, mx.random.key(1))
    x = mx.random.normal((2, INPUTS)).astype(mx.bfloat16)
    y = layer(x)
    assert y.dtype == mx.bfloat16 and mx.array_equal(y, source(x)).item()
    assert mx.isfinite(y).all().item()
    assert layer.delta().dtype == mx.float32 and mx.isfinite(layer.delta()).all().item()


def test_experts_are_left_out_and_refused_by_name() -> None:
    from mlx_lm.models.switch_layers import SwitchLinear

    def model() -> nn.Module:
        made, block = nn.Module(), nn.Module()
        block.proj, block.experts = nn.Linear(8, 8), SwitchLinear(8, 8, 2)
        made.layers = [block]
        return made

    assert lora.attach(model(), rank=2, scale=1.0, kind="dora") == ["layers.0.proj"]
    with pytest.raises(ModelError, match=r"layers\.0\.experts: dora cannot adapt a SwitchLinear"):
        lora.attach(model(), rank=2, scale=1.0, kind="dora", keys=["experts"])
