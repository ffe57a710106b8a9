"""GGUF files hold the model that they were made from, and nothing is left where they cannot."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest

from tests.export.gguf_models import MODELS, write_model

import mlx.core as mx  # isort: skip

from mlx_itune.dataset.tokens.tokenizer import load_tokenizer
from mlx_itune.export import formats
from mlx_itune.export.artifact import Exported
from mlx_itune.export.gguf import tensors as gguf_tensors
from mlx_itune.export.gguf.architectures import Architecture
from mlx_itune.export.gguf.verify import Reader, verify_gguf
from mlx_itune.export.request import Request
from mlx_itune.kit.errors import ModelError, UsageError
from mlx_itune.kit.tensorfile import read_header

FOUR_BITS = {"group_size": 64, "bits": 4}


def export(source: Path, kind: str = "f16") -> Exported:
    out = source.with_name(f"{source.name}-{kind}.gguf")
    out.unlink(missing_ok=True)
    tokenizer = load_tokenizer(source)
    return formats.export(Request(str(source), None, out, tokenizer, "gguf", type=kind))


def file(done: Exported) -> Path:
    return Path(done.artifacts[0].path)


def _change(source: Path, name: str, value: float) -> None:
    weights = dict(mx.load(str(source / "model.safetensors")))
    weights[name][0, 0] = value
    mx.save_safetensors(str(source / "model.safetensors"), weights)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("gguf") / "llama", "llama")


@pytest.fixture(scope="module")
def llama_4bit(llama: Path) -> Path:
    return write_model(llama.with_name("packed"), "llama", quantization=FOUR_BITS)


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_reads_back(name: str, tmp_path: Path) -> None:
    source = write_model(tmp_path / "float", name)
    done = export(source)
    assert done.artifacts[0].bytes == file(done).stat().st_size
    # Halves stay what they are; the rest is float32.
    assert set(done.verify.types) == {"F16", "F32"}
    assert done.verify.largest_difference < 1e-5
    packed = write_model(tmp_path / "packed", name, quantization={"group_size": 32, "bits": 4})
    lossless = export(packed, "lossless")
    assert lossless.verify.types["Q4_1"] >= done.verify.types["F16"]
    assert lossless.verify.largest_difference < 1e-5


@pytest.mark.parametrize(
    ("quantization", "kind"),
    [
        ({"group_size": 32, "bits": 2}, "Q4_1"),
        ({"group_size": 64, "bits": 3}, "Q4_1"),
        ({"group_size": 32, "bits": 4}, "Q4_1"),
        ({"group_size": 64, "bits": 4}, "Q4_1"),
        ({"group_size": 64, "bits": 5}, "Q5_1"),
        ({"group_size": 32, "bits": 5}, "Q5_1"),
        ({"group_size": 32, "bits": 4, "mode": "mxfp4"}, "MXFP4"),
        ({"group_size": 16, "bits": 4, "mode": "nvfp4"}, "F16"),
        ({"group_size": 32, "bits": 8, "mode": "mxfp8"}, "BF16"),
        ({"group_size": 64, "bits": 6}, "F32"),
        ({"group_size": 64, "bits": 8}, "F32"),
    ],
)
def test_lossless_is_every_bit_of_it(
    quantization: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    source = write_model(tmp_path / "m", "llama", quantization=quantization)
    done = export(source, "lossless")
    assert done.verify.types[kind] == (21 if kind == "F32" else 16)
    assert (done.verify.rounded_weights, done.verify.largest_difference) == (0, 0.0)
    assert done.verify.exact_tensors == done.verify.tensors
    twin = kind in ("Q4_1", "Q5_1", "MXFP4")
    assert bool(done.notes) != twin
    if twin:
        codes = sum(t.end - t.start for t in read_header(source / "model.safetensors").values())
        # d and m for 32 codes where MLX has s and b for a group, or 4-bit codes for fewer bits.
        assert file(done).stat().st_size < 2.5 * codes


def test_scales_that_no_half_can_say_are_rounded_and_counted(tmp_path: Path) -> None:
    def rounded(name: str, **options: Any) -> Any:
        grid = {"group_size": 64, "bits": 4} | options.pop("grid", {})
        return export(
            write_model(tmp_path / name, "llama", quantization=grid, **options), "lossless"
        ).verify

    wide = rounded("float32", dtype=mx.float32)
    # Half a unit in the last place of a half, of scales below 1 and codes to 15.
    assert wide.rounded_weights > 0 and 0 < wide.largest_difference < 2**-11 * 2
    # Of bfloat16 they are halves already; groups may have 128.
    assert rounded("bfloat16", dtype=mx.bfloat16).rounded_weights == 0
    assert rounded("128", grid={"group_size": 128}, intermediate_size=256).rounded_weights == 0


@pytest.mark.parametrize(
    ("kind", "types"),
    [
        ("f32", {"F32": 21}),
        ("f16", {"F16": 16, "F32": 5}),
        ("bf16", {"BF16": 16, "F32": 5}),
        ("q8_0", {"Q8_0": 16, "F32": 5}),
        # What decides between tokens gets 8 bits.
        ("q4_0", {"Q4_0": 15, "Q8_0": 1, "F32": 5}),
    ],
)
def test_every_type_from_quantized_weights(
    llama_4bit: Path, kind: str, types: dict[str, int]
) -> None:
    assert export(llama_4bit, kind).verify.types == types


def test_what_is_made_otherwise_than_asked_is_told(tmp_path: Path) -> None:
    # Beyond its window, llama.cpp's llama would compute something else.
    windows = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
    done = export(write_model(tmp_path / "window", "mistral", **windows))
    assert Reader(file(done)).keys()["llama.context_length"] == 64
    assert "sliding window" in done.notes[0]
    large = write_model(tmp_path / "large", "llama", dtype=mx.float32)
    _change(large, "model.layers.0.mlp.up_proj.weight", 1e5)
    done = export(large)
    assert done.verify.types == {"F16": 15, "F32": 6}
    assert "beyond a half" in done.notes[0]
    done = export(write_model(tmp_path / "odd", "llama", intermediate_size=176), "q8_0")
    assert done.verify.types == {"Q8_0": 14, "F16": 2, "F32": 5}
    assert "no multiple of 32" in done.notes[0]


def test_metadata_says_what_mlx_lm_computes(tmp_path: Path) -> None:
    done = export(write_model(tmp_path / "gemma", "gemma3_text/pattern"))
    found = Reader(file(done)).keys()
    assert found["general.architecture"] == "gemma3"
    assert found["general.name"] == "gemma"
    assert found["gemma3.attention.sliding_window"] == 16
    assert found["gemma3.attention.sliding_window_pattern"] == 2
    assert found["gemma3.rope.freq_base_swa"] == 5000.0
    assert found["gemma3.rope.scaling.factor"] == 8.0
    assert len(found["tokenizer.ggml.tokens"]) == found["gemma3.vocab_size"]


def test_pieces_of_tensors_make_the_same_file(
    llama_4bit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = file(export(llama_4bit, "lossless")).read_bytes()
    monkeypatch.setattr(gguf_tensors, "_CHUNK_NUMBERS", 1000)
    assert file(export(llama_4bit, "lossless")).read_bytes() == whole


@pytest.mark.parametrize("kind", ["f16", "lossless", "q8_0"])
def test_a_flipped_bit_is_found_wherever_it_is(llama_4bit: Path, kind: str) -> None:
    path = file(export(llama_4bit, kind))
    good = path.read_bytes()
    for tensor in gguf.GGUFReader(path).tensors[::3]:
        for place in (0, int(tensor.n_bytes) // 2, int(tensor.n_bytes) - 1):
            bad = bytearray(good)
            bad[int(tensor.data_offset) + place] ^= 0x10
            path.write_bytes(bad)
            with pytest.raises(ModelError, match="is not what the model holds"):
                verify_gguf(Reader(path), llama_4bit)


def test_what_is_not_this_model_is_found(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file(export(llama))
    good = path.read_bytes()
    at = {t.name: int(t.data_offset) for t in gguf.GGUFReader(path).tensors}
    a, b = at["blk.0.ffn_gate.weight"], at["blk.0.ffn_up.weight"]
    size = 2 * 128 * 192
    one, two = good[a : a + size], good[b : b + size]
    swapped = good.replace(one, bytes(size)).replace(two, one).replace(bytes(size), two)
    tied = shutil.copytree(llama, tmp_path / "tied")
    config = json.loads((tied / "config.json").read_text())
    (tied / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    other = write_model(tmp_path / "other", "llama", seed=1)
    for content, source, told in (
        (swapped, llama, "ffn_gate"),
        (good, other, "is not what the model holds"),
        (good, tied, r"output\.weight is twice there, or not the model"),
        (file(export(tied)).read_bytes(), llama, r"output\.weight is missing"),
        (good[:-5000], llama, r"readable|ends within"),
        (b"GGUF but not really", llama, "no readable GGUF"),
    ):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=told):
            verify_gguf(Reader(path), source)
    monkeypatch.setattr(Architecture, "row_order", lambda *_: None)
    with pytest.raises(ModelError, match=r"blk\.0\.attn_k\.weight"):
        export(llama)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused_and_nothing_stays(tmp_path: Path, value: float) -> None:
    source = write_model(tmp_path / "m", "llama")
    _change(source, "model.layers.1.mlp.down_proj.weight", value)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.down_proj\.weight holds NaN"):
        export(source)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


LLAMA3, YARN = (MODELS[name]["rope_scaling"] for name in ("llama/3", "qwen2/yarn"))
# Their loaders refuse a file with rope_freqs.weight.
NO_FACTORS = ("qwen2", "qwen3", "smollm3", "olmo2", "gemma3_text")


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("gemma2", {"query_pre_attn_scalar": 30}, "query_pre_attn_scalar is 30"),
        ("llama", {"rope_theta": 1e300}, "rope.freq_base is 1e.300, which no key"),
        ("llama", {"max_position_embeddings": -1}, "context_length is -1, which no key"),
        ("smollm3", {"no_rope_layer_interval": 2}, "leaves out every 4th"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "no rotary scaling"),
        ("qwen2", {"rope_traditional": True}, "rope_traditional"),
        *((name, {"rope_scaling": LLAMA3}, "rotary factors") for name in NO_FACTORS),
        ("llama", {"rope_scaling": YARN | {"beta_slow": 2}}, "beta_slow 2, and llama.cpp takes 1"),
        ("qwen3", {"rope_scaling": YARN | {"beta_fast": 20}}, "beta_fast 20"),
        ("smollm3", {"mlp_bias": True}, r"has no model\.layers\.\d\.mlp\.\w+\.bias"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("olmo2", {"head_dim": 64}, "do not make 128"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    name: str, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=reason):
        export(write_model(tmp_path / "m", name, **changes))
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_k_quants_need_llama_cpp_s_quantizer(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(UsageError, match="pip install"):
        export(llama, "q4_k_m")
