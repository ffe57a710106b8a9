"""What transformers and PEFT on torch make of our exports, and we of their adapters: logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx_itune.export  # noqa: F401  (loads a fast BLAS before mlx.core)

import mlx.core as mx  # isort: skip
import numpy as np
import pytest

from mlx_itune.dataset.tokens.tokenizer import load_tokenizer
from mlx_itune.export import artifact
from mlx_itune.export.formats import export
from mlx_itune.export.request import Request
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.adapters.from_peft import import_peft
from tests.export.shipped_models import ALSO_HF, SHIPPED, mlx_logits, write_adapter, write_model

pytestmark = pytest.mark.parity

# Logits of random models reach about 10; float32 products in another order.
TOLERANCE, APART = 1e-4, 1e-3
IDS: list[list[int]] = np.random.default_rng(0).integers(6, 300, (2, 24)).tolist()


def torch_model(path: Path, peft_dir: Path | None = None) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    )
    assert not getattr(model.config, "quantization_config", None)
    return (PeftModel.from_pretrained(model, peft_dir) if peft_dir else model).eval()


def torch_logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.float().numpy()


def mlx(model_dir: Path, adapter_dir: Path | None = None) -> Any:
    return np.array(mlx_logits(model_dir, adapter_dir, IDS))


def furthest(a: Any, b: Any) -> float:
    return float(np.abs(a - b).max())


def hf_of(model_dir: Path, out: Path, adapter: Path | None = None) -> Path:
    tokenizer = load_tokenizer(model_dir)
    export(Request(str(model_dir), adapter, out, tokenizer, "hf", type="f32"))
    return out


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("name", [*SHIPPED, *ALSO_HF])
def test_transformers_computes_the_exported_model(
    name: str, bits: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "m", name, bits=bits)
    base = mlx(model)
    assert furthest(torch_logits(torch_model(hf_of(model, tmp_path / "hf"))), base) < TOLERANCE
    adapter = write_adapter(tmp_path / "a", model)
    monkeypatch.setattr(artifact, "SHARD_BYTES", 100_000)
    fused = hf_of(model, tmp_path / "fused", adapter)
    assert len(list(fused.glob("model-*.safetensors"))) > 1
    got = torch_logits(torch_model(fused))
    assert furthest(got, mlx(model, adapter)) < TOLERANCE
    assert furthest(got, base) > APART


WINDOW = {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LONG = {"type": "longrope", "long_factor": [1.0 + i for i in range(8)], "short_factor": [1.0] * 8}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, WINDOW) for name in ("mistral", "gemma2", "phi3", "qwen2", "qwen3", "smollm3")),
        *((name, {"rope_scaling": YARN}) for name in ("mixtral", "qwen3_moe", "gemma2", "qwen3")),
        ("llama", {"rope_parameters": YARN | {"rope_theta": 5e5}}),
        ("phi3", {"rope_scaling": LONG, "original_max_position_embeddings": 128}),
        ("qwen2_moe", {"norm_topk_prob": True}),
    ],
)
def test_what_mlx_lm_ignores_is_left_out(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    model = write_model(tmp_path / "m", name)
    config = json.loads((model / "config.json").read_text()) | changes
    (model / "config.json").write_text(json.dumps(config))
    got = torch_logits(torch_model(hf_of(model, tmp_path / "hf")))
    assert furthest(got, mlx(model)) < TOLERANCE


@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8"])
def test_other_quantizations(mode: str, tmp_path: Path) -> None:
    bits = 4 if mode == "mxfp4" else 8
    model = write_model(tmp_path / "m", "llama", bits=bits, mode=mode)
    got = torch_logits(torch_model(hf_of(model, tmp_path / "hf")))
    assert furthest(got, mlx(model)) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "kind", "where"),
    [
        *((name, "lora", {}) for name in SHIPPED),
        ("llama", "rslora", {}),
        ("llama", "dora", {}),
        ("llama", "qalora", {}),
        ("gemma3_text", "dora", {"keys": ["self_attn.q_proj", "mlp.up_proj"]}),
        ("llama", "lora", {"num_layers": 1}),
        ("llama", "dora", {"num_layers": 1, "keys": ["self_attn.v_proj", "mlp.down_proj"]}),
        ("llama", "lora", {"keys": [r"re:.*\.0\.self_attn\.q_proj", r"re:.*\.1\.mlp\.up_proj"]}),
        ("llama", "lora", {"keys": ["q_proj", "model.embed_tokens", "lm_head"]}),
        ("qwen3", "lora", {"keys": ["q_proj", "model.embed_tokens"]}),
        ("gemma3_text", "lora", {"keys": ["q_proj", "model.embed_tokens"]}),
        ("qwen3_moe", "lora", {"num_layers": 1}),
        ("qwen3_moe", "qalora", {}),
        ("mixtral", "lora", {"keys": ["self_attn.q_proj"], "num_layers": 1}),
    ],
)
def test_peft_computes_the_exported_adapter(
    name: str, kind: str, where: dict[str, Any], tmp_path: Path
) -> None:
    model = write_model(tmp_path / "m", name, bits=4)
    adapter = write_adapter(tmp_path / "a", model, kind=kind, **where)
    done = export(Request(str(model), adapter, tmp_path / "peft", load_tokenizer(model), "peft"))
    tuned = mlx(model, adapter)
    got = torch_logits(torch_model(hf_of(model, tmp_path / "hf"), tmp_path / "peft"))
    assert furthest(got, tuned) < TOLERANCE
    assert furthest(got, mlx(model)) > APART
    assert done.verify.largest_difference < 1e-5
    # And back: the same product, bit for bit but for what qalora's own form of it was.
    import_peft(tmp_path / "peft", str(model), tmp_path / "back")
    assert furthest(mlx(model, tmp_path / "back"), tuned) <= 1e-5
    if kind != "qalora":
        ours, back = adapters.load(adapter), adapters.load(tmp_path / "back")
        assert ours.tensors.keys() == back.tensors.keys()
        assert all(mx.array_equal(ours.tensors[n], back.tensors[n]).item() for n in back.tensors)
        assert back.config.scale == ours.config.scale


LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize(
    ("name", "options", "padded", "folded"),
    [
        ("llama", {"target_modules": LINEAR}, 0, 0),
        ("llama", {"target_modules": "all-linear", "use_rslora": True}, 0, 0),
        ("llama", {"target_modules": LINEAR, "use_dora": True}, 0, 0),
        ("llama", {"target_modules": LINEAR, "use_dora": True, "use_rslora": True}, 0, 0),
        ("llama", {"target_modules": r".*\.1\.(self_attn\.[qv]_proj|mlp\.up_proj)"}, 0, 0),
        ("llama", {"target_modules": LINEAR, "layers_to_transform": [0]}, 0, 0),
        ("llama", {"target_modules": LINEAR, "exclude_modules": ["up_proj"]}, 0, 0),
        (
            "llama",
            {
                "target_modules": LINEAR,
                "rank_pattern": {"q_proj": 3, r"layers\.1\.mlp\.up_proj": 9},
                "alpha_pattern": {"v_proj": 5, "q_proj": 6.0},
            },
            13,
            5,
        ),
        ("llama", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}, 0, 0),
        ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"]}, 0, 0),
        ("gemma3_text", {"target_modules": LINEAR}, 0, 0),
    ],
)
def test_an_imported_peft_adapter_computes_the_same(
    name: str, options: dict[str, Any], padded: int, folded: int, tmp_path: Path
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    model = write_model(tmp_path / "m", name, bits=4)
    hf = torch_model(hf_of(model, tmp_path / "hf"))
    torch.manual_seed(0)
    tuned = get_peft_model(
        hf, LoraConfig(r=4, lora_alpha=7, lora_dropout=0.1, task_type="CAUSAL_LM", **options)
    )
    for parameter_name, parameter in tuned.named_parameters():
        if parameter.requires_grad and "magnitude" not in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
        elif parameter.requires_grad:
            parameter.data *= 1.1
    tuned.eval().save_pretrained(tmp_path / "peft")
    expected = torch_logits(tuned)

    done = import_peft(tmp_path / "peft", str(model), tmp_path / "ours")
    got = mlx(model, tmp_path / "ours")
    assert furthest(got, expected) < TOLERANCE
    assert furthest(got, mlx(model)) > APART
    assert (done.padded, done.folded) == (padded, folded)
    papers = json.loads((tmp_path / "ours" / "provenance.json").read_text())
    assert len(papers["base"]["fingerprint"]) == 64
    assert str(tmp_path) not in json.dumps(papers)
