"""Adapters of the grid against NumPy in float64 that unpacks the codes itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)

import mlx.core as mx  # isort: skip
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import SwitchLinear

from mlx_itune.kit.errors import ModelError
from mlx_itune.model.adapters import grid, lora
from mlx_itune.model.engine import compute
from mlx_itune.model.loading import base
from tests.model.adapter_layers import IDS, Numbers, furthest, held, moved

INPUTS, OUTPUTS, RANK, SCALE, GROUP = 128, 96, 3, 2.0, 32
# How a layer is computed: by the kernel, from unpacked codes, or unpacking inside the product.
WAYS = ("quantized", "resident", "inside")


def unpack(packed: mx.array, bits: int) -> Numbers:
    """The codes of rows of 32-bit words, lowest bits first."""
    words = np.array(packed)
    flat = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")
    grouped = flat.reshape(*words.shape[:-1], -1, bits).astype(np.float64)
    return np.asarray((grouped * 2.0 ** np.arange(bits)).sum(-1))


def dense(base_layer: nn.Module, codes: Numbers, factors: dict[str, mx.array]) -> Any:
    """(base's weight, tuned weight, weight's gradient -> the factors' gradients), in float64."""
    f = {name: np.array(array).astype(np.float64) for name, array in factors.items()}
    s, b = (np.array(base_layer[name], np.float64) for name in ("scales", "biases"))
    grouped = codes.reshape(*s.shape, GROUP)
    unit = SCALE * np.sqrt(INPUTS)
    u = unit * turned(f["scale_a"] @ f["scale_b"])
    v = SCALE * turned(f["bias_a"] @ f["bias_b"])
    before = s[..., None] * grouped + b[..., None]
    tuned = before * (1 + u)[..., None] + v[..., None]

    def gradients(d_weight: Numbers) -> dict[str, Numbers]:
        each = d_weight.reshape(before.shape)
        d_u, d_v = turned((each * before).sum(-1)) * unit, turned(each.sum(-1)) * SCALE
        return {
            "scale_a": d_u @ turned(f["scale_b"]),
            "scale_b": turned(f["scale_a"]) @ d_u,
            "bias_a": d_v @ turned(f["bias_b"]),
            "bias_b": turned(f["bias_a"]) @ d_v,
        }

    return before.reshape(codes.shape), tuned.reshape(codes.shape), gradients


def turned(array: Numbers) -> Numbers:
    return array.swapaxes(-1, -2)


def gradients_of(layer: nn.Module, factors: dict[str, mx.array], c: mx.array, *inputs: Any) -> Any:
    """d (layer(inputs) * c).sum() / d (the first input, the factors)."""

    def loss(x: mx.array, values: dict[str, mx.array]) -> mx.array:
        layer.update(values)
        return (layer(x, *inputs[1:]) * c).sum()

    made = mx.grad(loss, argnums=(0, 1))(inputs[0], factors)
    layer.update(factors)
    return made


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_product_and_gradients_are_the_dense_ones(
    bits: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = nn.Linear(INPUTS, OUTPUTS, bias=True)
    quantized = nn.QuantizedLinear.from_linear(source, GROUP, bits)
    stored, codes = dict(quantized), unpack(quantized.weight, bits)
    layer = grid.GridLinear(held(quantized, way, monkeypatch), RANK, SCALE, mx.random.key(1))
    factors = moved(layer)
    before, weight, gradients = dense(stored, codes, factors)
    x = mx.random.normal((2, 5, INPUTS), key=mx.random.key(2))
    cotangent = mx.random.normal((2, 5, OUTPUTS), key=mx.random.key(3))
    flat, c = np.array(x).reshape(-1, INPUTS), np.array(cotangent).reshape(-1, OUTPUTS)

    y = flat @ weight.T + np.array(source.bias)
    assert furthest(layer(x).reshape(-1, OUTPUTS), y) < 2e-6
    d_x, ours = gradients_of(layer, factors, cotangent, x)
    assert furthest(d_x.reshape(-1, INPUTS), c @ weight) < 1e-5
    for name, expected in gradients(c.T @ flat).items():
        assert furthest(ours[name], expected) < 1e-5, name
    assert furthest(layer.delta(), weight - before) < 1e-5


@pytest.mark.parametrize("way", ["quantized", "resident"])
def test_experts(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quantized = SwitchLinear(INPUTS, OUTPUTS, 3, bias=True).to_quantized(GROUP, 4)
    stored, codes = dict(quantized), unpack(quantized.weight, 4)
    below = held(quantized, way, monkeypatch)
    layer = grid.GridSwitchLinear(below, RANK, SCALE, mx.random.key(1))
    x = mx.random.normal((4, 1, 1, INPUTS))
    indices = mx.array([[0, 2], [1, 0], [2, 1], [2, 0]])
    assert mx.array_equal(layer(x, indices), below(x, indices)).item()
    factors = moved(layer)
    before, weight, gradients = dense(stored, codes, factors)
    cotangent = mx.random.normal((4, 2, 1, OUTPUTS))
    d_weight, expected_x = np.zeros_like(weight), np.zeros((4, INPUTS))
    rows, c = np.array(x)[:, 0, 0], np.array(cotangent)[:, :, 0]
    for row in range(4):
        for place, expert in enumerate(np.array(indices)[row]):
            d_weight[expert] += np.outer(c[row, place], rows[row])
            expected_x[row] += c[row, place] @ weight[expert]
    d_x, ours = gradients_of(layer, factors, cotangent, x, indices)
    assert furthest(d_x[:, 0, 0], expected_x) < 1e-5
    for name, expected in gradients(d_weight).items():
        assert furthest(ours[name], expected) < 1e-5, name
    assert furthest(layer.delta(), weight - before) < 1e-5


@pytest.mark.parametrize("rows", [1, 7])
def test_gradients_made_in_pieces_are_the_same(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    base_layer = held(nn.QuantizedLinear(INPUTS, OUTPUTS, False, GROUP, 4), "resident", monkeypatch)
    layer = grid.GridLinear(base_layer, RANK, SCALE, mx.random.key(1))
    x, c = mx.random.normal((5, INPUTS)), mx.random.normal((5, OUTPUTS))
    whole = layer._gradients(x, c)
    monkeypatch.setattr("mlx_itune.model.adapters.lowrank._CHUNK_NUMBERS", rows * INPUTS)
    for one, other in zip(whole, layer._gradients(x, c), strict=True):
        assert furthest(other, np.array(one)) < 1e-6


def test_the_quantized_path_never_makes_the_dense_weight() -> None:
    size = 4096
    model = nn.Sequential(nn.QuantizedLinear(size, size, False, 64, 4))
    compute.apply(model, "quantized")
    layer = grid.GridLinear(model.layers[0], 4, SCALE, mx.random.key(0))
    x = mx.random.normal((2, size))
    mx.eval(x, layer.parameters())
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    values = {name: layer[name] for name in layer.factors}
    mx.eval(gradients_of(layer, values, mx.ones((2, size)), x))
    # A few pieces of 4 MB of the weight's gradient, which as a whole has 67 MB.
    assert mx.get_peak_memory() - before < 0.75 * 4 * size * size
    assert all(a.dtype != mx.float32 or a.size <= size * 64 for _, a in tree_flatten(layer))


@pytest.mark.parametrize("kind", lora.KINDS)
@pytest.mark.parametrize("mode", ["dequantized", "quantized"])
def test_at_step_zero_the_model_is_the_base(kind: str, mode: str, tiny_quantized_dir: Path) -> None:
    loaded = base.load(str(tiny_quantized_dir), compute=mode)
    before = np.array(loaded.model(IDS))
    keys = ["*proj", "model.embed_tokens"]
    assert len(lora.attach(loaded.model, rank=4, scale=2.0, keys=keys, kind=kind)) == 15
    assert np.array_equal(np.array(loaded.model(IDS)), before)


@pytest.mark.parametrize("way", ["quantized", "resident"])
@pytest.mark.parametrize("kind", [mx.float16, mx.bfloat16])
def test_what_is_trained_can_be_stored(
    kind: Any, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = nn.Linear(INPUTS, OUTPUTS, bias=False)
    source.weight = source.weight.astype(kind)
    below = held(nn.QuantizedLinear.from_linear(source, GROUP, 4), way, monkeypatch)
    layer = grid.GridLinear(below, RANK, SCALE, mx.random.key(0))
    moved(layer)
    scales, biases = grid.merged_grid(layer)
    assert scales.dtype == mx.float32
    shipped = layer.shipped()
    assert shipped["scales"].dtype == shipped["biases"].dtype == kind
    assert mx.array_equal(shipped["scales"].astype(mx.float32), scales).item()
    assert mx.array_equal(shipped["biases"].astype(mx.float32), biases).item()
    x = mx.random.normal((4, INPUTS))
    weight = layer.weight
    codes = np.array(weight).astype(np.float64) if way == "resident" else unpack(weight, 4)
    grouped = codes.reshape(OUTPUTS, -1, GROUP)
    weight = grouped * np.array(scales)[..., None] + np.array(biases)[..., None]
    assert furthest(layer(x), np.array(x) @ weight.reshape(OUTPUTS, INPUTS).T) < 2e-6
    factors = {name: layer[name] for name in layer.factors}
    _, gradient = gradients_of(layer, factors, mx.ones((4, OUTPUTS)), x)
    assert float(mx.abs(gradient["scale_b"]).max().item()) > 0


@pytest.mark.parametrize("kind", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("unpacked", [False, True])
def test_half_precision_activations_stay_so(unpacked: bool, kind: Any) -> None:
    """As on a GPU, where nothing is cast to float32."""
    source = nn.Linear(INPUTS, OUTPUTS, bias=True)
    source.update({name: a.astype(kind) for name, a in source.parameters().items()})
    quantized = nn.QuantizedLinear.from_linear(source, GROUP, 4)
    quantized.packed = compute.Packed.of(quantized)
    below: nn.Module = quantized
    if unpacked:
        below = source
        parts = quantized.packed.codes(), quantized.scales, quantized.biases
        below.weight, below.packed = compute.affine(*parts).astype(kind), quantized.packed
    layer = grid.GridLinear(below, RANK, SCALE, mx.random.key(1))
    x = mx.random.normal((3, INPUTS)).astype(kind)
    assert layer(x).dtype == kind and mx.array_equal(layer(x), below(x)).item()
    moved(layer, 0.01)
    factors = {name: layer[name] for name in layer.factors}
    cotangent = mx.ones((3, OUTPUTS)).astype(kind)
    d_x, gradients = gradients_of(layer, factors, cotangent, x)
    assert d_x.dtype == kind and {g.dtype for g in gradients.values()} == {mx.float32}
    wide = gradients_of(layer, factors, cotangent, x.astype(mx.float32))
    pairs = zip(tree_flatten([d_x, gradients]), tree_flatten(wide), strict=True)
    for (_, ours), (_, theirs) in pairs:
        assert furthest(ours.astype(mx.float32), np.array(theirs, np.float64)) < 3e-2
    layer.eval()
    before = np.array(layer(x).astype(mx.float32))
    layer.settle()
    assert np.array_equal(np.array(layer(x).astype(mx.float32)), before)


@pytest.mark.parametrize("mode", ["quantized", "dequantized"])
@pytest.mark.parametrize("kind", ["grid", "qalora"])
def test_a_token_table(kind: str, mode: str, tiny_quantized_dir: Path) -> None:
    loaded = base.load(str(tiny_quantized_dir), compute=mode)
    lora.attach(loaded.model, rank=4, scale=2.0, keys=["model.embed_tokens"], kind=kind)
    table = loaded.model.model.embed_tokens
    moved(table)
    ids = mx.array([[5, 9, 5]])
    stored = base.load(str(tiny_quantized_dir), compute="quantized").model.model.embed_tokens
    every = mx.arange(stored.weight.shape[0])
    tuned = np.array(stored(every) + table.delta(), np.float64)
    assert furthest(table(ids), tuned[np.array(ids)]) < 1e-5
    x = mx.random.normal((1, 3, 64))
    assert furthest(table.as_linear(x), np.array(x) @ tuned.T) < 1e-5

    def loss(values: dict[str, mx.array]) -> mx.array:
        table.update(values)
        return (table(ids) ** 2).sum()

    gradients = mx.grad(loss)({name: table[name] for name in table.factors})
    assert all(float(mx.abs(g).max().item()) > 0 for g in gradients.values())


def test_qalora_is_a_lora_with_a_constant_a_in_each_group(tiny_quantized_dir: Path) -> None:
    loaded = base.load(str(tiny_quantized_dir))
    lora.attach(loaded.model, rank=4, scale=2.0, kind="qalora")
    layer = loaded.model.layers[0].mlp.down_proj
    moved(layer)
    a, b = layer.pair()
    assert a.shape == (128, 4) and np.array_equal(
        np.array(a)[:64], np.tile(np.array(a)[:1], (64, 1))
    )
    stored = base.load(str(tiny_quantized_dir), compute="quantized").model.layers[0].mlp.down_proj
    scales, biases = grid.merged_grid(layer)
    assert np.array_equal(np.array(scales), np.array(stored.scales))
    merged = mx.dequantize(stored.weight, scales, biases, group_size=64, bits=4)
    x = mx.random.normal((5, 128))
    assert furthest(layer(x), np.array(x @ merged.T, np.float64)) < 1e-5
    assert b.shape == (4, 64)


def test_only_an_affine_base_will_do(tiny_model_dir: Path, tiny_quantized_dir: Path) -> None:
    plain, other, quantized = (
        base.load(str(path)).model for path in (tiny_model_dir, tiny_model_dir, tiny_quantized_dir)
    )
    nn.quantize(other, group_size=32, bits=4, mode="mxfp4")
    for model, options, reason in (
        (plain, {}, r"needs a quantized model.*mlx_lm\.convert"),
        (plain, {"keys": ["q_proj"]}, r"layers\.0\.self_attn\.q_proj"),
        (other, {"kind": "qalora"}, r"affine mode; 14 are not \(mxfp4\): model.layers.0"),
        (quantized, {"dropout": 0.1}, "no dropout"),
    ):
        with pytest.raises(ModelError, match=reason):
            lora.attach(model, rank=4, scale=2.0, **{"kind": "grid", **options})
    with pytest.raises(ModelError, match="does not live on the grid"):
        grid.merged_grid(nn.Linear(2, 2))
    # Other adapters let go of the packed weights.
    layer = quantized.layers[0].mlp.up_proj
    assert compute.packed(layer) is not None
    lora.attach(quantized, rank=4, scale=2.0)
    assert compute.packed(layer) is None
