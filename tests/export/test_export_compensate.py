"""Error compensation: in MLX's own format, and better than rounding for inputs like those given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mlx_itune.model  # noqa: F401  (loads the BLAS before mlx.core)

import mlx.core as mx  # isort: skip
import mlx.nn as nn
from mlx_lm.models.switch_layers import SwitchLinear

from mlx_itune.dataset.rendering.render import TokenizedExample
from mlx_itune.export.fusing.compensate import Calibration, compensated, factor, pack

OUTPUTS, INPUTS, GROUP = 48, 128, 32


def inputs(rows: int = 2000, seed: int = 0) -> Any:
    """Correlated inputs, as a layer's are."""
    draw = np.random.default_rng(seed)
    mixing = draw.normal(size=(INPUTS, INPUTS)) * np.geomspace(3, 0.05, INPUTS)[:, None]
    return (draw.normal(size=(rows, INPUTS)) @ mixing).astype(np.float32)


def rebuilt(tensors: dict[str, Any], bits: int) -> Any:
    scales, biases = (tensors[name].astype(mx.float32) for name in ("scales", "biases"))
    return np.array(mx.dequantize(tensors["weight"], scales, biases, group_size=GROUP, bits=bits))


def output_error(weight: Any, other: Any, x: Any) -> float:
    return float(np.square(x @ (weight - other).T).mean())


def random_weight(seed: int) -> Any:
    draw = np.random.default_rng(seed)
    return (draw.normal(size=(OUTPUTS, INPUTS)) / np.sqrt(INPUTS)).astype(np.float32)


def both(weight: Any, x: Any, bits: int, dtype: Any) -> tuple[Any, Any]:
    """The weight rounded for these inputs, and plainly."""
    made = compensated(weight, factor(x.T @ x, len(x)), group_size=GROUP, bits=bits, dtype=dtype)
    assert (made["scales"].dtype, made["biases"].dtype) == (dtype, dtype)
    parts = mx.quantize(mx.array(weight).astype(dtype), GROUP, bits)
    plain = dict(zip(("weight", "scales", "biases"), parts, strict=True))
    return rebuilt(made, bits), rebuilt(plain, bits)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_codes_are_packed_as_mlx_packs_them(bits: int) -> None:
    weight = mx.random.normal((7, INPUTS), key=mx.random.key(bits))
    packed, scales, _ = mx.quantize(weight, GROUP, bits)
    ones = mx.ones(scales.shape)
    codes = mx.dequantize(packed, ones, 0 * ones, group_size=GROUP, bits=bits)
    assert mx.array_equal(pack(np.array(codes), bits), packed).item()
    assert pack(np.array(codes), bits).dtype == mx.uint32


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
@pytest.mark.parametrize("bits", [3, 4, 6])
def test_the_output_changes_less_than_by_rounding(bits: int, dtype: Any) -> None:
    weight = random_weight(bits)
    x, other = inputs(seed=1), inputs(seed=1)[::-1] * 0.9
    ours, plain = both(weight, x, bits, dtype)
    # A bfloat16 grid cannot say its own scales well; what is left to gain is less.
    share = 0.5 if dtype == mx.bfloat16 and bits > 4 else 0.25
    assert output_error(weight, ours, x) < share * output_error(weight, plain, x)
    assert output_error(weight, ours, other) < share * output_error(weight, plain, other)


def test_without_inputs_it_is_plain_rounding() -> None:
    weight = mx.random.normal((OUTPUTS, INPUTS), key=mx.random.key(0))
    nothing = factor(np.zeros((INPUTS, INPUTS), np.float32), 0)
    made = compensated(weight, nothing, group_size=GROUP, bits=4, dtype=mx.float32)
    _, scales, biases = mx.quantize(weight, GROUP, 4)
    assert mx.array_equal(made["scales"], scales).item()
    assert mx.array_equal(made["biases"], biases).item()
    assert np.abs(rebuilt(made, 4) - np.array(weight)).max() <= float(mx.abs(scales).max())
    # Inputs that never were, and groups that are constant, do no harm.
    x, constant = inputs(), np.ones((OUTPUTS, INPUTS), np.float32)
    x[:, 5] = 0
    constant[:, GROUP:] = 0
    assert np.abs(both(constant, x, 4, mx.float16)[0] - constant).max() < 2e-3


def test_few_inputs_are_not_believed_too_much() -> None:
    weight = random_weight(5)
    few, many = inputs(rows=24, seed=2), inputs(rows=4000, seed=2)
    ours, plain = both(weight, few, 4, mx.float16)
    assert output_error(weight, ours, few) < 0.8 * output_error(weight, plain, few)
    assert output_error(weight, ours, many) < 1.05 * output_error(weight, plain, many)


class Two(nn.Module):  # type: ignore[misc]
    """Two layers on the same input, then one on theirs, then experts."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 16)
        self.first, self.second = nn.Linear(16, 8), nn.Linear(16, 8)
        self.third = nn.Linear(8, 8)
        self.experts = SwitchLinear(8, 4, 3)

    def inputs(self, ids: Any) -> tuple[Any, Any, Any]:
        x = self.table(ids)
        low = self.first(x) + self.second(x)
        return x, low, self.third(low)

    def __call__(self, ids: Any) -> Any:
        y = self.inputs(ids)[2]
        return self.experts(mx.expand_dims(y, (-2, -3)), (ids % 2)[..., None])


def examples() -> list[TokenizedExample]:
    return [
        TokenizedExample(np.array(ids, np.int32), np.ones(len(ids), np.float32), str(n))
        for n, ids in enumerate([[3, 4, 9, 11], [7, 8], [20, 21, 22]])
    ]


@pytest.mark.parametrize("budget_bytes", [1 << 20, 1100])
def test_moments_are_those_of_the_inputs(budget_bytes: int) -> None:
    model = Two()
    layers = {name: model[name] for name in ("table", "first", "second", "third", "experts")}
    kinds = {name: type(layer) for name, layer in layers.items()}
    calibration = Calibration(model, layers, examples(), budget_bytes=budget_bytes)
    for _ in range(2):
        found = dict(calibration.moments())
        wide = budget_bytes > 2000
        assert set(found) == {"first", "second", "third", "experts"}
        assert {name: type(layer) for name, layer in layers.items()} == kinds
        assert (found["first"] is found["second"]) == wide
    # A layer whose moments alone are beyond the budget is left out.
    narrow = Calibration(model, layers, examples(), budget_bytes=4 * 8 * 8)
    assert [path for path, _ in narrow.moments()] == ["third"]
    every = np.concatenate([example.input_ids for example in examples()])
    x, low, y = (np.array(each) for each in model.inputs(mx.array(every)))
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(np.array(found["first"].total), x.T @ x, **close)
    np.testing.assert_allclose(np.array(found["third"].total), low.T @ low, **close)
    for expert in range(3):
        seen = y[every % 2 == expert]
        assert found["experts"].count[expert] == len(seen)
        np.testing.assert_allclose(found["experts"].total[expert], seen.T @ seen, **close)
