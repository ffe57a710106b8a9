"""LoRA layers, adapters on disk, compute modes and vetting."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)

import mlx.core as mx  # isort: skip
from mlx.utils import tree_map

from mlx_itune.kit.errors import ItuneError, ModelError, UsageError
from mlx_itune.model.adapters import adapter, lora
from mlx_itune.model.engine import compute
from mlx_itune.model.loading import base
from mlx_itune.model.loading.vetting import vet

IDS = mx.array([[3, 7, 20, 9, 250, 11]])
CONFIG = {"rank": 4, "scale": 2.0, "dropout": 0.0}


def _adapted(path: Path) -> tuple[base.LoadedModel, adapter.AdapterConfig]:
    loaded = base.load(str(path), offline=True)
    lora.attach(loaded.model, rank=4, scale=2.0, seed=3)
    keys = lora.placed(loaded.model)[0]
    moved = tree_map(lambda a: a + 0.05, loaded.model.trainable_parameters())
    loaded.model.update(moved)
    return loaded, adapter.AdapterConfig(4, 2.0, 0.0, keys, 2)


def test_at_step_zero_the_adapted_model_is_the_base(tiny_quantized_dir: Path) -> None:
    loaded = base.load(str(tiny_quantized_dir))
    before = np.array(loaded.model(IDS))
    paths = lora.attach(loaded.model, rank=4, scale=2.0, seed=1)
    assert len(paths) == 14
    assert np.array_equal(np.array(loaded.model(IDS)), before)


def test_the_start_is_a_function_of_seed_and_path(tiny_model_dir: Path) -> None:
    def start(seed: int, keys: list[str] | None) -> Any:
        loaded = base.load(str(tiny_model_dir))
        lora.attach(loaded.model, rank=4, scale=2.0, seed=seed, keys=keys)
        return np.array(loaded.model.layers[1].mlp.up_proj.lora_a)

    assert np.array_equal(start(1, None), start(1, ["mlp.up_proj"]))
    assert not np.array_equal(start(1, None), start(2, None))
    assert np.abs(start(1, None)).max() <= 64**-0.5


def test_a_wrong_key_gets_a_did_you_mean(tiny_model_dir: Path) -> None:
    loaded = base.load(str(tiny_model_dir))
    with pytest.raises(ModelError, match=r"did you mean self_attn\.q_proj"):
        lora.attach(loaded.model, rank=4, scale=2.0, keys=["self_attn.q_prj"])
    with pytest.raises(ModelError, match="cannot adapt a RMSNorm"):
        lora.attach(loaded.model, rank=4, scale=2.0, keys=["input_layernorm"])


def test_merge_delta_is_what_the_layer_adds(tiny_model_dir: Path) -> None:
    loaded, _ = _adapted(tiny_model_dir)
    layer = loaded.model.layers[0].mlp.down_proj
    x = mx.random.normal((5, 128), key=mx.random.key(0))
    merged = x @ (layer.linear.weight + layer.delta()).T
    assert np.allclose(np.array(merged), np.array(layer(x)), atol=1e-4)


def test_dropout_is_drawn_from_the_key_and_off_otherwise(tiny_model_dir: Path) -> None:
    loaded = base.load(str(tiny_model_dir))
    lora.attach(loaded.model, rank=4, scale=2.0, dropout=0.5)
    loaded.model.update(tree_map(lambda a: a + 0.05, loaded.model.trainable_parameters()))
    loaded.model.train()

    def logits(seed: int | None) -> Any:
        lora.set_dropout_key(loaded.model, None if seed is None else mx.random.key(seed))
        return np.array(loaded.model(IDS))

    assert np.array_equal(logits(1), logits(1))
    assert not np.array_equal(logits(1), logits(2))
    assert not np.array_equal(logits(None), logits(1))
    loaded.model.eval()
    assert np.array_equal(logits(1), logits(None))


@pytest.mark.parametrize("kind", ["tiny_model_dir", "tiny_quantized_dir"])
def test_an_adapter_comes_back_and_loads_in_mlx_lm(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    from mlx_lm.utils import load_adapters, load_model

    path = request.getfixturevalue(kind)
    loaded, config = _adapted(path)
    origin = {"base": loaded.papers()}
    adapter.save(tmp_path / "a", loaded.model, config, origin)
    expected = np.array(loaded.model(IDS))

    again = base.load(str(path))
    stored = adapter.load(tmp_path / "a")
    adapter.apply(again, stored)
    assert stored.config == config
    assert np.array_equal(np.array(again.model(IDS)), expected)

    theirs, _ = load_model(path)
    theirs = load_adapters(theirs, str(tmp_path / "a"))
    assert np.allclose(np.array(theirs(IDS)), expected, atol=2e-4)


def test_adapters_that_do_not_fit_are_refused(
    tiny_model_dir: Path, tiny_quantized_dir: Path, tmp_path: Path
) -> None:
    loaded, config = _adapted(tiny_model_dir)
    origin = {"base": loaded.papers()}
    adapter.save(tmp_path / "a", loaded.model, config, origin)
    stored = adapter.load(tmp_path / "a")
    with pytest.raises(ModelError, match="was trained on tiny"):
        adapter.apply(base.load(str(tiny_quantized_dir)), stored)
    adapter.apply(base.load(str(tiny_quantized_dir)), stored, allow_other_base=True)

    name = next(iter(stored.tensors))
    for tensors, reason in (
        ({k: v for k, v in stored.tensors.items() if k != name}, "is missing"),
        ({**stored.tensors, "model.layers.9.x.lora_a": mx.zeros((2, 2))}, "has no layer"),
        ({**stored.tensors, name: mx.zeros((2, 2))}, "the model needs"),
    ):
        with pytest.raises(ModelError, match=reason):
            wrong = adapter.Adapter(config, tensors, stored.provenance)
            adapter.apply(base.load(str(tiny_model_dir)), wrong)

    adapter.write_arrays(tmp_path / "a" / adapter.TENSORS, {name: mx.array([float("nan")])})
    with pytest.raises(ModelError, match="NaN"):
        adapter.load(tmp_path / "a")
    with pytest.raises(ModelError, match="no adapter directory"):
        adapter.load(tmp_path)


def test_every_compute_is_the_same_function(
    tiny_quantized_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def logits_and_gradient(mode: str) -> tuple[Any, Any]:
        loaded = base.load(str(tiny_quantized_dir), compute=mode)
        lora.attach(loaded.model, rank=4, scale=2.0)
        parameters = tree_map(lambda a: a + 0.05, loaded.model.trainable_parameters())

        def total(values: Any) -> Any:
            loaded.model.update(values)
            return (loaded.model(IDS) ** 2).sum()

        gradients = mx.grad(total)(parameters)
        loaded.model.update(parameters)
        layer = gradients["model"]["layers"][0]["self_attn"]["q_proj"]["lora_a"]
        return np.array(loaded.model(IDS)), np.array(layer)

    resident = logits_and_gradient("dequantized")
    quantized = logits_and_gradient("quantized")
    monkeypatch.setattr(compute, "_RESIDENT_SHARE", 0.0)
    inside = logits_and_gradient("dequantized")
    for other in (quantized, inside):
        for ours, theirs in zip(resident, other, strict=True):
            assert np.abs(ours - theirs).max() < 1e-4 * np.abs(ours).max()
    with pytest.raises(UsageError, match="unknown compute"):
        base.load(str(tiny_quantized_dir), compute="fast")


def test_the_fingerprint_ignores_sharding(tiny_model_dir: Path, tmp_path: Path) -> None:
    whole = base.fingerprint(tiny_model_dir)
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model_dir, copy)
    tensors: Any = mx.load(str(copy / "model.safetensors"))
    mx.eval(tensors)
    names = sorted(tensors)
    (copy / "model.safetensors").unlink()
    for part, chosen in (("a", names[::2]), ("b", names[1::2])):
        adapter.write_arrays(copy / f"model-{part}.safetensors", {n: tensors[n] for n in chosen})
    assert base.fingerprint(copy) == whole
    tensors[names[0]] = tensors[names[0]] + 1
    adapter.write_arrays(copy / "model-a.safetensors", {n: tensors[n] for n in names[::2]})
    assert base.fingerprint(copy) != whole


def _edit(path: Path, **changes: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


FAULTS: dict[str, tuple[Any, str]] = {
    "auto_map": (lambda p: _edit(p, auto_map={"AutoModel": "m.M"}), "custom code"),
    "model_file": (lambda p: _edit(p, model_file="m.py"), "custom code"),
    "python": (lambda p: (p / "tokenization.py").write_text("1"), "Python file"),
    "pickle": (lambda p: (p / "w.bin").write_bytes(b"x"), "pickled"),
    "hidden pickle": (lambda p: (p / "w.dat").write_bytes(b"\x80\x04x"), "pickled"),
    "weights": (lambda p: (p / "model.safetensors").write_bytes(b"nonsense"), "not a valid"),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), "no model"),
    "config": (lambda p: (p / "config.json").write_text("{"), "not valid JSON"),
    "no config": (lambda p: (p / "config.json").unlink(), "no config.json"),
    "type": (lambda p: _edit(p, model_type="lama"), "did you mean llama"),
    "tokenizer": (lambda p: (p / "tokenizer.json").unlink(), "no tokenizer"),
    "index": (
        lambda p: (p / "model.safetensors.index.json").write_text(
            '{"weight_map": {"x": "../evil.safetensors"}}'
        ),
        "outside the model",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_vet_refuses(fault: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model_dir, copy)
    assert vet(copy)["model_type"] == "llama"
    breaks, reason = FAULTS[fault]
    breaks(copy)
    with pytest.raises(ModelError, match=reason):
        vet(copy)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    for name in ("no/such/model/at/all", str(tmp_path / "nothing")):
        with pytest.raises(ModelError, match="no such model"):
            base.load(name, offline=True)
    with pytest.raises(ModelError, match="local Hub cache"):
        base.load("some-org/some-model", offline=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ItuneError, match="not a directory"):
        base.load(str(tmp_path / "file"))
