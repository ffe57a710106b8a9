"""PEFT adapters out and in, without torch: products, targets, exact round trips, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mlx_itune.export  # noqa: F401  (loads a fast BLAS before mlx.core)

import mlx.core as mx  # isort: skip
from mlx_itune.dataset.tokens.tokenizer import load_tokenizer
from mlx_itune.export.formats import export
from mlx_itune.export.request import Request
from mlx_itune.export.transformers.to_peft import verify_peft
from mlx_itune.kit.errors import ModelError
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.adapters import lora, peft_format
from mlx_itune.model.adapters.from_peft import import_peft
from mlx_itune.model.loading import base
from tests.export.shipped_models import write_adapter, write_model

PREFIX = "base_model.model."
SLOW = r"((.{1,99}){1,99}){1,99}[^a-z._0-9]"
Q, UP = "model.layers.{}.self_attn.q_proj", "model.layers.{}.mlp.up_proj"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {n: write_model(root / n, n, bits=4) for n in ("llama", "qwen3", "mixtral")}


@pytest.fixture
def llama(models: dict[str, Path]) -> Path:
    return models["llama"]


def ship(model: Path, root: Path, kind: str = "lora", **where: Any) -> tuple[dict[str, Any], Any]:
    """adapter_config.json and the tensors of an adapter's export."""
    adapter = write_adapter(root / "a", model, kind=kind, **where)
    export(Request(str(model), adapter, root / "peft", load_tokenizer(model), "peft"))
    config = json.loads((root / "peft" / "adapter_config.json").read_text())
    return config, load_file(root / "peft" / "adapter_model.safetensors")


def updates(model: Path, adapter: Path) -> dict[str, Any]:
    loaded = base.load(str(model), compute="dequantized")
    adapters.apply(loaded, adapters.load(adapter))
    return {p: np.array(layer.delta()) for p, layer in lora.adapted(loaded.model)}


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
    # PEFT takes all whose names end so, of these layers.
    assert config.get("layers_to_transform") == ([1] if "num_layers" in where else None)
    ends = tuple(f".{target}" for target in targets)
    adapted = {name.removeprefix(PREFIX).partition(".lora_")[0] for name in tensors}
    assert all(f".{path}".endswith(ends) for path in adapted)


def test_tables_and_experts_have_peft_s_names(models: dict[str, Path], tmp_path: Path) -> None:
    config, tensors = ship(models["qwen3"], tmp_path / "tied", keys=["model.embed_tokens"])
    assert config["target_modules"] == ["lm_head", "model.embed_tokens"]
    a, b = (tensors[f"{PREFIX}model.embed_tokens.lora_embedding_{part}"] for part in "AB")
    assert (a.shape, b.shape) == ((4, 384), (64, 4))
    assert np.array_equal(tensors[f"{PREFIX}lm_head.lora_A.weight"], b.T)
    assert np.array_equal(tensors[f"{PREFIX}lm_head.lora_B.weight"], a.T)
    config, tensors = ship(models["mixtral"], tmp_path / "experts")
    assert {"w1", "w2", "w3", "q_proj"} <= set(config["target_modules"])
    path = "model.layers.1.block_sparse_moe"
    update = updates(models["mixtral"], tmp_path / "experts/a")[f"{path}.switch_mlp.up_proj"]
    a, b = (tensors[f"{PREFIX}{path}.experts.2.w3.lora_{part}.weight"] for part in "AB")
    assert np.allclose(1.7 * b @ a, update[2], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "kind", "where", "words"),
    [
        ("llama", "grid", {}, "no adapter that moves scales and biases.*--to hf"),
        ("llama", "dora", {"keys": ["model.embed_tokens"]}, "token table.*--to hf"),
        ("mixtral", "lora", {"keys": ["re:.*switch_mlp.up_proj"]}, "together.*--to hf"),
    ],
)
def test_what_peft_has_no_form_of(
    name: str, kind: str, where: dict[str, Any], words: str, models: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=words):
        ship(models[name], tmp_path, kind, **where)
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


def test_what_is_written_and_that_reading_back_sees_a_wrong_factor(
    llama: Path, tmp_path: Path
) -> None:
    adapter, out = write_adapter(tmp_path / "a", llama), tmp_path / "p"
    done = export(Request(str(llama), adapter, out, load_tokenizer(llama), "peft"))
    own = {"README.md", "adapter_config.json", "adapter_model.safetensors", "provenance.json"}
    tokenizer = {"chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}
    assert {p.name for p in out.iterdir()} == own | tokenizer
    assert done.verify.layers == 14
    assert any("quantized" in note for note in done.notes)
    assert not any(str(tmp_path) in p.read_text() for p in out.glob("*.[jm]*[nd]"))
    tensors = load_file(out / "adapter_model.safetensors")
    loaded = base.load(str(llama), compute="dequantized")
    adapters.apply(loaded, adapters.load(adapter))
    layers = dict(lora.adapted(loaded.model))
    verify_peft(out, layers, "llama")
    tensors[f"{PREFIX}{Q.format(1)}.lora_B.weight"][3, 2] += 1e-3
    save_file(tensors, out / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="reads back as another"):
        verify_peft(out, layers, "llama")


@pytest.mark.parametrize("rank", [1, 3, 7, 8, 12, 100])
def test_alpha_over_rank_is_the_scale(rank: int) -> None:
    drawn = np.random.default_rng(rank).uniform(0.01, 3000, 300).tolist()

    def alpha_of(scale: float) -> float:
        return peft_format.alpha_of(adapters.AdapterConfig(rank, scale, 0.0, (), -1))

    for alpha in [1, 16, 2.5, *drawn]:
        assert alpha_of(alpha / rank) / rank == alpha / rank
    for scale in drawn:
        # Where no float divided by the rank is the scale, its neighbour is taken.
        assert abs(alpha_of(scale) / rank - scale) <= np.spacing(scale)


def write_peft(folder: Path, tensors: dict[str, Any], **config: Any) -> Path:
    folder.mkdir()
    save_file({PREFIX + n: t for n, t in tensors.items()}, folder / "adapter_model.safetensors")
    whole = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    whole |= {"base_model_name_or_path": "/home/someone/base", "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(whole | config))
    return folder


def random(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32) * 0.1


def pair(module: str, outputs: int, inputs: int, rank: int = 4) -> dict[str, Any]:
    return {
        f"{module}.lora_A.weight": random(rank, inputs),
        f"{module}.lora_B.weight": random(outputs, rank),
    }


def attention(rank: int = 4) -> dict[str, Any]:
    return pair(Q.format(0), 64, 64, rank) | pair(Q.format(1), 64, 64, rank)


@pytest.mark.parametrize(
    ("name", "kind", "where"),
    [
        *(("llama", kind, {}) for kind in ("lora", "dora", "rslora", "qalora")),
        ("llama", "lora", {"num_layers": 1}),
        ("llama", "lora", {"keys": ["q_proj", "model.embed_tokens", "lm_head"]}),
        ("mixtral", "lora", {}),
    ],
)
def test_a_round_trip_is_exact(
    name: str, kind: str, where: dict[str, Any], models: dict[str, Path], tmp_path: Path
) -> None:
    config, _ = ship(models[name], tmp_path, kind, **where)
    assert config["lora_alpha"] / config["r"] == 1.7
    assert (config["use_rslora"], config["use_dora"]) == (False, kind == "dora")
    done = import_peft(tmp_path / "peft", str(models[name]), tmp_path / "back")
    assert (done.padded, done.folded, done.kind) == (0, 0, "dora" if kind == "dora" else "lora")
    ours, back = adapters.load(tmp_path / "a"), adapters.load(tmp_path / "back")
    if kind in ("lora", "dora"):
        assert ours.config == back.config
        assert ours.tensors.keys() == back.tensors.keys()
        assert all(mx.array_equal(t, back.tensors[n]).item() for n, t in ours.tensors.items())
    wanted, got = (updates(models[name], tmp_path / adapter) for adapter in ("a", "back"))
    assert wanted.keys() == got.keys()
    assert all(np.allclose(update, got[path], atol=1e-6) for path, update in wanted.items())
    imported = back.provenance.pop("imported")  # type: ignore[attr-defined]
    assert imported["from"] == "peft"
    assert back.provenance["base"] == ours.provenance["base"]
    if (name, kind) == ("llama", "lora"):
        other = write_model(tmp_path / "other", "llama", bits=4, seed=9)
        with pytest.raises(ModelError, match="was trained on"):
            import_peft(tmp_path / "peft", str(other), tmp_path / "none")


def test_unequal_ranks_and_scales_become_one(llama: Path, tmp_path: Path) -> None:
    tensors = pair(Q.format(0), 64, 64, 2) | pair(Q.format(1), 64, 64, 4)
    tensors |= pair(UP.format(0), 128, 64, 4) | pair(UP.format(1), 128, 64, 4)
    peft = write_peft(
        tmp_path / "peft",
        tensors,
        target_modules=["q_proj", "up_proj"],
        rank_pattern={r"layers\.0\.self_attn\.q_proj": 2},
        alpha_pattern={"up_proj": 3},
        use_rslora=True,
    )
    done = import_peft(peft, str(llama), tmp_path / "a")
    assert (done.rank, done.padded, done.folded) == (4, 1, 3 if done.scale == 4 else 2)
    for path, update in updates(llama, tmp_path / "a").items():
        a, b = (tensors[f"{path}.lora_{part}.weight"] for part in "AB")
        alpha = 3 if "up_proj" in path else 8
        assert np.allclose(alpha / np.sqrt(a.shape[0]) * b @ a, update, atol=1e-6)
    provenance = json.loads((tmp_path / "a" / "provenance.json").read_text())
    assert provenance["imported"]["base_model"] == "base"


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": r"model\.layers\.\d\.self_attn\.q_proj"},
        {"target_modules": ["self_attn.q_proj"]},
        {"target_modules": [Q.format(0), Q.format(1)]},
        {"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["up_proj"]},
        {"layers_to_transform": [0, 1], "layers_pattern": "layers"},
    ],
)
def test_ways_to_name_targets(options: dict[str, Any], llama: Path, tmp_path: Path) -> None:
    peft = write_peft(tmp_path / "peft", attention(), **options)
    assert import_peft(peft, str(llama), tmp_path / "a").layers == 2


def refused(peft: Path, model: Path, words: str) -> None:
    before = sorted(peft.parent.iterdir())
    with pytest.raises(ModelError, match=words) as caught:
        import_peft(peft, str(model), peft.parent / "out")
    assert "\n" not in str(caught.value)
    assert sorted(peft.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"bias": "all"}, "bias 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"target_parameters": ["mlp.w"]}, "target_parameters"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
        ({"r": 0}, "r: 1 or more is needed, not 0"),
        ({"r": True}, "r: a whole number is needed, not true"),
        ({"lora_alpha": "x"}, 'lora_alpha: a number is needed, not "x"'),
        ({"lora_alpha": 10**400}, "too large a number"),
        ({"lora_dropout": 1}, "lora_dropout: less than 1"),
        ({"target_modules": 3}, "target_modules: "),
        ({"target_modules": []}, "target_modules: is empty"),
        ({"target_modules": "("}, "no regular expression"),
        ({"target_modules": f"({SLOW}|model.*)"}, "takes too long"),
        ({"rank_pattern": {SLOW: 4}}, "takes too long"),
        ({"rank_pattern": {"(?R)": 4}}, "no regular expression|takes too long"),
        ({"alpha_pattern": {"(" * 5000: 4}}, "no regular expression"),
        ({"layers_to_transform": [0], "layers_pattern": f"{SLOW}"}, "takes too long"),
        ({"rank_pattern": {"q_proj": 3}}, "the rank is 3"),
        ({"use_dora": True}, "use_dora is set"),
        ({"target_modules": ["k_proj"]}, "leaves out"),
        ({"target_modules": ["q_proj", "k_proj"]}, "lacks the tensors"),
        ({"layers_to_transform": [0]}, "leaves out"),
    ],
)
def test_configs_that_cannot_be_imported(
    config: dict[str, Any], words: str, llama: Path, tmp_path: Path
) -> None:
    refused(write_peft(tmp_path / "peft", attention(), **config), llama, words)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"model.layers.9.self_attn.q_proj": (64, 64)}, "no layer"),
        ({Q.format(1): (64, 32)}, "does not fit"),
        ({"lm_head.bias": None}, "none of a LoRA"),
        ({f"{Q.format(1)}.lora_A.default.weight": None}, "two of lora_A"),
    ],
)
def test_tensors_that_do_not_fit(
    tensors: dict[str, Any], words: str, llama: Path, tmp_path: Path
) -> None:
    whole = attention()
    for name, shape in tensors.items():
        whole |= {name: random(4, 64)} if shape is None else pair(name, *shape)
    refused(write_peft(tmp_path / "peft", whole), llama, words)


def test_broken_directories(models: dict[str, Path], llama: Path, tmp_path: Path) -> None:
    whole = attention()
    lacking = {n: t for n, t in whole.items() if "lora_B" not in n}
    refused(write_peft(tmp_path / "one", lacking), llama, "has no lora_B")
    whole[f"{Q.format(0)}.lora_A.weight"][0, 0] = np.nan
    refused(write_peft(tmp_path / "two", whole), llama, "NaN")
    shapes = {"A": (4, 384), "B": (64, 4)}
    table = {f"model.embed_tokens.lora_embedding_{n}": random(*x) for n, x in shapes.items()}
    one = write_peft(tmp_path / "three", table, target_modules=["embed_tokens"])
    refused(one, models["qwen3"], "one of token table and output head")
    pickled = write_peft(tmp_path / "four", attention())
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    refused(pickled, llama, "pickle")
    (pickled / "adapter_config.json").unlink()
    refused(pickled, llama, "no PEFT adapter")
    cut = write_peft(tmp_path / "five", attention())
    file = cut / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    refused(cut, llama, "not a valid safetensors")
