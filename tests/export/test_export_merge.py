"""Every kind of adapter on every kind of layer: merged right, in the base's type, at its size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mlx_itune.model  # noqa: F401  (loads the BLAS before mlx.core)

import mlx.core as mx  # isort: skip
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_itune.export.fusing.fidelity import Reference
from mlx_itune.kit.errors import ModelError, UsageError
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.loading import base
from tests.export.shipped_models import (
    fused,
    random_rows,
    settings,
    spoil,
    tuned,
    write_adapter,
    write_model,
)

HALF = {"float16": mx.float16, "bfloat16": mx.bfloat16}


def in_type(folder: Path, dtype: str) -> Path:
    """The same model with its floats in another type."""
    file = folder / "model.safetensors"
    wanted = HALF[dtype]
    tensors: Any = mx.load(str(file))
    cast = {n: t.astype(wanted) if t.dtype == mx.float32 else t for n, t in tensors.items()}
    mx.eval(cast)
    mx.save_safetensors(str(file), cast, metadata={"format": "mlx"})
    return folder


def tensors_of(folder: Path) -> dict[str, Any]:
    return dict(mx.load(str(folder / "model.safetensors")))


def bits_equal(one: Any, other: Any) -> bool:
    same = one.dtype == other.dtype and one.shape == other.shape
    return same and bool(mx.array_equal(one.view(mx.uint8), other.view(mx.uint8)).item())


EMBEDDED = {"keys": ["embed_tokens", "self_attn.q_proj", "mlp.down_proj"]}
EXACT = [
    ("llama", "grid", "float16", {}),
    ("llama", "grid", "bfloat16", {}),
    ("llama", "qalora", "float16", {}),
    ("qwen3", "grid", "float16", EMBEDDED),
    ("qwen3", "qalora", "float16", EMBEDDED),
    ("qwen3_moe", "grid", "float16", {}),
    ("qwen3_moe", "qalora", "float16", {}),
    ("gemma3_text", "grid", "bfloat16", {"num_layers": 1}),
]


@pytest.mark.parametrize(("name", "kind", "dtype", "where"), EXACT)
def test_an_adapter_of_the_grid_keeps_the_codes(
    name: str, kind: str, dtype: str, where: dict[str, Any], tmp_path: Path
) -> None:
    folder = in_type(write_model(tmp_path / "base", name, bits=4), dtype)
    adapter = write_adapter(tmp_path / "adapter", folder, kind=kind, **where)
    result = fused(folder, adapter, tmp_path / "out")
    assert (result.way, result.bits, len(result.tried)) == ("exact", 4, 1)
    assert result.calibration_rows == 0
    # A grid adapter was trained with scales that its base's type can say; a qalora's are rounded.
    assert result.kl_mean <= (1e-9 if kind == "grid" else 1e-5)
    # The first two choices of random weights may be as near as that.
    assert result.top1_agreement >= (1 if kind == "grid" else 0.98)
    assert abs(result.bytes / result.base_bytes - 1) < 0.02
    before, after = tensors_of(folder), tensors_of(tmp_path / "out")
    assert before.keys() == after.keys()
    moved = {n for n in before if not bits_equal(before[n], after[n])}
    assert moved
    kinds = {n.rpartition(".")[2] for n in moved if not n.endswith("norm.weight")}
    assert kinds <= {"scales", "biases"}
    # A grid adapter moves the norms of its blocks, too, unless told which layers.
    assert any(n.endswith("norm.weight") for n in moved) == (kind == "grid" and "keys" not in where)
    assert {t.dtype for t in after.values()} == {t.dtype for t in before.values()}
    grid = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]
    assert grid == {"group_size": 32, "bits": 4, "mode": "affine"}
    # mlx-lm's own reader and kernels.
    opened = base.reopen(tmp_path / "out")[0]
    assert opened(mx.array([[7, 8, 9]])).dtype == HALF[dtype]
    opened.set_dtype(mx.float32)
    assert Reference(tuned(folder, adapter), random_rows(6)).compare(opened).kl_mean <= 1e-5


def test_a_coarse_base_takes_a_qalora_in_float16_where_its_own_type_is_too_coarse(
    tmp_path: Path,
) -> None:
    folder = in_type(write_model(tmp_path / "base", "llama", bits=4), "bfloat16")
    adapter = write_adapter(tmp_path / "adapter", folder, kind="qalora")
    own = fused(folder, adapter, tmp_path / "own", max_kl=1.0)
    assert {t.dtype for t in tensors_of(tmp_path / "own").values()} == {mx.bfloat16, mx.uint32}
    half = fused(folder, adapter, tmp_path / "half", max_kl=own.kl_mean / 2)
    assert half.method.endswith("in float16")
    assert [t.way for t in half.tried] == ["exact", "exact"]
    assert half.kl_mean < min(1e-5, own.kl_mean / 10)
    # The header spells the type with a letter less.
    assert abs(half.bytes - own.bytes) < 100
    opened = base.reopen(tmp_path / "half")[0]
    assert opened(mx.array([[7, 8, 9]])).dtype == mx.float16


ANY = [
    ("llama", "lora", "float16", {}),
    ("qwen3", "rslora", "bfloat16", EMBEDDED),
    ("qwen3", "dora", "float16", EMBEDDED),
    ("qwen3_moe", "lora", "float16", {}),
    ("qwen3", "grid", "float16", {}),
    ("stablelm", "dora", "bfloat16", {}),
]


@pytest.mark.parametrize(("name", "kind", "dtype", "where"), ANY)
def test_floats_and_wider_grids_hold_every_kind(
    name: str, kind: str, dtype: str, where: dict[str, Any], tmp_path: Path
) -> None:
    folder = in_type(write_model(tmp_path / "base", name, bits=4), dtype)
    adapter = write_adapter(tmp_path / "adapter", folder, kind=kind, **where)
    found = {}
    for way, bits in (("float", 16), ("compensated", 8), ("plain", 8), ("plain", 4)):
        out = tmp_path / f"{way}-{bits}"
        result = fused(folder, adapter, out, way=way, bits=bits, allow_lossy=True)
        found[way, bits] = result.kl_mean
        after = tensors_of(out)
        touched = {n.rpartition(".")[0] for n in adapters.load(adapter).tensors}
        assert {t.dtype for t in after.values()} <= {HALF[dtype], mx.uint32}
        # What no adapter touched, a layer's own bias too, is as it was; floats unpack all.
        for tensor, value in tensors_of(folder).items():
            if tensor.rpartition(".")[0] in touched and "norm" in tensor:
                assert not bits_equal(value, after[tensor]), tensor
            elif tensor.endswith(("norm.weight", "proj.bias")):
                assert bits_equal(value, after[tensor]), tensor
        if bits != 16:
            model = base.read(out)[0]
            wide = {p for p, m in model.named_modules() if getattr(m, "bits", None) == 8}
            quantized = {p for p, m in model.named_modules() if hasattr(m, "bits")}
            assert wide == (touched & quantized if bits == 8 else set())
    # Rounding to a half of 11 or 8 bits; then to 8 bits; then to 4.
    assert found["float", 16] < (2e-5 if dtype == "float16" else 1e-3)
    assert found["compensated", 8] < 3e-3
    assert found["plain", 8] < found["plain", 4] / 20


@pytest.mark.parametrize(
    ("kind", "dtype", "limit"), [("lora", "bfloat16", 1e-3), ("dora", "float16", 1e-5)]
)
def test_a_float_base_keeps_its_type(kind: str, dtype: str, limit: float, tmp_path: Path) -> None:
    folder = in_type(write_model(tmp_path / "base", "stablelm"), dtype)
    adapter = write_adapter(tmp_path / "adapter", folder, kind=kind)
    result = fused(folder, adapter, tmp_path / "out", allow_lossy=True)
    assert (result.way, result.bits) == ("float", 16)
    assert {t.dtype for t in tensors_of(tmp_path / "out").values()} == {HALF[dtype]}
    assert abs(result.bytes / result.base_bytes - 1) < 0.02
    assert result.kl_mean < limit
    # It can be quantized, too.
    eight = fused(folder, adapter, tmp_path / "eight", bits=8, max_kl=1.0)
    assert result.kl_mean < eight.kl_mean < 1e-2
    assert result.bytes > 1.6 * eight.bytes


def test_another_grid_is_replaced_where_it_is_touched(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "base", "llama", bits=4, mode="mxfp4")
    adapter = write_adapter(tmp_path / "adapter", folder, keys=["mlp.down_proj"])
    result = fused(folder, adapter, tmp_path / "out", way="compensated", bits=6, max_kl=1.0)
    grids = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]
    grid = {"group_size": 64, "bits": 6, "mode": "affine"}
    assert grids["model.layers.0.mlp.down_proj"] == grid
    assert (grids["mode"], result.bits) == ("mxfp4", 6)
    # Its own grid is not one that errors are compensated on, and nothing says they were.
    own = fused(folder, adapter, tmp_path / "own", bits=4, max_kl=1.0)
    assert (own.way, own.calibration_rows) == ("plain", 0)


def test_a_wider_layer_of_a_mixed_base_stays_wide(tmp_path: Path) -> None:
    folder, wide = write_model(tmp_path / "base", "llama"), "model.layers.0.mlp.down_proj"
    model = base.read(folder)[0]
    nn.quantize(model, 32, 8, class_predicate=lambda path, _: path == wide)
    nn.quantize(model, 32, 4)
    tensors = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "mlx"})
    grid = {"group_size": 32, "bits": 4, "mode": "affine"}
    settings(folder / "config.json", quantization=grid | {wide: {"group_size": 32, "bits": 8}})
    adapter = write_adapter(tmp_path / "adapter", folder)
    fused(folder, adapter, tmp_path / "out", bits=6, allow_lossy=True)
    made = dict(base.read(tmp_path / "out")[0].named_modules())
    places = (wide, "model.layers.1.mlp.down_proj", "model.embed_tokens")
    assert [made[path].bits for path in places] == [8, 6, 4]


def test_ways_that_cannot_be_are_refused(tmp_path: Path) -> None:
    folder = in_type(write_model(tmp_path / "base", "llama", bits=4), "float16")
    adapter, out = write_adapter(tmp_path / "adapter", folder), tmp_path / "out"
    for options, kind, words in [
        ({"way": "exact"}, ModelError, "adapter of the grid"),
        ({"way": "exactly"}, UsageError, "no way"),
        ({"bits": 7}, UsageError, "no grid has 7 bits"),
        ({"way": "float", "bits": 4}, UsageError, "no such way"),
        ({"way": "compensated", "calibration": []}, UsageError, "rows to calibrate on"),
    ]:
        with pytest.raises(kind, match=words):
            fused(folder, adapter, out, **options)
    # What it adds is a number, but none of a half.
    spoil(adapter / "adapters.safetensors", "model.layers.0.self_attn.q_proj.lora_a", 1e8)
    for lossy in (False, True):
        with pytest.raises(ModelError, match="too large for its type"):
            fused(folder, adapter, out, way="float", allow_lossy=lossy)
    assert not out.exists()
