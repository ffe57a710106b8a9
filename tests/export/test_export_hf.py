"""The transformers directory: names, numbers, config and files, without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx_itune.export  # noqa: F401  (loads a fast BLAS before mlx.core)

import mlx.core as mx  # isort: skip
import numpy as np
import pytest

from mlx_itune.dataset.tokens.tokenizer import load_tokenizer
from mlx_itune.export import artifact, formats
from mlx_itune.export.artifact import Exported
from mlx_itune.export.request import Request
from mlx_itune.export.transformers.to_hf import FloatSource, placed, verify_hf
from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.tensorfile import read_header
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.adapters import lora
from mlx_itune.model.loading import base
from tests.conftest import write_tiny_model
from tests.export.shipped_models import SHIPPED, write_adapter, write_model


def export(model: Path, out: Path, adapter: Path | None = None, **options: Any) -> Exported:
    tokenizer = load_tokenizer(model)
    return formats.export(Request(str(model), adapter, out, tokenizer, "hf", **options))


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def reconfigured(model: Path, **changes: object) -> Path:
    (model / "config.json").write_text(json.dumps(config_of(model) | changes))
    return model


def test_weights_are_the_dequantized_ones(tiny_quantized_dir: Path, tmp_path: Path) -> None:
    done = export(tiny_quantized_dir, tmp_path / "hf", type="f32", name="org/base")
    assert done.verify.largest_difference == 0
    assert "base_model: org/base" in (tmp_path / "hf" / "README.md").read_text()
    stored = mx.load(str(tiny_quantized_dir / "model.safetensors"))
    shipped = mx.load(str(tmp_path / "hf" / "model.safetensors"))
    for name, weight in shipped.items():
        layer = name.removesuffix(".weight")
        if f"{layer}.scales" not in stored:
            assert mx.array_equal(weight, stored[name]).item()
            continue
        # Unpacked by hand: eight codes to a word, the lowest bits first.
        words = np.array(stored[name])
        codes = np.stack([(words >> (4 * n)) & 15 for n in range(8)], axis=-1)
        grouped = codes.reshape(len(words), -1, 64).astype(np.float32)
        scales, biases = (np.array(stored[f"{layer}.{p}"])[..., None] for p in ("scales", "biases"))
        assert np.allclose(np.array(weight), (grouped * scales + biases).reshape(weight.shape))
    assert {name.rpartition(".")[2] for name in shipped} == {"weight"}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_architecture_is_read_back(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoConfig, AutoTokenizer

    monkeypatch.setattr(artifact, "SHARD_BYTES", 60_000)
    model = write_model(tmp_path / "m", name, bits=4)
    done = export(model, tmp_path / "hf", type="f16")
    # Half a unit in the last place of weights below 8.
    assert 0 < done.verify.largest_difference < 2e-3
    source = FloatSource(model)
    assert done.verify.numbers == sum(int(np.prod(s)) for s in source.shapes.values())
    config = config_of(tmp_path / "hf")
    assert not any("quant" in key for key in config)
    assert config["torch_dtype"] == config["dtype"] == "float16"
    (architecture,) = config["architectures"]
    assert architecture.endswith("ForCausalLM")
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    shards = {f.name: read_header(f) for f in (tmp_path / "hf").glob("*.safetensors")}
    assert len(shards) > 1
    assert index["weight_map"] == {n: f for f, tensors in shards.items() for n in tensors}
    assert {info.dtype for tensors in shards.values() for info in tensors.values()} == {"F16"}
    opened = AutoConfig.from_pretrained(tmp_path / "hf")
    assert (opened.model_type, opened.num_hidden_layers) == (name, 2)
    text = "Take metformin 500 mg."
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs(text)["input_ids"] == load_tokenizer(model).hf(text)["input_ids"]


@pytest.mark.parametrize(
    ("name", "kind", "where"),
    [
        *(("llama", kind, {}) for kind in ("lora", "dora", "grid", "qalora")),
        ("qwen3", "lora", {"keys": ["model.embed_tokens"]}),
    ],
)
def test_an_adapter_is_added_before_the_one_rounding(
    name: str, kind: str, where: dict[str, Any], tmp_path: Path
) -> None:
    model = write_model(tmp_path / "m", name, bits=4)
    adapter = write_adapter(tmp_path / "a", model, kind=kind, **where)
    export(model, tmp_path / "hf", adapter, type="bf16")
    papers, trained = (folder / "provenance.json" for folder in (tmp_path / "hf", adapter))
    assert json.loads(papers.read_text()) == json.loads(trained.read_text())
    loaded = base.load(str(model), compute="dequantized")
    plain = {p: m["weight"] for p, m in loaded.model.named_modules() if "weight" in m}
    adapters.apply(loaded, adapters.load(adapter))
    shipped = mx.load(str(tmp_path / "hf" / "model.safetensors"))
    for path, layer in lora.adapted(loaded.model):
        wanted = (plain[path] + layer.delta()).astype(mx.bfloat16)
        assert mx.array_equal(shipped[f"{path}.weight"], wanted).item()


@pytest.mark.parametrize("name", ["llama", "mixtral", "gemma3_text"])
def test_an_export_exports_to_itself(name: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", name, bits=4)
    export(model, tmp_path / "one", type="bf16")
    # The type is the source's unless another is asked for.
    second = export(tmp_path / "one", tmp_path / "two")
    assert second.verify.largest_difference == 0
    one, two = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("one", "two"))
    assert one == two


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", "llama")
    weights = dict(mx.load(str(model / "model.safetensors")))
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1e6
    mx.save_safetensors(str(model / "model.safetensors"), weights)
    with pytest.raises(ModelError, match="beyond what float16 can hold"):
        export(model, tmp_path / "hf", type="f16")
    assert {p.name for p in tmp_path.iterdir()} == {"m"}
    export(model, tmp_path / "hf", type="bf16")
    assert config_of(tmp_path / "hf")["torch_dtype"] == "bfloat16"
    with pytest.raises(ModelError, match="no export to transformers"):
        export(reconfigured(model, model_type="helium"), tmp_path / "other")


SOME_WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
WINDOW = {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1}
LONG = {"type": "longrope", "long_factor": [1.0 + 0.3 * i for i in range(8)]}
SCALED = YARN | {"rope_theta": 5e5}


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        # Scaling that mlx-lm's module leaves out.
        *(
            (name, {"rope_scaling": SCALED}, {"rope_scaling": None, "rope_theta": 10000.0})
            for name in ("mixtral", "qwen3_moe", "gemma2")
        ),
        ("llama", {"rope_parameters": SCALED}, {"rope_parameters": None, "rope_theta": 10000.0}),
        # The long factors always.
        (
            "phi3",
            {"rope_scaling": LONG | {"short_factor": [1.0] * 8}}
            | {"original_max_position_embeddings": 128},
            {"rope_scaling": LONG | {"short_factor": LONG["long_factor"]}},
        ),
        ("mistral", WINDOW, {"sliding_window": None}),
        ("phi3", WINDOW, {"sliding_window": None}),
        ("gemma2", WINDOW, {"sliding_window": 512}),
        ("qwen3", WINDOW, {"use_sliding_window": False}),
        ("gemma3_text", WINDOW, {"sliding_window": 16}),
    ],
)
def test_the_config_says_what_mlx_lm_computes(
    name: str, changes: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    export(reconfigured(write_model(tmp_path / "m", name), **changes), tmp_path / "hf")
    found = config_of(tmp_path / "hf")
    assert {key: found.get(key) for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("llama", {"rope_traditional": True}, "rope_traditional is not what"),
        ("glm4", {"rope_traditional": False}, "rope_traditional is not what"),
        ("llama", SOME_WINDOWS, "a sliding window in some layers"),
        ("mistral", SOME_WINDOWS, "a sliding window in some layers"),
        ("mistral", {"attention_bias": True}, r"no model\.layers\.0\.self_attn\.k_proj\.bias"),
        ("olmo2", {"mlp_bias": True}, r"no model\.layers\.0\.mlp\.down_proj\.bias"),
    ],
)
def test_what_transformers_would_compute_otherwise_is_refused(
    name: str, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    model = reconfigured(write_model(tmp_path / "m", name), **changes)
    weights = dict(mx.load(str(model / "model.safetensors")))
    within = {"attention_bias": ".self_attn.", "mlp_bias": ".mlp."}.get(next(iter(changes)), "-")
    for path in [path for path in weights if within in path]:
        weights[f"{path.removesuffix('weight')}bias"] = weights[path][:, 0]
    mx.save_safetensors(str(model / "model.safetensors"), weights)
    with pytest.raises(ModelError, match=reason):
        export(model, tmp_path / "hf")
    assert {p.name for p in tmp_path.iterdir()} == {"m"}


def test_reading_back_sees_one_wrong_bit(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "m", bits=4)
    export(model, tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1
    file.write_bytes(data)
    source = FloatSource(model)
    with pytest.raises(ModelError, match="is not its source"):
        verify_hf(tmp_path / "hf", source, placed(source.shapes, "llama"))


def test_a_header_that_starts_like_a_pickle_is_none(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "m")
    file = model / "model.safetensors"
    data = file.read_bytes()
    end, padded = 8 + int.from_bytes(data[:8], "little"), 0x10380
    file.write_bytes(padded.to_bytes(8, "little") + data[8:end].ljust(padded) + data[end:])
    # As a pickle of protocol 3 does.
    assert file.read_bytes()[:2] == b"\x80\x03"
    assert export(model, tmp_path / "hf").verify.largest_difference == 0
