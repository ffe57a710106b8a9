"""Every kind of adapter on disk: round trip, mlx-lm, refusals; layers by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)

import mlx.core as mx  # isort: skip
import mlx.nn as nn
from mlx_lm.models.switch_layers import SwitchLinear

from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.files import sha256_file
from mlx_itune.model.adapters import adapter, lora
from mlx_itune.model.engine import compute
from mlx_itune.model.loading import base
from tests.conftest import write_tiny_model
from tests.model.adapter_layers import IDS, moved, saved

GRID = {"group_size": 64, "bits": 4, "mode": "affine"}


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def theirs(path: Path, folder: Path) -> Any:
    from mlx_lm.utils import load_adapters, load_model

    model, _ = load_model(path)
    return np.array(load_adapters(model, str(folder))(IDS))


@pytest.mark.parametrize("keys", [None, ["q_proj", "re:.*\\.1\\.mlp\\..*"]])
@pytest.mark.parametrize("mode", ["dequantized", "quantized"])
@pytest.mark.parametrize("kind", lora.KINDS)
def test_an_adapter_comes_back_and_loads_in_mlx_lm(
    kind: str, mode: str, keys: Any, tiny_quantized_dir: Path, tmp_path: Path
) -> None:
    expected = saved(tiny_quantized_dir, tmp_path / "a", kind, keys=keys)
    plain = np.array(base.load(str(tiny_quantized_dir)).model(IDS))
    assert np.abs(plain - expected).max() > 1e-2
    stored = adapter.load(tmp_path / "a")
    again = base.load(str(tiny_quantized_dir), compute=mode)
    adapter.apply(again, stored)
    assert stored.config.kind == kind
    assert np.abs(np.array(again.model(IDS)) - expected).max() < 2e-4
    assert np.abs(theirs(tiny_quantized_dir, tmp_path / "a") - expected).max() < 2e-4
    config = json.loads((tmp_path / "a" / adapter.CONFIG).read_text())
    assert config["fine_tune_type"] == {"dora": "dora", "grid": "full"}.get(kind, "lora")
    assert (tmp_path / "a" / adapter.GRID).exists() == (kind in ("grid", "qalora"))


@pytest.mark.parametrize("mode", ["dequantized", "quantized"])
@pytest.mark.parametrize("kind", lora.KINDS)
def test_what_inference_keeps_holds_for_these_factors_only(
    kind: str, mode: str, tiny_quantized_dir: Path, tmp_path: Path
) -> None:
    keys = ["*proj", "model.embed_tokens"]
    saved(tiny_quantized_dir, tmp_path / "a", kind, keys=keys)
    loaded = base.load(str(tiny_quantized_dir), compute=mode)
    adapter.apply(loaded, adapter.load(tmp_path / "a"))
    model = loaded.model
    first = []
    for _ in range(2):
        model.train()
        trained = np.array(model(IDS))
        model.eval()
        assert np.array_equal(np.array(model(IDS)), trained)
        first.append(trained)
        for _, layer in lora.adapted(model):
            moved(layer)
    assert np.abs(first[0] - first[1]).max() > 1e-3


@pytest.mark.parametrize("bits", [2, 3, 5, 6, 8])
@pytest.mark.parametrize("kind", ["dora", "grid", "qalora"])
def test_every_width(kind: str, bits: int, tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "m", bits=bits)
    expected = saved(path, tmp_path / "a", kind)
    again = base.load(str(path))
    adapter.apply(again, adapter.load(tmp_path / "a"))
    assert np.array_equal(np.array(again.model(IDS)), expected)
    # mlx-lm's DoRA takes 32 // bits for the numbers in a word, wrong at these three widths.
    if kind != "dora" or bits not in (3, 5, 6):
        assert np.abs(theirs(path, tmp_path / "a") - expected).max() < 2e-3


@pytest.mark.parametrize("kind", lora.ON_THE_GRID)
def test_both_files_of_a_grid_adapter_have_to_agree(
    kind: str, tiny_quantized_dir: Path, tmp_path: Path
) -> None:
    saved(tiny_quantized_dir, tmp_path, kind)
    whole: Any = mx.load(str(tmp_path / adapter.TENSORS))
    mx.eval(whole)
    name = sorted(whole)[0]
    for change, reason in (
        ({name: whole[name] * 1.01}, "is not what grid.safetensors makes"),
        ({name: whole[name][:1]}, "the model needs"),
        ({name: whole[name] * float("nan")}, "NaN"),
        ({"model.x.scales": whole[name]}, "has no layer"),
    ):
        adapter.write_arrays(tmp_path / adapter.TENSORS, {**whole, **change})
        with pytest.raises(ModelError, match=reason):
            adapter.apply(base.load(str(tiny_quantized_dir)), adapter.load(tmp_path))
    adapter.write_arrays(tmp_path / adapter.TENSORS, whole)
    (tmp_path / adapter.GRID).write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="not a valid safetensors"):
        adapter.load(tmp_path)
    (tmp_path / adapter.GRID).unlink()
    with pytest.raises(ModelError, match="is missing"):
        adapter.load(tmp_path)


@pytest.mark.parametrize("kind", lora.KINDS)
def test_another_base_is_refused(kind: str, tiny_quantized_dir: Path, tmp_path: Path) -> None:
    saved(tiny_quantized_dir, tmp_path / "a", kind)
    other = write_tiny_model(tmp_path / "m", bits=4, seed=1)
    with pytest.raises(ModelError, match="was trained on tiny-4bit"):
        adapter.apply(base.load(str(other)), adapter.load(tmp_path / "a"))
    (tmp_path / "a" / adapter.PROVENANCE).unlink()
    if kind == "grid":
        # Even without provenance: the stored scales are not the factors on this base.
        with pytest.raises(ModelError, match="the base is another one"):
            adapter.apply(base.load(str(other)), adapter.load(tmp_path / "a"))


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("config.json", {"rope_theta": 5e5}, r"rope_theta is 500000\.0, was 10000\.0"),
        ("config.json", {"rms_norm_eps": 1e-3}, r"rms_norm_eps is 0\.001, was 1e-05"),
        ("config.json", {"quantization": {**GRID, "x": False}}, r"quantization\.x is False"),
        ("config.json", {"_name_or_path": "x", "use_cache": False}, None),
        ("tokenizer.json", {"version": "1.1"}, "another tokenizer"),
    ],
)
def test_a_base_whose_function_changed_is_refused(
    file: str, change: dict[str, Any], told: str | None, tiny_quantized_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_quantized_dir, tmp_path / "m")
    saved(tmp_path / "m", tmp_path / "a", "lora")
    papers = tmp_path / "a" / adapter.PROVENANCE
    trained = {"sha256": sha256_file(tmp_path / "m" / "tokenizer.json")}
    edit(papers, tokenizer=trained)
    edit(tmp_path / "m" / file, **change)
    loaded, stored = base.load(str(tmp_path / "m")), adapter.load(tmp_path / "a")
    if told is None:
        adapter.apply(loaded, stored)
        return
    with pytest.raises(ModelError, match=told):
        adapter.apply(loaded, stored)
    adapter.apply(loaded, replace(stored, any_base=True))


def test_files_that_make_no_sense(tiny_quantized_dir: Path, tmp_path: Path) -> None:
    saved(tiny_quantized_dir, tmp_path, "grid")
    file = tmp_path / adapter.CONFIG
    good = file.read_text()
    no_rank = {**json.loads(good)["lora_parameters"], "rank": 0}
    for change, reason in (
        ({"mlx_itune": {}}, "fine_tune_type 'full'"),
        ({"mlx_itune": {"adapter": "lora"}}, "not supported"),
        ({"mlx_itune": {"adapter": ["grid"]}}, r"mlx_itune\.adapter: a text is needed"),
        ({"mlx_itune": 3}, "mlx_itune: an object is needed, not 3"),
        ({"fine_tune_type": ["full"]}, "fine_tune_type: a text is needed"),
        ({"lora_parameters": no_rank}, r"lora_parameters\.rank: 1 or more"),
    ):
        edit(file, **change)
        with pytest.raises(ModelError, match=reason):
            adapter.load(tmp_path)
        file.write_text(good)
    # Papers of wrong types do not pass for none.
    (tmp_path / adapter.PROVENANCE).write_text('{"base": [1]}')
    with pytest.raises(ModelError, match=r"provenance\.json: base: an object is needed"):
        adapter.apply(base.load(str(tiny_quantized_dir)), adapter.load(tmp_path))


def test_an_adapter_of_mlx_lm_with_more_layers_than_there_are(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    expected = saved(tiny_model_dir, tmp_path, "lora")
    for count in (16, 0, -1):
        edit(tmp_path / adapter.CONFIG, num_layers=count)
        again = base.load(str(tiny_model_dir))
        adapter.apply(again, adapter.load(tmp_path))
        assert np.array_equal(np.array(again.model(IDS)), expected)


@pytest.mark.parametrize(
    ("keys", "num_layers", "count", "layers"),
    [
        (["q_proj"], -1, 2, 2),
        (["mlp.up_proj"], 1, 1, 1),
        (["*.mlp.*"], -1, 6, 2),
        (["self_attn.[qv]_proj"], -1, 4, 2),
        (["re:.*(q|v)_proj"], -1, 4, 2),
        (["model.embed_tokens"], -1, 1, 2),
        (["model.layers.0.mlp.up_proj"], -1, 1, 2),
        (["*"], -1, 15, 2),
        (["q_proj", "model.embed_tokens"], 1, 2, 1),
    ],
)
def test_layers_by_name(
    keys: list[str], num_layers: int, count: int, layers: int, tiny_model_dir: Path, tmp_path: Path
) -> None:
    expected = saved(tiny_model_dir, tmp_path, "lora", keys=keys, num_layers=num_layers)
    stored = adapter.load(tmp_path)
    assert (len(stored.tensors), stored.config.num_layers) == (2 * count, layers)
    again = base.load(str(tiny_model_dir))
    adapter.apply(again, stored)
    assert np.array_equal(np.array(again.model(IDS)), expected)
    assert np.abs(theirs(tiny_model_dir, tmp_path) - expected).max() < 2e-4


def test_names_that_fit_nothing(tiny_model_dir: Path) -> None:
    model = base.load(str(tiny_model_dir)).model
    for keys, num_layers, reason in (
        (["*.nothing"], -1, r"no layer is called \*\.nothing"),
        (["self_attn.q_prj"], -1, "did you mean self_attn.q_proj"),
        (["re:("], -1, "no regular expression"),
        (["re:((.{1,99}){1,99}){1,99}[^a-z._0-9]"], -1, "takes too long"),
        (["q_proj"], 3, "has 2 layers, not 3"),
        (["q_proj"], 0, "has 2 layers, not 0"),
        (["model.layers.0.mlp.up_proj"], 1, "outside the last layers"),
        (["model.norm"], -1, "cannot adapt a RMSNorm"),
    ):
        with pytest.raises(ModelError, match=reason):
            lora.attach(model, rank=4, scale=2.0, keys=keys, num_layers=num_layers)
    twice = base.load(str(tiny_model_dir)).model
    lora.attach(twice, rank=4, scale=2.0)
    with pytest.raises(ModelError, match="already carries an adapter"):
        lora.attach(twice, rank=4, scale=2.0)
    with pytest.raises(ModelError, match="one of lora, rslora"):
        lora.attach(model, rank=4, scale=2.0, kind="loar")


@pytest.mark.parametrize(
    ("kind", "quantized"), [("lora", False), ("lora", True), ("qalora", True), ("grid", True)]
)
def test_experts_carry_adapters(kind: str, quantized: bool) -> None:
    model, block = nn.Module(), nn.Module()
    block.experts = SwitchLinear(64, 32, 3, bias=False)
    model.layers = [block]
    if quantized:
        model.layers[0].experts = model.layers[0].experts.to_quantized(32, 4)
    compute.apply(model, "dequantized")
    x, indices = mx.random.normal((4, 1, 1, 64)), mx.array([[0], [2], [1], [2]])
    before = np.array(model.layers[0].experts(x, indices))
    assert lora.attach(model, rank=2, scale=2.0, kind=kind) == ["layers.0.experts"]
    layer = model.layers[0].experts
    assert np.array_equal(np.array(layer(x, indices)), before)
    moved(layer)
    delta = np.array(layer.delta())
    after = np.stack([delta[int(e)] @ np.array(x)[i, 0, 0] for i, e in enumerate(indices[:, 0])])
    change = np.array(layer(x, indices))[:, 0, 0] - before[:, 0, 0]
    assert np.abs(change - after).max() < 1e-5 * np.abs(after).max() + 1e-6
