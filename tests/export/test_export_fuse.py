"""Fusing: each way's tensors are right, the measured number decides, nothing is half-written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import mlx_itune.model  # noqa: F401  (loads the BLAS before mlx.core)
from mlx_itune.dataset.tokens.tokenizer import load_tokenizer
from mlx_itune.export.fusing.fidelity import Reference
from mlx_itune.export.fusing.fuse import fuse
from mlx_itune.export.request import HeldOut, Request
from mlx_itune.kit.errors import DataError
from mlx_itune.model.loading.base import LoadedModel, load, reopen
from tests.export.shipped_models import fused, random_rows, tuned, write_adapter


@pytest.fixture(scope="module")
def strong(tiny_quantized_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("strong") / "adapter", tiny_quantized_dir)


def test_the_smallest_way_within_the_limit_is_written(
    tiny_quantized_dir: Path, strong: Path, tmp_path: Path
) -> None:
    every = fused(tiny_quantized_dir, strong, tmp_path / "all", max_kl=0, allow_lossy=True)
    assert [(t.way, t.bits) for t in every.tried] == [
        *(("compensated", bits) for bits in (4, 5, 6, 8)),
        ("float", 16),
    ]
    sizes = [t.bytes for t in every.tried]
    assert sizes == sorted(set(sizes))
    distances = [t.kl_mean for t in every.tried]
    assert distances[0] > 20 * distances[3] > 400 * distances[4] > 0
    reference = Reference(tuned(tiny_quantized_dir, strong), random_rows(6))
    for place in (0, 2, 3, 4):
        limit = 1.1 * distances[place]
        result = fused(tiny_quantized_dir, strong, tmp_path / str(place), max_kl=limit)
        within = next(n for n, distance in enumerate(distances) if distance <= limit)
        assert result.tried == every.tried[: within + 1]
        assert (result.bytes, result.kl_mean) == (sizes[within], distances[within])
        assert result.bytes == (Path(result.out) / "model.safetensors").stat().st_size
        measured = reference.compare(load(result.out).model)
        assert measured.kl_mean == pytest.approx(result.kl_mean, rel=1e-3, abs=1e-9)
        assert measured.top1_agreement == result.top1_agreement
        # And as mlx-lm itself reads it.
        opened = reopen(Path(result.out))[0]
        assert reference.compare(opened).kl_mean <= result.kl_mean + 1e-4


def test_the_table_has_every_way_and_the_smallest_that_passes_is_written(
    tiny_quantized_dir: Path, strong: Path, tmp_path: Path
) -> None:
    scores = {16: 0.75, 4: 0.5}
    asked: list[LoadedModel] = []

    def score(loaded: LoadedModel) -> float:
        asked.append(loaded)
        return scores.get(getattr(loaded.model.layers[0].mlp.up_proj, "bits", 16), 0.25)

    options: dict[str, Any] = {"every": True, "score": score, "max_kl": 1e-3}
    result = fused(tiny_quantized_dir, strong, tmp_path / "out", **options)
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
    tiny_quantized_dir: Path, strong: Path, tmp_path: Path
) -> None:
    nine, two = random_rows(9), random_rows(2, first=50)
    # A way that rounds nothing leaves all rows to measure on.
    for given, bits, counts in ((None, None, (6, 3)), (None, 16, (9, 0)), (two, None, (9, 2))):
        out = tmp_path / str(counts)
        done = fused(tiny_quantized_dir, strong, out, nine, given, bits=bits, max_kl=1e9)
        assert (done.rows, done.calibration_rows) == counts
    with pytest.raises(DataError, match="no learned token"):
        fused(tiny_quantized_dir, strong, tmp_path / "out", [])
    assert not (tmp_path / "out").exists()


def test_known_files_travel_and_the_template_that_was_trained(
    tiny_quantized_dir: Path, strong: Path, tmp_path: Path
) -> None:
    folder, out = shutil.copytree(tiny_quantized_dir, tmp_path / "base"), tmp_path / "fused"
    (folder / "notes.private").write_text("secret")
    tokenizer = load_tokenizer(folder, template="alpaca")
    rows = HeldOut(random_rows(6))
    fuse(Request(str(folder), strong, out, tokenizer, rows=rows, max_kl=1e9))
    tokenizer_files = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    papers = {"README.md", "provenance.json"}
    known = {"config.json", "model.safetensors", *tokenizer_files, *papers}
    assert {p.name for p in out.iterdir()} == known
    assert str(tmp_path) not in (out / "provenance.json").read_text()
    assert load_tokenizer(out).template_text == tokenizer.template_text
    prompt = reopen(out)[1].apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt.endswith("### Instruction:\nHi\n\n### Response:")
