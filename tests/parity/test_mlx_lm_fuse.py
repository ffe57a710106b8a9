"""Fused models and adapters of the grid as stock mlx-lm reads them; its own fuse beside ours."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import mlx_itune.model  # noqa: F401  (loads a fast BLAS before mlx.core)

import mlx.core as mx  # isort: skip
import mlx_lm

from mlx_itune.dataset.rendering.prepare import prepare
from mlx_itune.dataset.sample_data import write_sample
from mlx_itune.dataset.sources import load_splits
from mlx_itune.dataset.tokens.tokenizer import load_tokenizer
from mlx_itune.export.formats import export
from mlx_itune.export.fusing.fidelity import Fidelity, Reference
from mlx_itune.export.request import HeldOut, Request
from mlx_itune.model.loading import base
from tests.export.shipped_models import fused, tuned, write_adapter

pytestmark = pytest.mark.parity

MODEL = base.resolve("starter")
# mlx-lm's kernels multiply in float16, ours in float32 on a CPU.
KERNELS_KL = 2e-3


@dataclass(frozen=True)
class Rows:
    """Of the sample data: to compare on, to calibrate on, and two short ones."""

    measured: list[Any]
    spare: list[Any]

    @property
    def few(self) -> list[Any]:
        # mlx-lm's quantized kernels take seconds for a row on a CPU.
        return sorted(self.measured, key=lambda row: len(row.input_ids))[:2]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    sizes = {"train": 64, "valid": 1, "test": 24}
    splits = load_splits(write_sample(tmp_path_factory.mktemp("rows") / "data", sizes=sizes))
    tokenizer = load_tokenizer(MODEL)
    return Rows(*(list(prepare(s, tokenizer).examples) for s in (splits.test, splits.train)))


def adapter_of(kind: str, home: Path) -> Path:
    """A random one, about as strong as a trained one is."""
    return write_adapter(home / "adapter", "starter", kind=kind, strength=0.02)


def distance(adapter: Path, model: Any, rows: list[Any]) -> Fidelity:
    return Reference(tuned(MODEL, adapter), rows).compare(model)


def in_float32(model: Any) -> Any:
    model.set_dtype(mx.float32)
    return model


@pytest.mark.parametrize("kind", ["grid", "qalora", "lora", "dora"])
def test_mlx_lm_reads_a_fused_model_as_we_do(kind: str, rows: Rows, tmp_path: Path) -> None:
    adapter, out = adapter_of(kind, tmp_path), tmp_path / "out"
    result = fused(MODEL, adapter, out, rows.measured, rows.spare)
    if kind in ("grid", "qalora"):
        assert (result.way, result.bits) == ("exact", 4)
        assert result.kl_mean <= 1e-5 and result.top1_agreement >= 0.998
        assert abs(result.bytes / result.base_bytes - 1) < 0.02
    model, tokenizer = mlx_lm.load(str(out))[:2]
    ids = mx.array(rows.few[0].input_ids[None])
    assert model(ids).dtype == mx.float16
    assert distance(adapter, model, rows.few).kl_mean < result.kl_mean + KERNELS_KL
    gap = mx.abs(in_float32(model)(ids) - base.load(str(out)).model(ids)).max()
    assert gap.item() < 1e-3
    assert isinstance(mlx_lm.generate(model, tokenizer, "Triage:", max_tokens=4), str)
    # It exports again, as it is.
    measured = HeldOut(rows.few)
    again = Request(str(out), None, tmp_path / "again", load_tokenizer(out), rows=measured)
    assert export(again).verify.tensors_equal


def test_a_grid_adapter_loads_in_mlx_lm(rows: Rows, tmp_path: Path) -> None:
    adapter = adapter_of("grid", tmp_path)
    model = in_float32(mlx_lm.load(str(MODEL), adapter_path=str(adapter))[0])
    for row in rows.few:
        ids = mx.array(row.input_ids[None])
        ours, theirs = tuned(MODEL, adapter)(ids), model(ids)
        assert (mx.abs(ours - theirs).max() / mx.abs(ours).max()).item() < 1e-4
    assert distance(adapter, model, rows.few).kl_mean < 1e-8


def test_ours_is_closer_than_mlx_lms_fuse(rows: Rows, tmp_path: Path) -> None:
    adapter = adapter_of("lora", tmp_path)
    paths = ["--model", str(MODEL), "--adapter-path", str(adapter)]
    command = [sys.executable, "-m", "mlx_lm", "fuse", *paths, "--save-path", str(tmp_path / "m")]
    subprocess.run(command, check=True, capture_output=True)
    theirs = distance(adapter, base.load(str(tmp_path / "m")).model, rows.measured)
    plain, ours = (
        fused(
            MODEL, adapter, tmp_path / way, rows.measured, rows.spare,
            way=way, bits=4, allow_lossy=True,
        )
        for way in ("plain", "compensated")
    )  # fmt: skip
    # Rounded plainly we are where mlx-lm is; compensated well below.
    assert 0.5 < plain.kl_mean / theirs.kl_mean < 2
    assert ours.kl_mean < 0.6 * theirs.kl_mean
    assert ours.bytes == pytest.approx(plain.bytes, rel=1e-3)
