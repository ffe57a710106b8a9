"""PEFT adapters out, without torch: names, products, targets, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mlx_itune.export  # noqa: F401  (loads a fast BLAS before mlx.core)
from mlx_itune.dataset.tokens.tokenizer import load_tokenizer
from mlx_itune.export.transformers.peft_verify import verify_peft
from mlx_itune.export.transformers.to_peft import export_peft
from mlx_itune.kit.errors import ModelError
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.adapters import lora, peft_format
from mlx_itune.model.loading import base
from tests.export.shipped_models import write_adapter, write_model

PREFIX = "base_model.model."
Q, UP = "model.layers.{}.self_attn.q_proj", "model.layers.{}.mlp.up_proj"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llama", "llama", bits=4)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "qwen3", "qwen3", bits=4)


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "mixtral", "mixtral", bits=4)


def ship(model: Path, root: Path, kind: str = "lora", **where: Any) -> tuple[dict[str, Any], Any]:
    """adapter_config.json and the tensors of an adapter's export."""
    adapter = write_adapter(root / "a", model, kind=kind, **where)
    export_peft(adapter, str(model), root / "peft")
    config = json.loads((root / "peft" / "adapter_config.json").read_text())
    return config, load_file(root / "peft" / "adapter_model.safetensors")


def updates(model: Path, adapter: Path) -> dict[str, Any]:
    loaded = base.load(str(model), compute="dequantized")
    adapters.apply(loaded, adapters.load(adapter))
    return {p: np.array(layer.delta()) for p, layer in lora.adapted(loaded.model)}


@pytest.mark.parametrize("kind", ["lora", "rslora", "qalora"])
def test_products_are_the_adapter_s(kind: str, llama: Path, tmp_path: Path) -> None:
    config, tensors = ship(llama, tmp_path, kind)
    assert config["lora_alpha"] / config["r"] == 1.7
    assert config["use_rslora"] is False
    wanted = updates(llama, tmp_path / "a")
    assert len(tensors) == 2 * len(wanted) == 28
    for path, update in wanted.items():
        a, b = (tensors[f"{PREFIX}{path}.lora_{part}.weight"] for part in "AB")
        assert a.shape == (4, update.shape[1])
        assert np.allclose(1.7 * b @ a, update, atol=1e-6)


def test_dora_has_its_lengths(llama: Path, tmp_path: Path) -> None:
    config, tensors = ship(llama, tmp_path, "dora", keys=["self_attn.v_proj"])
    assert config["use_dora"] is True
    loaded = base.load(str(llama), compute="dequantized")
    for path, update in updates(llama, tmp_path / "a").items():
        weight = np.array(dict(loaded.model.named_modules())[path]["weight"])
        a, b = (tensors[f"{PREFIX}{path}.lora_{part}.weight"] for part in "AB")
        tuned = weight + 1.7 * b @ a
        lengths = tensors[f"{PREFIX}{path}.lora_magnitude_vector"]
        tuned *= (lengths / np.linalg.norm(tuned, axis=1))[:, None]
        assert np.allclose(tuned - weight, update, atol=1e-5)


def targeted(config: dict[str, Any], modules: list[str]) -> set[str]:
    """As PEFT chooses: an exact path, or one's end in one of the layers."""
    layers = config.get("layers_to_transform")
    found = set()
    for module in modules:
        block = re.match(r".*\.layers\.(\d+)\.", module)
        inside = layers is None or (block is not None and int(block[1]) in layers)
        ends = any(module.endswith(f".{t}") for t in config["target_modules"])
        if module in config["target_modules"] or (ends and inside):
            found.add(module)
    return found


@pytest.mark.parametrize(
    ("where", "targets"),
    [
        ({"keys": ["q_proj", "up_proj"]}, ["q_proj", "up_proj"]),
        ({"keys": ["q_proj"], "num_layers": 1}, ["q_proj"]),
        ({"keys": [f"re:{Q.format(0)}", f"re:{UP.format(1)}"]}, [Q.format(0), UP.format(1)]),
        (
            {"keys": ["q_proj", "model.embed_tokens", "lm_head"]},
            ["lm_head", "model.embed_tokens", "q_proj"],
        ),
    ],
)
def test_targets_match_the_adapted_layers_alone(
    where: dict[str, Any], targets: list[str], llama: Path, tmp_path: Path
) -> None:
    config, tensors = ship(llama, tmp_path, **where)
    assert config["target_modules"] == targets
    modules = [p for p, _ in base.load(str(llama)).model.named_modules() if p]
    adapted = {name.removeprefix(PREFIX).partition(".lora_")[0] for name in tensors}
    assert targeted(config, modules) == adapted


def test_a_tied_table_is_the_head_too(tied: Path, tmp_path: Path) -> None:
    config, tensors = ship(tied, tmp_path, keys=["model.embed_tokens"])
    assert config["target_modules"] == ["lm_head", "model.embed_tokens"]
    a = tensors[f"{PREFIX}model.embed_tokens.lora_embedding_A"]
    b = tensors[f"{PREFIX}model.embed_tokens.lora_embedding_B"]
    assert (a.shape, b.shape) == ((4, 384), (64, 4))
    assert np.array_equal(tensors[f"{PREFIX}lm_head.lora_A.weight"], b.T)
    assert np.array_equal(tensors[f"{PREFIX}lm_head.lora_B.weight"], a.T)


def test_experts_are_modules_of_their_own(moe: Path, tmp_path: Path) -> None:
    config, tensors = ship(moe, tmp_path)
    assert {"w1", "w2", "w3", "q_proj"} <= set(config["target_modules"])
    update = updates(moe, tmp_path / "a")["model.layers.1.block_sparse_moe.switch_mlp.up_proj"]
    module = f"{PREFIX}model.layers.1.block_sparse_moe.experts.2.w3"
    a, b = (tensors[f"{module}.lora_{part}.weight"] for part in "AB")
    assert np.allclose(1.7 * b @ a, update[2], atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "where", "words"),
    [
        ("grid", {}, "no adapter that moves scales and biases"),
        ("dora", {"keys": ["model.embed_tokens"]}, "token table"),
    ],
)
def test_what_peft_has_no_form_of(
    kind: str, where: dict[str, Any], words: str, llama: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "a", llama, kind=kind, **where)
    with pytest.raises(ModelError, match=words) as caught:
        export_peft(adapter, str(llama), tmp_path / "peft")
    assert "--to hf" in str(caught.value)
    assert {p.name for p in tmp_path.iterdir()} == {"a"}


def test_a_wrapped_language_model_is_refused(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", "gemma3_text")
    file, config = model / "model.safetensors", json.loads((model / "config.json").read_text())
    save_file({f"language_model.{n}": t for n, t in load_file(file).items()}, file)
    text = {"model_type": "gemma3", "text_config": config, "vocab_size": config["vocab_size"]}
    (model / "config.json").write_text(json.dumps(text))
    with pytest.raises(ModelError, match="'gemma3' wraps its language model"):
        ship(model, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"m", "a"}


def test_half_of_a_pair_of_experts(moe: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", moe, keys=["re:.*switch_mlp.up_proj"])
    with pytest.raises(ModelError, match="together"):
        export_peft(adapter, str(moe), tmp_path / "peft")


def test_files_and_papers(llama: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", llama)
    done = export_peft(adapter, str(llama), tmp_path / "p", tokenizer=load_tokenizer(llama))
    assert {p.name for p in (tmp_path / "p").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "provenance.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert done.verify.layers == 14
    assert any("quantized" in note for note in done.notes)
    assert not any(str(tmp_path) in p.read_text() for p in (tmp_path / "p").glob("*.[jm]*[nd]"))


def test_reading_back_sees_a_wrong_factor(llama: Path, tmp_path: Path) -> None:
    _, tensors = ship(llama, tmp_path)
    loaded = base.load(str(llama), compute="dequantized")
    adapters.apply(loaded, adapters.load(tmp_path / "a"))
    layers = dict(lora.adapted(loaded.model))
    verify_peft(tmp_path / "peft", loaded.model, layers, "llama")
    tensors[f"{PREFIX}{Q.format(1)}.lora_B.weight"][3, 2] += 1e-3
    save_file(tensors, tmp_path / "peft" / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="reads back as another"):
        verify_peft(tmp_path / "peft", loaded.model, layers, "llama")


@pytest.mark.parametrize("rank", [1, 3, 7, 8, 12, 100])
def test_alpha_over_rank_is_the_scale(rank: int) -> None:
    drawn = np.random.default_rng(rank).uniform(0.01, 3000, 300).tolist()
    for alpha in [1, 16, 2.5, *drawn]:
        assert peft_format.alpha_for(alpha / rank, rank) / rank == alpha / rank
    for scale in drawn:
        # Where no float divided by the rank is the scale, its neighbour is taken.
        assert abs(peft_format.alpha_for(scale, rank) / rank - scale) <= np.spacing(scale)
