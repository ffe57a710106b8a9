"""`train` with a configuration, `eval`, `quickstart` and `doctor` on a tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.cli import quickstart


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Triage of case {n}?"},
                {"role": "assistant", "content": "- routine" if n % 2 else "- urgent"},
            ],
            "task": ("odd", "even")[n % 2],
        }
        for n in range(24)
    ]
    for name, part in {"train": rows, "valid": rows[:4], "test": rows[2:10]}.items():
        lines = (json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


def test_train_reads_config_and_flags_win(
    cli: Any, data: Path, tiny_quantized_dir: Path, tmp_path: Path
) -> None:
    config = tmp_path / "run.toml"
    config.write_text(f'model = "{tiny_quantized_dir}"\ndata = "{data}"\nsteps = 9\nrank = 2\n')
    places = ("--out", tmp_path / "adapter", "--runs", tmp_path / "runs")
    made = cli.json("train", "--config", config, "--steps", 2, "--batch-size", 4, *places)
    assert made["steps"] == 2
    assert {"run", "adapter", "epochs", "train_loss", "valid_loss", "wall_s"} <= made.keys()
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["lora_parameters"]["rank"] == 2


def test_eval_scores_base_and_tuned_on_all_rows(
    cli: Any, data: Path, tiny_quantized_dir: Path, tmp_path: Path
) -> None:
    model = ("--model", tiny_quantized_dir)
    adapter, alone = tmp_path / "adapter", tmp_path / "alone"
    few = ("--steps", 4, "--learning-rate", "1e-2", "--batch-size", 4, "--runs", tmp_path / "runs")
    cli("train", *model, "--data", data, "--out", adapter, *few)
    flags = (*model, "--data", data, "--max-new-tokens", 4)
    both = cli.json("eval", *flags, "--adapter", adapter)
    assert both["rows"] == both["base"]["rows"] == 8
    assert both["loss"] < both["base"]["loss"]
    assert set(both["tasks"]) == {"odd", "even"}
    tuned = cli.json("eval", *flags, "--adapter", adapter, "--no-base")
    assert tuned["base"] is None and tuned["loss"] == both["loss"]
    shown = cli("eval", *flags).out
    assert f"{both['base']['loss']:.4g}" in shown and "8 rows" in shown
    # None of the rows of a file, or of a folder without a test split, is set aside.
    alone.mkdir()
    (alone / "train.jsonl").write_bytes((data / "train.jsonl").read_bytes())
    for place, more, rows in (
        (data / "train.jsonl", (), 24),
        (alone, (), 24),
        (data, ("--split", "valid"), 4),
    ):
        found = cli.json("eval", *model, "--no-generate", "--data", place, *more)
        assert found["rows"] == rows
    assert cli.json("eval", "--model", "no/such/place", "--data", data, code=4)["exit_code"] == 4


def test_quickstart_on_a_tiny_model(
    cli: Any, tiny_quantized_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, recipe in quickstart.RECIPES.items():
        small = replace(recipe, model=str(tiny_quantized_dir))
        monkeypatch.setitem(quickstart.RECIPES, name, small)
    monkeypatch.setattr(quickstart, "SIZES", {"train": 20, "valid": 4, "test": 6, "unseen": 4})
    monkeypatch.setattr(quickstart, "ANSWER_TOKENS", 4)
    home = tmp_path / "demo"
    made = cli.json("quickstart", "--workdir", home, "--steps", 1)
    assert made.keys() >= {
        *("base_exact_match", "tuned_exact_match", "unseen_exact_match", "tasks", "adapter"),
        *("fused", "exports", "wall_s"),
    }
    assert Path(made["exports"][0]["path"], "model.safetensors").is_file()
    # A folder that exists gets a new one inside.
    told = cli("quickstart", "--model", "smollm2", "--workdir", home, "--steps", 1).out
    assert "mean over tasks" in told
    assert f"mlx-itune chat --model {home / 'run-2' / 'fused'}" in told


def test_doctor_reports(cli: Any) -> None:
    report = cli.json("doctor")
    assert report["device"] in ("cpu", "gpu") and "mlx" in report["versions"]
