"""Side by side: the tuned model is no distance from itself, the base is, a fused one is near."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_tiny_model
from tests.export.shipped_models import write_adapter


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    asked = {"The patient takes metformin.": "yes", "Allergies?": "none known."}
    rows = [{"prompt": question, "completion": answer} for question, answer in asked.items()]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def test_base_tuned_and_fused(
    cli: Any, tmp_path: Path, tiny_quantized_dir: Path, data: Path
) -> None:
    fused, adapter = str(tmp_path / "fused"), tmp_path / "a"
    write_adapter(
        adapter, tiny_quantized_dir, kind="grid", seed=1, strength=0.18, template="chatml"
    )
    model = ("--model", tiny_quantized_dir, "--adapter", adapter, "--data", data)
    cli.json("fuse", *model, "--out", fused, "--allow-lossy")
    asked = ("compare", *model, "--max-new-tokens", 6, fused)
    body = cli.json(*asked)
    assert (body["reference"], body["rows"]) == ("tuned", 2)
    plain, tuned, other = body["models"]
    assert [each["model"] for each in body["models"]] == ["base", "tuned", fused]
    assert tuned["kl_mean"] == 0 and tuned["top1_agreement"] == 1
    assert plain["kl_mean"] > 100 * max(other["kl_mean"], 1e-6)
    assert other["loss"] == pytest.approx(tuned["loss"], abs=0.01)
    assert plain["loss"] != pytest.approx(tuned["loss"], abs=0.01)
    out = cli(*asked, "--no-generate", "--offline").out
    assert "tuned" in out and "mean KL" in out


def test_what_cannot_be_compared_is_refused(
    cli: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: Path
) -> None:
    asked = ("compare", "--model", write_tiny_model(tmp_path / "tiny"), "--data", data)
    told = cli.json(*asked, "--no-generate", "starter", code=4)
    assert told["message"].startswith("has another vocabulary")
    # A mistyped name is told before anything is measured.
    monkeypatch.setattr("mlx_itune.inference.opening.open_model", pytest.fail)
    assert cli.json(*asked, "nowhere", code=4)["message"].startswith("no such model")
