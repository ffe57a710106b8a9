"""Fusing: each way's tensors are right, the measured number decides, nothing is half-written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlx_itune.model  # noqa: F401  (loads the BLAS before mlx.core)

import mlx.core as mx  # isort: skip

from mlx_itune.dataset.rendering.render import TokenizedExample
from mlx_itune.dataset.tokens.tokenizer import load_tokenizer
from mlx_itune.export.formats import export
from mlx_itune.export.fusing.fidelity import fidelity
from mlx_itune.export.fusing.fuse import FuseResult, fuse
from mlx_itune.export.request import HeldOut, Request
from mlx_itune.kit.errors import DataError, ModelError
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.adapters import lora
from mlx_itune.model.loading import mlx_lm_models as stock
from mlx_itune.model.loading.base import LoadedModel, load


def make_adapter(base: Path, out: Path, strength: float) -> Path:
    """A LoRA of a given strength on every linear layer; random, not trained."""
    loaded = load(str(base))
    lora.attach(loaded.model, rank=4, scale=2.0, seed=3)
    for n, (_, layer) in enumerate(lora.adapted(loaded.model)):
        layer.lora_b = strength * mx.random.normal(layer.lora_b.shape, key=mx.random.key(n))
    provenance = {
        "base": loaded.papers(),
        "tokenizer": {"template": "auto"},
    }
    config = adapters.config_of(loaded.model, kind="lora", rank=4, scale=2.0)
    adapters.save(out, loaded.model, config, provenance)
    return out


@pytest.fixture(scope="module")
def examples(tiny_model_dir: Path) -> list[TokenizedExample]:
    tokenizer = load_tokenizer(tiny_model_dir)
    made = []
    for text in ("The patient takes metformin 500 mg.", "Triage: routine. Allergies: none known."):
        ids = tokenizer.encode(text).ids
        weights = np.ones(len(ids), dtype=np.float32)
        weights[:3] = 0
        made.append(TokenizedExample(ids, weights, text))
    return made


@pytest.fixture(scope="module")
def strong(tiny_quantized_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny_quantized_dir, tmp_path_factory.mktemp("strong") / "adapter", 0.05)


def run(
    base: Path, adapter: Path, out: Path, data: Any, calibration: Any = "data", **options: Any
) -> FuseResult:
    # Tests have few rows, and it is those that the models are compared on here.
    rows = HeldOut(data, data if calibration == "data" else calibration)
    return fuse(Request(str(base), adapter, out, load_tokenizer(base), rows=rows, **options))


def adapted(base: Path, adapter: Path) -> LoadedModel:
    loaded = load(str(base))
    adapters.apply(loaded, adapters.load(adapter))
    return loaded


def test_the_smallest_way_within_the_limit_is_written(
    tiny_quantized_dir: Path, strong: Path, examples: Any, tmp_path: Path
) -> None:
    every = run(tiny_quantized_dir, strong, tmp_path / "all", examples, max_kl=0, allow_lossy=True)
    assert [(t.way, t.bits) for t in every.tried] == [
        *(("compensated", bits) for bits in (4, 5, 6, 8)),
        ("float", 16),
    ]
    sizes = [t.bytes for t in every.tried]
    assert sizes == sorted(set(sizes))
    distances = [t.kl_mean for t in every.tried]
    assert distances[0] > 20 * distances[3] > 400 * distances[4] > 0
    for place in (0, 2, 3, 4):
        limit = 1.1 * distances[place]
        result = run(tiny_quantized_dir, strong, tmp_path / str(place), examples, max_kl=limit)
        within = next(n for n, distance in enumerate(distances) if distance <= limit)
        assert result.tried == every.tried[: within + 1]
        assert (result.bytes, result.kl_mean) == (sizes[within], distances[within])
        assert result.bytes == (Path(result.out) / "model.safetensors").stat().st_size
        reference = adapted(tiny_quantized_dir, strong)
        measured = fidelity(reference.model, load(result.out).model, examples)
        assert measured.kl_mean == pytest.approx(result.kl_mean, rel=1e-3, abs=1e-9)
        assert measured.top1_agreement == result.top1_agreement
        # And as mlx-lm itself reads it.
        opened = stock.reopen(Path(result.out))[0]
        assert fidelity(reference.model, opened, examples).kl_mean <= result.kl_mean + 1e-4


def test_the_table_has_every_way_and_the_smallest_that_passes_is_written(
    tiny_quantized_dir: Path, strong: Path, examples: Any, tmp_path: Path
) -> None:
    scores = {16: 0.75, 4: 0.5}
    asked: list[LoadedModel] = []

    def score(loaded: LoadedModel) -> float:
        asked.append(loaded)
        return scores.get(getattr(loaded.model.layers[0].mlp.up_proj, "bits", 16), 0.25)

    options: dict[str, Any] = {"every": True, "score": score, "max_kl": 1e-3}
    result = run(tiny_quantized_dir, strong, tmp_path / "out", examples, **options)
    assert len(result.tried) == 9
    assert {(t.way, t.bits) for t in result.tried} == {
        *((way, bits) for way in ("plain", "compensated") for bits in (4, 5, 6, 8)),
        ("float", 16),
    }
    assert all(t.score is not None for t in result.tried)
    # Base + adapter, each way, and once more what was written.
    assert len(asked) == 11
    assert result.bytes == min(t.bytes for t in result.tried if t.kl_mean <= 1e-3)
    assert {t.tokens for t in result.tried} == {result.tokens}
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())["fuse"]
    assert len(record["tried"]) == 9
    assert record["score_fused"] == result.score_fused
    assert "| way |" in (tmp_path / "out" / "README.md").read_text()


def test_rows_that_calibrate_are_not_measured_on(
    tiny_quantized_dir: Path, strong: Path, examples: Any, tmp_path: Path
) -> None:
    many = [examples[n % 2] for n in range(9)]
    for name, calibration, bits, counts in (
        ("a", None, None, (6, 3)),
        # A way that rounds nothing leaves all rows to measure on.
        ("b", None, 16, (9, 0)),
        ("c", examples, None, (9, 2)),
    ):
        given: dict[str, Any] = {"calibration": calibration, "bits": bits, "max_kl": 1e9}
        done = run(tiny_quantized_dir, strong, tmp_path / name, many, **given)
        assert (done.rows, done.calibration_rows) == counts


def test_merged_weights_are_base_plus_delta(
    tiny_quantized_dir: Path, strong: Path, examples: Any, tmp_path: Path
) -> None:
    run(tiny_quantized_dir, strong, tmp_path / "fused", examples, bits=16)
    fused = mx.load(str(tmp_path / "fused" / "model.safetensors"))
    base = mx.load(str(tiny_quantized_dir / "model.safetensors"))
    config = json.loads((tmp_path / "fused" / "config.json").read_text())
    assert "quantization" not in config
    assert "quantization_config" not in config
    for path, layer in lora.adapted(adapted(tiny_quantized_dir, strong).model):
        parts = [base[f"{path}.{name}"] for name in ("weight", "scales", "biases")]
        wanted = mx.dequantize(*parts, group_size=64, bits=4) + layer.delta()
        got = fused[f"{path}.weight"]
        assert got.dtype == mx.float16
        assert mx.allclose(got.astype(mx.float32), wanted, rtol=1e-3, atol=1e-4).item()


def test_a_float_base_can_be_quantized(tiny_model_dir: Path, examples: Any, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_model_dir, tmp_path / "adapter", 0.05)
    half = run(tiny_model_dir, adapter, tmp_path / "half", examples, bits=16)
    eight = run(tiny_model_dir, adapter, tmp_path / "eight", examples, bits=8, max_kl=1.0)
    assert 0 < half.kl_mean < eight.kl_mean < 1e-2
    assert half.base_bytes > 1.9 * half.bytes > 1.9 * 1.6 * eight.bytes


def test_beyond_the_limit_nothing_is_written_unless_asked(
    tiny_quantized_dir: Path, strong: Path, examples: Any, tmp_path: Path
) -> None:
    out = tmp_path / "fused"
    with pytest.raises(ModelError, match="beyond --max-kl") as caught:
        run(tiny_quantized_dir, strong, out, examples, bits=4, max_kl=1e-6)
    assert caught.value.exit_code == 4
    assert list(tmp_path.iterdir()) == []
    lossy = run(tiny_quantized_dir, strong, out, examples, bits=4, max_kl=1e-6, allow_lossy=True)
    assert lossy.kl_mean > 1e-6
    assert json.loads((out / "provenance.json").read_text())["fuse"]["kl_mean"] == lossy.kl_mean


def test_only_known_files_travel(
    tiny_quantized_dir: Path, strong: Path, examples: Any, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_quantized_dir, tmp_path / "base")
    (base / "notes.private").write_text("secret")
    run(base, strong, tmp_path / "fused", examples, max_kl=1e9)
    assert {p.name for p in (tmp_path / "fused").iterdir()} == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "provenance.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert str(tmp_path) not in (tmp_path / "fused" / "provenance.json").read_text()


def test_a_built_in_template_travels_with_the_model(
    tiny_quantized_dir: Path, strong: Path, examples: Any, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(tiny_quantized_dir, template="alpaca")
    out = tmp_path / "fused"
    rows = HeldOut(examples)
    fuse(Request(str(tiny_quantized_dir), strong, out, tokenizer, rows=rows, max_kl=1e9))
    assert load_tokenizer(out).template_text == tokenizer.template_text
    prompt = stock.reopen(out)[1].apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt.endswith("### Instruction:\nHi\n\n### Response:")


def test_nothing_to_measure_on_is_refused(
    tiny_quantized_dir: Path, strong: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no learned token"):
        run(tiny_quantized_dir, strong, tmp_path / "out", [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("quantized", [True, False])
def test_export_to_mlx_keeps_every_tensor(
    quantized: bool, tiny_model_dir: Path, tiny_quantized_dir: Path, examples: Any, tmp_path: Path
) -> None:
    base = tiny_quantized_dir if quantized else tiny_model_dir
    rows = HeldOut(examples)
    result = export(Request(str(base), None, tmp_path / "out", load_tokenizer(base), rows=rows))
    before, after = (mx.load(str(d / "model.safetensors")) for d in (base, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(mx.array_equal(before[name], after[name]).item() for name in before)
    assert result.verify.tensors_equal
    assert result.verify.top1_agreement == 1
    (artifact,) = result.artifacts
    assert artifact.format == "mlx"
    assert artifact.bytes == sum(p.stat().st_size for p in (tmp_path / "out").iterdir())
    assert len(artifact.sha256) == 64
