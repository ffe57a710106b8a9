"""`plan` on the command line: one object, stable keys, exit 7."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_itune.cli import main

KEYS = {
    "peak_memory_bytes",
    "limit_bytes",
    "fits",
    "breakdown",
    "time_per_epoch_s",
    "time_from",
    "suggestions",
    "gradient_checkpointing",
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    row = {
        "messages": [
            {"role": "user", "content": "note " * 200},
            {"role": "assistant", "content": "triage " * 50},
        ]
    }
    path = tmp_path / "rows.jsonl"
    path.write_text((json.dumps(row) + "\n") * 12)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments), "--offline"])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_a_plan_in_json(
    tiny_quantized_dir: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "plan", "--model", tiny_quantized_dir, "--data", data, "--json")
    plan = json.loads(out)
    assert code == 0 and plan["fits"] is True and plan.keys() >= KEYS
    assert set(plan["breakdown"]) == {
        "weights",
        "adapter",
        "optimizer",
        "gradients",
        "activations",
        "logits",
    }
    assert sum(plan["breakdown"].values()) == plan["peak_memory_bytes"]
    assert plan["time_per_epoch_s"] > 0


def test_what_does_not_fit_exits_with_7(
    tiny_model_dir: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--model", tiny_model_dir, "--data", data, "--memory-gb", 0.002)
    code, out, _ = run(capsys, "plan", *flags, "--json")
    plan = json.loads(out)
    assert code == 7 and plan["fits"] is False and plan["limit_bytes"] == 2_000_000
    assert all(s.keys() == {"change", "peak_memory_bytes", "fits"} for s in plan["suggestions"])

    code, out, _ = run(capsys, "plan", *flags)
    assert code == 7 and "does not fit" in out and "try " in out


def test_train_refuses_before_it_makes_anything(
    tiny_model_dir: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, runs = tmp_path / "adapter", tmp_path / "runs"
    flags = ("--model", tiny_model_dir, "--data", data, "--memory-gb", 0.002)
    code, _, err = run(capsys, "train", *flags, "--out", out, "--runs", runs)
    assert code == 7 and "memory" in err and len(err.strip().splitlines()) == 1
    assert not out.exists() and not runs.exists()


def test_missing_flags_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "plan", "--model", "starter")
    assert code == 2 and "--data" in err
