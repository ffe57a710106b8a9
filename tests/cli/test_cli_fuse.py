"""`fuse` as its users meet it: rows of the run, the table, the refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def tuned(
    tiny_quantized_dir: Path, tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, ...]:
    """Data, and a run on it in the working directory; the flags of a fuse of what it made."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for name, count in {"train": 24, "valid": 6, "test": 9}.items():
        rows = [
            {
                "prompt": f"Triage of {name} case {n}?",
                "completion": ("- urgent", "- routine")[n % 2],
            }
            for n in range(count)
        ]
        Path(f"data/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = ("--model", str(tiny_quantized_dir), "--adapter")
    how = ("--steps", 3, "--learning-rate", "1e-2", "--offline")
    cli("train", *model, "qalora", "--data", "data", "--out", "adapter", *how)
    return ("fuse", *model, "adapter")


def test_the_runs_validation_rows_are_the_default(tuned: tuple[str, ...], cli: Any) -> None:
    made = cli.json(*tuned, "--out", "fused")
    assert (made["way"], made["rows"], made["calibration_rows"]) == ("exact", 6, 0)
    assert made.keys() >= {
        *("out", "bits", "method", "kl_mean", "kl_p99", "top1_agreement"),
        *("bytes", "tokens", "score_reference", "score_fused", "tried"),
    }
    assert made["score_reference"] == made["score_fused"]
    assert made["kl_mean"] < 1e-5
    table = cli(*tuned, "--out", "every", "--every-way", "--max-kl", 0.5, "--offline").out
    assert "the run's validation rows" in table
    assert "requantized at 4 bits, compensated" in table
    # Rows that are not the run's any more say nothing about what was held out.
    shutil.copyfile("data/test.jsonl", "data/valid.jsonl")
    assert "built-in prompts" in cli(*tuned, "--out", "other", "--offline").out
    shutil.rmtree("runs")
    assert cli.json(*tuned, "--out", "third")["score_fused"] is None


def test_rows_that_are_given_are_measured_on(tuned: tuple[str, ...], cli: Any) -> None:
    way = ("--way", "compensated", "--bits", 8, "--max-kl", 1e9)
    folder = cli.json(*tuned, "--out", "a", "--data", "data", *way)
    assert (folder["rows"], folder["calibration_rows"]) == (9, 24)
    # An exact merge has no errors to compensate: all rows of a file are measured on.
    whole = cli.json(*tuned, "--out", "c", "--data", "data/test.jsonl")
    assert (whole["way"], whole["rows"]) == ("exact", 9)
    # Otherwise a third of a file by itself is set aside.
    file = cli.json(*tuned, "--out", "b", "--data", "data/test.jsonl", "--no-score", *way)
    assert (file["rows"], file["calibration_rows"]) == (6, 3)
    assert file["score_reference"] is None


def test_what_is_too_far_or_cannot_be_is_refused(
    tuned: tuple[str, ...], tiny_model_dir: Path, cli: Any
) -> None:
    far = ("--out", "fused", "--way", "plain", "--max-kl", 0)
    assert "beyond --max-kl" in cli.json(*tuned, *far, code=4)["message"]
    cli.json(*tuned, *far, "--way", "float", "--bits", 4, code=2)
    cli.json(*tuned, *far, "--model", tiny_model_dir, "--data", "data", code=4)
    cli.json(*tuned, *far, "--data", "missing", code=3)
    assert "already exists" in cli.json(*tuned, "--out", "data", code=5)["message"]
    assert not [*Path().glob("fused*"), *Path().glob(".fused*")]
    assert cli.json(*tuned, *far, "--allow-lossy")["way"] == "plain"
    assert json.loads(Path("fused/provenance.json").read_text())["fuse"]["kl_mean"] > 0
