"""A GGUF LoRA adds to each weight just what the adapter adds, and is refused where it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mlx_itune.dataset.tokens.tokenizer import load_tokenizer
from mlx_itune.export import formats
from mlx_itune.export.artifact import Exported
from mlx_itune.export.gguf.lora import verify_gguf_lora
from mlx_itune.export.gguf.verify import Reader
from mlx_itune.export.request import Request
from mlx_itune.kit.errors import ModelError
from mlx_itune.model.adapters import adapter
from mlx_itune.model.loading import base
from tests.export.gguf_models import MODELS, write_model
from tests.export.shipped_models import write_adapter

FOUR_BITS = {"group_size": 32, "bits": 4}


def export(folder: Path, base_dir: Path) -> Exported:
    out, tokenizer = folder.with_name("lora.gguf"), load_tokenizer(base_dir)
    return formats.export(Request(str(base_dir), folder, out, tokenizer, "gguf-lora"))


def shapes(done: Exported) -> dict[str, tuple[int, ...]]:
    return {t.name: t.data.shape for t in Reader(Path(done.artifacts[0].path)).tensors}


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
    done = export(write_adapter(tmp_path / "adapter", source, kind=kind), source)
    assert done.verify.pairs == 14
    assert shapes(done)["blk.0.ffn_down_exps.weight.lora_a"] == (4, 4, 96)
    assert shapes(done)["blk.0.ffn_down_exps.weight.lora_b"] == (4, 128, 4)


def test_what_llama_cpp_looks_for(tmp_path: Path) -> None:
    source = write_model(tmp_path / "base", "llama")
    keys = ["self_attn.q_proj", "lm_head", "model.embed_tokens"]
    done = export(write_adapter(tmp_path / "adapter", source, keys=keys), source)
    found = Reader(tmp_path / "lora.gguf").keys()
    assert (found["general.type"], found["general.architecture"]) == ("adapter", "llama")
    assert found["adapter.type"] == "lora"
    # Rank 4 times scale 1.7.
    assert found["adapter.lora.alpha"] == pytest.approx(6.8, rel=1e-6)
    blocks = {f"blk.{n}.attn_q.weight": (128, 256) for n in range(2)}
    # Of a token table, A is looked up.
    head, table = {"output.weight": (128, 400)}, {"token_embd.weight.lora_a": (400, 4)}
    table["token_embd.weight.lora_b"] = (128, 4)
    assert shapes(done) == table | {
        f"{name}.lora_{end}": shape
        for name, (inputs, outputs) in (blocks | head).items()
        for end, shape in (("a", (4, inputs)), ("b", (outputs, 4)))
    }


def test_what_cannot_be_is_refused_with_the_way_out(tmp_path: Path) -> None:
    plain = write_model(tmp_path / "plain", "llama")
    packed = write_model(tmp_path / "packed", "llama", quantization=FOUR_BITS)
    tied = write_model(tmp_path / "tied", "llama/3")
    other = write_model(tmp_path / "other", "llama", seed=1)
    adapters = {
        "lora": write_adapter(tmp_path / "lora", plain),
        "zero": write_adapter(tmp_path / "zero", plain),
        "dora": write_adapter(tmp_path / "dora", plain, kind="dora"),
        "grid": write_adapter(tmp_path / "grid", packed, kind="grid"),
        "table": write_adapter(tmp_path / "table", tied, keys=["model.embed_tokens"]),
    }
    config = json.loads((adapters["zero"] / "adapter_config.json").read_text())
    config["lora_parameters"]["scale"] = 0.0
    (adapters["zero"] / "adapter_config.json").write_text(json.dumps(config))
    for source, name, words in (
        (plain, "dora", "dora adapter is no LoRA.*fuse"),
        (packed, "grid", "grid adapter is no LoRA.*fuse"),
        (tied, "table", "which is the output layer, too.*fuse"),
        (other, "lora", "was trained on plain"),
        (plain, "zero", "scale 0"),
    ):
        with pytest.raises(ModelError, match=words):
            export(adapters[name], source)
    assert not (tmp_path / "lora.gguf").exists()


def test_a_change_anywhere_is_found(tmp_path: Path) -> None:
    source = write_model(tmp_path / "base", "llama")
    folder = write_adapter(tmp_path / "adapter", source)
    path = Path(export(folder, source).artifacts[0].path)
    loaded = base.load(str(source), compute="quantized")
    adapter.apply(loaded, adapter.load(folder))
    good = path.read_bytes()
    alpha = good.index(b"adapter.lora.alpha") + len("adapter.lora.alpha") + 4
    changed = [good[:alpha] + np.float32(9).tobytes() + good[alpha + 4 :]]
    for tensor in Reader(path).tensors[::5]:
        # The exponent of one number.
        bad = bytearray(good)
        bad[int(tensor.data_offset) + 3] ^= 0x02
        changed.append(bytes(bad))
    for content in changed:
        path.write_bytes(content)
        with pytest.raises(ModelError, match="is not what the adapter adds"):
            verify_gguf_lora(path, loaded)
