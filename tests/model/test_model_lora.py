"""LoRA layers, adapters on disk, compute modes and vetting."""

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
from mlx.utils import tree_map

from mlx_itune.kit.errors import ItuneError, ModelError, UsageError
from mlx_itune.model.adapters import adapter, lora
from mlx_itune.model.loading import base
from mlx_itune.model.loading.vetting import vet
from tests.model.adapter_layers import IDS, saved


def test_the_start_is_a_function_of_seed_and_path(tiny_model_dir: Path) -> None:
    def start(seed: int, keys: list[str] | None) -> Any:
        loaded = base.load(str(tiny_model_dir))
        lora.attach(loaded.model, rank=4, scale=2.0, seed=seed, keys=keys)
        return np.array(loaded.model.layers[1].mlp.up_proj.lora_a)

    assert np.array_equal(start(1, None), start(1, ["mlp.up_proj"]))
    assert not np.array_equal(start(1, None), start(2, None))
    assert np.abs(start(1, None)).max() <= 64**-0.5


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


def test_adapters_that_do_not_fit_are_refused(
    tiny_model_dir: Path, tiny_quantized_dir: Path, tmp_path: Path
) -> None:
    saved(tiny_model_dir, tmp_path / "a")
    stored = adapter.load(tmp_path / "a")
    adapter.apply(base.load(str(tiny_quantized_dir)), replace(stored, any_base=True))
    name, *rest = stored.tensors
    fewer = {other: stored.tensors[other] for other in rest}
    with pytest.raises(ModelError, match=f"{name} is missing"):
        adapter.apply(base.load(str(tiny_model_dir)), replace(stored, tensors=fewer))
    adapter.write_arrays(tmp_path / "a" / adapter.TENSORS, {name: mx.array([float("nan")])})
    for folder, reason in ((tmp_path / "a", "NaN"), (tmp_path, "no adapter directory")):
        with pytest.raises(ModelError, match=reason):
            adapter.load(folder)


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


def _config(path: Path, **changes: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


def _index(path: Path, file: str) -> None:
    index = json.dumps({"weight_map": {"x": file}})
    (path / "model.safetensors.index.json").write_text(index)


FAULTS: list[tuple[Any, str]] = [
    (lambda p: _config(p, auto_map={"AutoModel": "m.M"}), "custom code"),
    (lambda p: _config(p, model_file="m.py"), "custom code"),
    (lambda p: (p / "tokenization.py").write_text("1"), "Python file"),
    (lambda p: (p / "w.bin").write_bytes(b"x"), "pickled"),
    (lambda p: (p / "w.dat").write_bytes(b"\x80\x04x"), "pickled"),
    (lambda p: (p / "model.safetensors").write_bytes(b"nonsense"), "not a valid"),
    (lambda p: (p / "model.safetensors").unlink(), "no model"),
    (lambda p: (p / "config.json").write_text("{"), "not valid JSON"),
    (lambda p: (p / "config.json").unlink(), "no config.json"),
    (lambda p: _config(p, model_type="lama"), "did you mean llama"),
    (lambda p: (p / "tokenizer.json").unlink(), "no tokenizer"),
    (lambda p: _index(p, "../evil.safetensors"), "outside the model"),
    (lambda p: _index(p, "model-00002-of-00002.safetensors"), "is missing"),
]


@pytest.mark.parametrize(("breaks", "reason"), FAULTS)
def test_vet_refuses(breaks: Any, reason: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model_dir, copy)
    assert vet(copy)["model_type"] == "llama"
    breaks(copy)
    with pytest.raises(ModelError, match=reason):
        vet(copy)


def test_a_model_that_is_not_there(
    tiny_quantized_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="unknown compute"):
        base.load(str(tiny_quantized_dir), compute="fast")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("no/such/model/at/all", str(tmp_path / "nothing")):
        with pytest.raises(ModelError, match="no such model"):
            base.load(name)
    with pytest.raises(ModelError, match="local Hub cache"):
        base.load("some-org/some-model")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ItuneError, match="not a directory"):
        base.load(str(tmp_path / "file"))
