"""A GGUF LoRA adds to each weight just what the adapter adds, and is refused where it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest

from mlx_itune.export.artifact import Exported
from mlx_itune.export.gguf.lora import export_gguf_lora, verify_gguf_lora
from mlx_itune.kit.errors import ModelError
from mlx_itune.model.adapters import adapter
from mlx_itune.model.loading import base
from tests.export.gguf_models import MODELS, write_adapter, write_model

FOUR_BITS = {"group_size": 32, "bits": 4}


def export(folder: Path, base_dir: Path) -> Exported:
    return export_gguf_lora(folder, str(base_dir), folder.with_name("lora.gguf"))


def reader(done: Exported) -> gguf.GGUFReader:
    return gguf.GGUFReader(done.artifacts[0].path)


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_reads_back(name: str, tmp_path: Path) -> None:
    source = write_model(tmp_path / "base", name)
    done = export(write_adapter(tmp_path / "adapter", source), source)
    assert done.verify.largest_difference < 1e-6
    # 7 linear layers in a block, 4 of Phi's, 8 with a router.
    assert done.verify.pairs % 4 in (0, 2)


@pytest.mark.parametrize("kind", ["rslora", "qalora"])
def test_other_kinds_are_the_lora_that_they_are(kind: str, tmp_path: Path) -> None:
    source = write_model(tmp_path / "base", "qwen3_moe", quantization=FOUR_BITS)
    done = export(write_adapter(tmp_path / "adapter", source, kind), source)
    assert done.verify.pairs == 16
    found = {t.name: t.data.shape for t in reader(done).tensors}
    assert found["blk.0.ffn_down_exps.weight.lora_a"] == (4, 4, 96)
    assert found["blk.0.ffn_down_exps.weight.lora_b"] == (4, 128, 4)


def test_what_llama_cpp_looks_for(tmp_path: Path) -> None:
    source = write_model(tmp_path / "base", "llama")
    keys = ["self_attn.q_proj", "lm_head", "model.embed_tokens"]
    read = reader(export(write_adapter(tmp_path / "adapter", source, keys=keys), source))
    found = {name: field.contents() for name, field in read.fields.items()}
    assert (found["general.type"], found["general.architecture"]) == ("adapter", "llama")
    # The rank is 4, the scale 2.
    assert (found["adapter.type"], found["adapter.lora.alpha"]) == ("lora", 8.0)
    rows = 400
    assert {t.name: t.data.shape for t in read.tensors} == {
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


def test_what_cannot_be_is_refused_with_the_way_out(tmp_path: Path) -> None:
    plain = write_model(tmp_path / "plain", "llama")
    packed = write_model(tmp_path / "packed", "llama", quantization=FOUR_BITS)
    tied = write_model(tmp_path / "tied", "llama/3")
    other = write_model(tmp_path / "other", "llama", seed=1)
    zero = write_adapter(tmp_path / "zero", plain)
    config = json.loads((zero / "adapter_config.json").read_text())
    config["lora_parameters"]["scale"] = 0.0
    (zero / "adapter_config.json").write_text(json.dumps(config))
    table = write_adapter(tmp_path / "table", tied, keys=["model.embed_tokens"])
    for source, folder, words in (
        (plain, write_adapter(tmp_path / "dora", plain, "dora"), "dora adapter is no LoRA.*fuse"),
        (packed, write_adapter(tmp_path / "grid", packed, "grid"), "grid adapter is no LoRA.*fuse"),
        (tied, table, r"which is the output layer, too.*fuse"),
        (other, write_adapter(tmp_path / "lora", plain), "was trained on plain"),
        (plain, zero, "scale 0"),
    ):
        with pytest.raises(ModelError, match=words):
            export(folder, source)
    assert not (tmp_path / "lora.gguf").exists()


def test_a_change_anywhere_is_found(tmp_path: Path) -> None:
    source = write_model(tmp_path / "base", "llama")
    folder = write_adapter(tmp_path / "adapter", source)
    path = Path(export(folder, source).artifacts[0].path)
    loaded = base.load(str(source), compute="quantized")
    adapter.apply(loaded, adapter.load(folder))
    good = path.read_bytes()
    alpha = np.float32(8).tobytes()
    changed = [good.replace(b"alpha\x06\0\0\0" + alpha, b"alpha\x06\0\0\0" + alpha[::-1])]
    for tensor in gguf.GGUFReader(path).tensors[::5]:
        bad = bytearray(good)
        # The exponent of one number.
        bad[int(tensor.data_offset) + 3] ^= 0x02
        changed.append(bytes(bad))
    for content in changed:
        path.write_bytes(content)
        with pytest.raises(ModelError, match="is not what the adapter adds"):
            verify_gguf_lora(path, loaded)
