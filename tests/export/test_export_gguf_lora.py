"""A GGUF LoRA adds to each weight just what the adapter adds, and is refused where it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.export.gguf_models import MODELS, write_adapter, write_model

import mlx.core as mx  # isort: skip

from mlx_itune.export.gguf.lora_verify import verify_gguf_lora
from mlx_itune.export.gguf.to_gguf_lora import GgufLoraExport, export_gguf_lora
from mlx_itune.kit.errors import ModelError
from mlx_itune.model.adapters import adapter
from mlx_itune.model.loading import base

FOUR_BITS = {"group_size": 32, "bits": 4}


def export(folder: Path, base_dir: Path) -> GgufLoraExport:
    return export_gguf_lora(folder, str(base_dir), folder.with_name("lora.gguf"), overwrite=True)


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_reads_back(name: str, tmp_path: Path) -> None:
    source = write_model(tmp_path / "base", name)
    done = export(write_adapter(tmp_path / "adapter", source), source)
    assert done.verify.largest_difference < 1e-6
    # 7 linear layers in a block, 4 of Phi's, 8 with a router.
    assert done.verify.pairs % done.rank in (0, 2)
    assert done.alpha / done.rank == 2.0


@pytest.mark.parametrize("kind", ["rslora", "qalora"])
def test_other_kinds_are_the_lora_that_they_are(kind: str, tmp_path: Path) -> None:
    source = write_model(tmp_path / "base", "qwen3_moe", quantization=FOUR_BITS)
    done = export(write_adapter(tmp_path / "adapter", source, kind), source)
    assert done.verify.pairs == 16
    found = {t.name: t.data.shape for t in gguf.GGUFReader(done.path).tensors}
    assert found["blk.0.ffn_down_exps.weight.lora_a"] == (4, 4, 96)
    assert found["blk.0.ffn_down_exps.weight.lora_b"] == (4, 128, 4)


def test_what_llama_cpp_looks_for(tmp_path: Path) -> None:
    source = write_model(tmp_path / "base", "llama")
    keys = ["self_attn.q_proj", "lm_head", "model.embed_tokens"]
    done = export(write_adapter(tmp_path / "adapter", source, keys=keys), source)
    reader = gguf.GGUFReader(done.path)
    found = {name: field.contents() for name, field in reader.fields.items()}
    assert found["general.type"] == "adapter"
    assert found["general.architecture"] == "llama"
    assert (found["adapter.type"], found["adapter.lora.alpha"]) == ("lora", 8.0)
    rows = 400
    assert {t.name: t.data.shape for t in reader.tensors} == {
        "blk.0.attn_q.weight.lora_a": (4, 128),
        "blk.0.attn_q.weight.lora_b": (256, 4),
        "blk.1.attn_q.weight.lora_a": (4, 128),
        "blk.1.attn_q.weight.lora_b": (256, 4),
        "output.weight.lora_a": (4, 128),
        "output.weight.lora_b": (rows, 4),
        # Of a token table, A is looked up.
        "token_embd.weight.lora_a": (rows, 4),
        "token_embd.weight.lora_b": (128, 4),
    }


@pytest.mark.parametrize(("kind", "bits"), [("dora", False), ("grid", True)])
def test_what_is_no_pair_is_refused_with_the_way_out(kind: str, bits: bool, tmp_path: Path) -> None:
    source = write_model(tmp_path / "base", "llama", quantization=FOUR_BITS if bits else None)
    folder = write_adapter(tmp_path / "adapter", source, kind)
    with pytest.raises(ModelError, match=f"a {kind} adapter is no LoRA.*fuse it"):
        export(folder, source)
    assert not (tmp_path / "lora.gguf").exists()


def test_a_table_that_is_the_output_too_is_refused(tmp_path: Path) -> None:
    source = write_model(tmp_path / "base", "llama/3")
    folder = write_adapter(tmp_path / "adapter", source, keys=["model.embed_tokens"])
    with pytest.raises(ModelError, match=r"which is the output layer, too.*fuse"):
        export(folder, source)


def test_another_base_is_refused(tmp_path: Path) -> None:
    source = write_model(tmp_path / "base", "llama")
    folder = write_adapter(tmp_path / "adapter", source)
    with pytest.raises(ModelError, match="was trained on base"):
        export(folder, write_model(tmp_path / "other", "llama", seed=1))


def test_scale_zero_is_refused(tmp_path: Path) -> None:
    source = write_model(tmp_path / "base", "llama")
    folder = write_adapter(tmp_path / "adapter", source)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["lora_parameters"]["scale"] = 0.0
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="scale 0"):
        export(folder, source)


def test_a_change_anywhere_is_found(tmp_path: Path) -> None:
    source = write_model(tmp_path / "base", "llama")
    folder = write_adapter(tmp_path / "adapter", source)
    path = Path(export(folder, source).path)
    loaded = base.load(str(source), compute="quantized")
    adapter.apply(loaded, adapter.load(folder))
    good = path.read_bytes()
    for tensor in gguf.GGUFReader(path).tensors[::5]:
        bad = bytearray(good)
        # The exponent of one number.
        bad[int(tensor.data_offset) + 3] ^= 0x02
        path.write_bytes(bad)
        with pytest.raises(ModelError, match="is not what the adapter adds"):
            verify_gguf_lora(path, loaded)
    alpha = np.float32(8).tobytes()
    path.write_bytes(good.replace(b"alpha\x06\0\0\0" + alpha, b"alpha\x06\0\0\0" + alpha[::-1]))
    with pytest.raises(ModelError, match="is not what the adapter adds"):
        verify_gguf_lora(path, loaded)


def test_numbers_beyond_all_bounds_are_refused(tmp_path: Path) -> None:
    source = write_model(tmp_path / "base", "llama")
    folder = write_adapter(tmp_path / "adapter", source)
    tensors = dict(mx.load(str(folder / "adapters.safetensors")))
    name = next(iter(tensors))
    tensors[name][0, 0] = float("nan")
    mx.save_safetensors(str(folder / "adapters.safetensors"), tensors)
    with pytest.raises(ModelError, match="NaN"):
        export(folder, source)
