"""`fuse` as its users meet it: rows of the run, the table, the refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.cli import main

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *argv: object, code: int = 0) -> Any:
    """What a command prints: its JSON with --json, else its text."""
    with pytest.raises(SystemExit) as left:
        main([*map(str, argv), "--offline"])
    out = capsys.readouterr().out
    assert (left.value.code or 0) == code, out
    return json.loads(out) if "--json" in argv else out


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, count in {"train": 24, "valid": 6, "test": 9}.items():
        rows = [
            {
                "messages": [
                    {"role": "user", "content": f"Triage of {name} case {n}?"},
                    {"role": "assistant", "content": "- routine" if n % 2 else "- urgent"},
                ]
            }
            for n in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def tuned(
    data: Path,
    tiny_quantized_dir: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[str, ...]:
    """A run in the working directory, as `train` leaves it; the flags of a fuse of it."""
    monkeypatch.chdir(tmp_path)
    flags = ("--data", "data", "--out", "adapter", "--steps", 3, "--learning-rate", "1e-2")
    run(capsys, "train", "--model", tiny_quantized_dir, *flags, "--adapter", "qalora")
    return ("fuse", "--model", str(tiny_quantized_dir), "--adapter", "adapter")


def test_the_runs_validation_rows_are_the_default(
    tuned: tuple[str, ...], data: Path, tmp_path: Path, capsys: Capture
) -> None:
    made = run(capsys, *tuned, "--out", "fused", "--json")
    assert (made["way"], made["rows"], made["calibration_rows"]) == ("exact", 6, 0)
    assert made.keys() >= {
        *("out", "bits", "method", "kl_mean", "kl_p99", "top1_agreement"),
        *("bytes", "tokens", "score_reference", "score_fused", "tried"),
    }
    assert made["score_reference"] == made["score_fused"]
    assert made["kl_mean"] < 1e-5
    table = run(capsys, *tuned, "--out", "every", "--every-way", "--max-kl", 0.5)
    assert "the run's validation rows" in table
    assert "requantized at 4 bits, compensated" in table
    # Rows that are not the run's any more say nothing about what was held out.
    (data / "valid.jsonl").write_text((data / "test.jsonl").read_text())
    assert "built-in prompts" in run(capsys, *tuned, "--out", "other")
    shutil.rmtree(tmp_path / "runs")
    assert run(capsys, *tuned, "--out", "third", "--json")["score_fused"] is None


def test_rows_that_are_given_are_measured_on(tuned: tuple[str, ...], capsys: Capture) -> None:
    way = ("--way", "compensated", "--bits", 8, "--max-kl", 1e9, "--json")
    folder = run(capsys, *tuned, "--out", "a", "--data", "data", *way)
    assert (folder["rows"], folder["calibration_rows"]) == (9, 24)
    # An exact merge has no errors to compensate: all rows of a file are measured on.
    whole = run(capsys, *tuned, "--out", "c", "--data", "data/test.jsonl", "--json")
    assert (whole["way"], whole["rows"]) == ("exact", 9)
    # Otherwise a third of a file by itself is set aside.
    file = run(capsys, *tuned, "--out", "b", "--data", "data/test.jsonl", "--no-score", *way)
    assert (file["rows"], file["calibration_rows"]) == (6, 3)
    assert file["score_reference"] is None


def test_what_is_too_far_or_cannot_be_is_refused(
    tuned: tuple[str, ...], tiny_model_dir: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = ("--out", "fused")
    far = run(capsys, *tuned, *out, "--way", "plain", "--max-kl", 0, "--json", code=4)
    assert "beyond --max-kl" in far["error"]["message"]
    run(capsys, *tuned, *out, "--way", "float", "--bits", 4, code=2)
    other = ("fuse", "--model", tiny_model_dir, "--adapter", "adapter")
    run(capsys, *other, *out, "--data", "data", code=4)
    run(capsys, *tuned, *out, "--data", "missing", code=3)
    assert not (tmp_path / "fused").exists()
    assert not list(tmp_path.glob(".fused*"))
    lossy = run(capsys, *tuned, *out, "--way", "plain", "--max-kl", 0, "--allow-lossy", "--json")
    assert lossy["way"] == "plain"
