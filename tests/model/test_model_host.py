"""A long row computed at once, by NumPy and BLAS: the definitions' values and gradients."""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from architectures import furthest, loss_and_gradients

import mlx.core as mx  # isort: skip
import mlx.nn as nn
from mlx.utils import tree_map

from mlx_itune.model.adapters import lora
from mlx_itune.model.engine import compute, cpu, host, host_attention, loss
from mlx_itune.model.engine.checkpointing import checkpointed_blocks
from mlx_itune.model.engine.cpu_attention import causal_plan
from mlx_itune.model.engine.host_layers import linear, nll, rms_norm, swiglu, turn
from mlx_itune.model.engine.rotary import install
from mlx_itune.model.engine.training_caches import Rows, caches
from mlx_itune.model.loading import backend
from mlx_itune.model.loading.base import load

pytestmark = pytest.mark.skipif(not cpu.is_faster(), reason="only Linux CPUs compute rows at once")
BLOCK = host_attention.BLOCK_TOKENS


def _normal(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _given(array: Any, dtype: Any = mx.float32) -> Any:
    """In memory as attention gets it: the axis before the last two lies between them."""
    axes = (-3, -2) if array.ndim > 2 else (0, 0)
    return mx.array(np.ascontiguousarray(array.swapaxes(*axes)), dtype).swapaxes(*axes)


def _pulled(of: Any, arrays: Sequence[Any], ahead: Any, dtype: Any = mx.float32) -> list[Any]:
    """A function's value, and its gradients for the cotangent `ahead`."""
    given = [_given(array, dtype) for array in arrays]
    return [np.array(a) for part in mx.vjp(of, given, [_given(ahead, dtype)]) for a in part]


def _assert_near(ours: Sequence[Any], expected: Sequence[Any]) -> None:
    for one, other in zip(ours, expected, strict=True):
        assert one.shape == other.shape and one.dtype == np.float32
        assert np.abs(one - other).max() <= 2e-5 * np.abs(other).max()


def _framed(matrix: Any, around: float = np.nan) -> tuple[Any, Any]:
    """A larger matrix, and the part of it that is this one."""
    frame = np.pad(matrix, ((1, 2), (3, 1)), constant_values=around)
    return frame, frame[1:-2, 3:-1]


LAYOUTS: tuple[Callable[[Any], Any], ...] = (
    lambda m: m,
    lambda m: np.ascontiguousarray(m.T).T,
    lambda m: _framed(m)[1],
    lambda m: _framed(m.T)[1].T,
    lambda m: np.repeat(m, 2, axis=1)[:, ::2],
    lambda m: m[::-1],
    lambda m: np.broadcast_to(m[0], m.shape),
    lambda m: np.broadcast_to(m[:, :1], m.shape),
)


@pytest.mark.parametrize("library", ["OpenBLAS", "NumPy"])
@pytest.mark.parametrize(
    "shape", [(5, 7, 6), (1, 7, 6), (5, 1, 6), (5, 7, 1), (1, 7, 1), (1, 1, 1)]
)
def test_a_product_is_numpys(
    shape: tuple[int, int, int], library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if library == "NumPy":
        monkeypatch.setattr(backend, "_openblas", lambda: None)
    rows, inner, columns = shape
    for left, right in itertools.product(LAYOUTS, repeat=2):
        a, b, before = left(_normal(0, rows, inner)), right(_normal(1, inner, columns)), 0
        exact = -0.5 * (a.astype(np.float64) @ b.astype(np.float64))
        assert np.allclose(backend.product(a, b, -0.5), exact, rtol=1e-5, atol=1e-5)
        frame, out = _framed(np.full((rows, columns), np.nan, np.float32), 9)
        for add in (False, True):
            assert backend.product(a, b, -0.5, out=out, add=add) is out
            assert np.allclose(out, before + exact, rtol=1e-5, atol=1e-5)
            assert (frame == 9).sum() == frame.size - out.size
            out[...] = before = _normal(2, rows, columns)


def _attended(arrays: Sequence[Any], allowed: Any) -> list[Any]:
    """softmax(Q K^T / 4) V and its gradients, with every score in memory."""
    q, k, v, ahead = (array.astype(np.float64) for array in arrays)
    batch, kv_heads, tokens, _ = k.shape
    k, v = (array.repeat(q.shape[1] // kv_heads, axis=1) for array in (k, v))
    scores = np.where(allowed, q @ k.swapaxes(2, 3) / 4, -np.inf)
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = powers / powers.sum(axis=-1, keepdims=True)
    d_weights = ahead @ v.swapaxes(2, 3)
    d_scores = weights * (d_weights - (d_weights * weights).sum(axis=-1, keepdims=True)) / 4
    by_head = d_scores.swapaxes(2, 3) @ q, weights.swapaxes(2, 3) @ ahead
    d_keys = (a.reshape(batch, kv_heads, -1, tokens, a.shape[3]).sum(axis=2) for a in by_head)
    return [weights @ v, d_scores @ k, *d_keys]


@pytest.mark.parametrize(
    ("lengths", "window"),
    [([2 * BLOCK + 45], None), ([BLOCK + 31, 1, 40, 70], None), ([BLOCK + 90, 33], 50)],
)
def test_attention_is_the_masked_one_and_is_kept(
    lengths: list[int], window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = sum(lengths)
    shapes = (2, 4, tokens, 16), (2, 2, tokens, 16), (2, 2, tokens, 24), (2, 4, tokens, 24)
    arrays = [_normal(seed, *shape) for seed, shape in enumerate(shapes)]
    row, place = np.repeat(np.arange(len(lengths)), lengths), np.arange(tokens)
    distance = place[:, None] - place
    allowed = (row[:, None] == row) & (distance >= 0) & (distance < (window or tokens))
    plan, kept = causal_plan(lengths, 0, window, BLOCK), host.Kept()
    assert host_attention.fits(plan) and not host_attention.fits(causal_plan(lengths, 3, window))

    def of(q: Any, k: Any, v: Any) -> Any:
        return host_attention.attend(q, k, v, 0.25, plan)

    with host.at_once(kept):
        first = _pulled(of, arrays[:3], arrays[3])
    _assert_near(first, _attended(arrays, allowed))
    assert len(kept.outputs) == 1 and not host.active()
    monkeypatch.delattr(host_attention, "_attend")
    with host.at_once(kept, again=True):
        again = _pulled(of, arrays[:3], arrays[3])
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    assert np.array_equal(again[0], np.array(kept.outputs[0][0])) and len(kept.outputs) == 1


def _exact(array: Any) -> Any:
    return mx.array(array, mx.float64)


W, GAIN, ANGLES = _normal(10, 33, 20), _normal(11, 20), 3 * _normal(12, 70, 4)
# Of 10 dimensions, 8 are turned.
COSINES = np.concatenate([np.cos(ANGLES), np.cos(ANGLES), np.ones((70, 2))], axis=1)
SINES = np.concatenate([-np.sin(ANGLES), np.sin(ANGLES), np.zeros((70, 2))], axis=1)
X = (2, 70, 20)
# At once, the definition, and shapes of what both take: more rows than a core takes at once.
LAYERS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Sequence[tuple[int, ...]]]] = {
    "linear": (lambda x: linear(x, lambda: W, 33, None, 1), lambda x: x @ _exact(W).T, [X]),
    "low rank": (
        lambda x, a, b: linear(x, lambda: W, 33, [a, b], 2.5),
        lambda x, a, b: x @ _exact(W).T + 2.5 * (x @ a) @ b,
        [X, (20, 3), (3, 33)],
    ),
    "rms_norm": (
        lambda x: rms_norm(x, mx.array(GAIN), 0.01),
        lambda x: x / mx.sqrt((x * x).mean(-1, keepdims=True) + 0.01) * _exact(GAIN),
        [X],
    ),
    "swiglu": (swiglu, lambda gate, x: gate / (1 + mx.exp(-gate)) * x, [X, X]),
    "turn": (
        lambda x: turn(x, _given(COSINES), _given(SINES), 4),
        lambda x: (
            x * _exact(COSINES)
            + mx.concatenate([x[..., 4:8], x[..., :4], x[..., 8:]], -1) * _exact(SINES)
        ),
        [(2, 3, 70, 10)],
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_its_definition(name: str) -> None:
    at_once, definition, shapes = LAYERS[name]
    arrays = [_normal(seed, *shape) for seed, shape in enumerate(shapes)]
    ahead = _normal(9, *definition(*map(_exact, arrays)).shape)
    with host.at_once():
        ours = _pulled(at_once, arrays, ahead)
    _assert_near(ours, _pulled(definition, arrays, ahead, mx.float64))


def test_swiglu_saturates_without_a_word() -> None:
    on = np.tile(np.array([0, 1], np.float32), (1, 70, 1))
    gate = 400 * on - 200
    x, ahead = _normal(0, *gate.shape), _normal(1, *gate.shape)
    with warnings.catch_warnings(), host.at_once():
        warnings.simplefilter("error")
        ours = _pulled(swiglu, (gate, x), ahead)
    expected = 200 * on * x, on * x * ahead, 200 * on * ahead
    assert all(np.array_equal(one, other) for one, other in zip(ours, expected, strict=True))


def test_nll_is_the_definition() -> None:
    """Whatever the cotangent, a row's gradient is its sum of exponentials times too large."""
    logits, targets, rows = 5 * _normal(0, 11, 50), np.arange(11) * 4, np.arange(11)
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    sums, gradient = powers.sum(axis=1), powers.copy()
    gradient[rows, targets] -= sums
    given, cotangents = [mx.array(logits)], [mx.full((11,), 7.0), mx.zeros((11,))]
    with host.at_once():
        made = mx.vjp(lambda x: nll(x, mx.array(targets)), given, cotangents)
    expected = [np.log(sums / powers[rows, targets]), sums, gradient]
    _assert_near([np.array(array) for part in made for array in part], expected)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("group_size", [32, 64])
def test_a_quantized_layer_is_its_weights_product(group_size: int, bias: bool) -> None:
    source = nn.Linear(128, 33, bias=bias)
    source.update(tree_map(lambda a: mx.array(_normal(0, *a.shape)), source.parameters()))
    packed = nn.QuantizedLinear.from_linear(source, group_size, 4)
    layer = compute.DequantizingLinear(packed)
    mx.eval(layer.parameters())
    stored = packed.weight, packed.scales, packed.biases
    weight = np.array(mx.dequantize(*stored, group_size=group_size, bits=4), np.float64)
    x, ahead = _normal(1, 2, 40, 128), _normal(2, 2, 40, 33)
    expected = [x @ weight.T + (np.array(source.bias) if bias else 0), ahead @ weight]
    assert compute.at_once(layer, mx.array(x)) is None
    with host.at_once():
        for call in (lambda x: compute.at_once(layer, x), layer):
            _assert_near(_pulled(call, [x], ahead), expected)


@pytest.mark.parametrize(
    ("quantized", "lengths"),
    [(False, [BLOCK + 60]), (False, [BLOCK + 20, 30, 41]), (True, [BLOCK + 60])],
)
def test_a_model_learns_the_same_block_by_block(
    quantized: bool,
    lengths: list[int],
    tiny_model_dir: Path,
    tiny_quantized_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = tiny_quantized_dir if quantized else tiny_model_dir
    model = load(str(directory), float_copies=False).model
    lora.attach(model, rank=4, scale=2.0)
    factors = model.trainable_parameters()
    model.update(tree_map(lambda a: mx.array(0.1 * _normal(1, *a.shape)), factors))
    install(model)
    model.train()
    monkeypatch.setattr(loss, "chunk_rows", lambda *_: 64)
    tokens, rng = sum(lengths), np.random.default_rng(0)
    ids, weights = rng.integers(0, 300, (1, tokens)), rng.random((1, tokens)).astype(np.float32)
    weights[0, np.cumsum([0, *lengths[:-1]])] = 0
    calls, attend = [], host_attention._attend

    def counted(*given: Any) -> Any:
        calls.append(given)
        return attend(*given)

    monkeypatch.setattr(host_attention, "_attend", counted)

    def beside(*batch: Any) -> Any:
        given = caches(len(model.layers), Rows(tokens - 1, [lengths]))
        return loss.weighted_nll(*batch, caches=given)

    def alone(*batch: Any) -> Any:
        with host.at_once(), checkpointed_blocks(model, at_once=True):
            return beside(*batch)

    plain, plain_gradients = loss_and_gradients(model, beside, ids, weights)
    assert not calls
    ours, gradients = loss_and_gradients(model, alone, ids, weights)
    # A block that is made again takes what was kept.
    assert len(calls) == len(model.layers)
    assert ours == pytest.approx(plain, rel=1e-6)
    assert furthest(plain_gradients, gradients) < 2e-5


def test_fewer_outputs_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = host._pool()[0]
    monkeypatch.setattr(host, "_pool", lambda: (pool, 5))
    made = host.by_rows(lambda rows: mx.arange(12).reshape(3, 4)[rows], 3)
    assert np.array_equal(made, np.arange(12).reshape(3, 4))


def test_a_mask_of_numbers_is_added_to_scores() -> None:
    key = mx.random.split(mx.random.key(0), 4)
    q, k, v = (mx.random.normal((1, 2, 20, 8), key=key[n]) for n in range(3))
    mask = mx.random.normal((20, 20), key=key[3])
    outside = cpu.attention(q, k, v, None, 0.3, mask)
    with host.at_once():
        within = cpu.attention(q, k, v, None, 0.3, mask)
    assert mx.abs(within - outside).max().item() < 1e-5


def test_threads_of_blas_are_as_they_were() -> None:
    before = backend.blas_threads(1)
    try:
        host.on_all_cores(lambda _: None, range(3))
        assert backend.blas_threads(1) == 1
    finally:
        backend.blas_threads(before)
