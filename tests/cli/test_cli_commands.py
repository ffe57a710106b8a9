"""Each command on a tiny model, end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.cli import main, quickstart

Capture = pytest.CaptureFixture[str]


def result(capsys: Capture, *argv: object, code: int = 0) -> dict[str, Any]:
    """The one JSON object a command prints."""
    with pytest.raises(SystemExit) as left:
        main([*map(str, argv), "--json", "--offline"])
    out = capsys.readouterr().out
    assert (left.value.code or 0) == code, out
    assert out.count("\n") == 1
    value: dict[str, Any] = json.loads(out)
    return value


def text(capsys: Capture, *argv: object) -> str:
    with pytest.raises(SystemExit) as left:
        main([*map(str, argv)])
    assert not left.value.code
    return capsys.readouterr().out


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


@pytest.fixture(scope="module")
def adapter(data: Path, tiny_quantized_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("trained")
    with pytest.raises(SystemExit) as left:
        main(
            [
                *("train", "--model", str(tiny_quantized_dir), "--data", str(data)),
                *("--out", str(home / "adapter"), "--runs", str(home / "runs")),
                *("--steps", "4", "--learning-rate", "1e-2", "--batch-size", "4", "--json"),
            ]
        )
    assert not left.value.code
    return home / "adapter"


def test_train_reads_config_and_flags_win(
    capsys: Capture, data: Path, tiny_quantized_dir: Path, tmp_path: Path
) -> None:
    config = tmp_path / "run.toml"
    config.write_text(f'model = "{tiny_quantized_dir}"\ndata = "{data}"\nsteps = 9\nrank = 2\n')
    places = ("--out", tmp_path / "adapter", "--runs", tmp_path / "runs")
    flags = ("--config", config, "--steps", 2, "--batch-size", 4, *places)
    made = result(capsys, "train", *flags)
    assert made["steps"] == 2
    assert {"run", "adapter", "epochs", "train_loss", "valid_loss", "wall_s"} <= made.keys()
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["lora_parameters"]["rank"] == 2


def test_eval_scores_base_and_tuned(
    capsys: Capture, data: Path, adapter: Path, tiny_quantized_dir: Path
) -> None:
    flags = ("--model", tiny_quantized_dir, "--data", data, "--max-new-tokens", 4)
    both = result(capsys, "eval", *flags, "--adapter", adapter)
    assert both["rows"] == both["base"]["rows"] == 8
    assert both["loss"] < both["base"]["loss"]
    assert set(both["tasks"]) == {"odd", "even"}
    alone = result(capsys, "eval", *flags, "--adapter", adapter, "--no-base")
    assert "base" not in alone
    assert alone["loss"] == both["loss"]
    plain = result(capsys, "eval", *flags)
    assert plain["loss"] == both["base"]["loss"]
    assert "tuned" in text(capsys, "eval", *flags, "--adapter", adapter)


def test_rows_are_evaluated_whole(
    capsys: Capture, data: Path, tiny_quantized_dir: Path, tmp_path: Path
) -> None:
    flags = ("--model", tiny_quantized_dir, "--no-generate")
    assert result(capsys, "eval", *flags, "--data", data / "train.jsonl")["rows"] == 24
    (tmp_path / "train.jsonl").write_bytes((data / "train.jsonl").read_bytes())
    # None of a folder's rows is set aside.
    assert result(capsys, "eval", *flags, "--data", tmp_path)["rows"] == 24
    assert result(capsys, "eval", *flags, "--data", data, "--split", "valid")["rows"] == 4


def test_fuse_export_generate_and_chat(
    capsys: Capture,
    data: Path,
    adapter: Path,
    tiny_quantized_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tuned = ("--model", tiny_quantized_dir, "--adapter", adapter)
    fused = result(capsys, "fuse", *tuned, "--out", tmp_path / "fused", "--data", data)
    assert {"out", "bits", "method", "kl_mean", "kl_p99", "top1_agreement"} <= fused.keys()
    unaided = result(capsys, "fuse", *tuned, "--out", tmp_path / "unaided", "--bits", 16)
    assert unaided["bits"] == 16
    assert unaided["tokens"] > 0
    made = result(
        capsys, "export", "--model", tmp_path / "fused", "--to", "mlx", "--out", tmp_path / "mlx"
    )
    assert made["artifacts"][0].keys() == {"path", "format", "bytes", "sha256"}
    assert made["verify"]["tensors_equal"] is True
    flags = ("--prompt", "Triage of case 3?", "--max-tokens", 5)
    answer = result(capsys, "generate", "--model", tmp_path / "mlx", *flags)["text"]
    assert text(capsys, "generate", "--model", tmp_path / "mlx", *flags) == answer + "\n"
    lines = iter(["Triage of case 3?\n", "/reset\n", "Triage of case 3?\n", ""])
    monkeypatch.setattr("sys.stdin.readline", lambda: next(lines), raising=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    talk = result(capsys, "chat", "--model", tmp_path / "mlx", "--max-tokens", 5)
    assert [turn["role"] for turn in talk["messages"]] == ["user", "assistant"]
    assert talk["messages"][1]["content"] == answer


def test_doctor_reports(capsys: Capture) -> None:
    report = result(capsys, "doctor")
    assert report["device"] in ("cpu", "gpu")
    assert "mlx" in report["versions"]


def test_a_missing_model_is_one_line(capsys: Capture, data: Path) -> None:
    flags = ("--model", "no/such/place", "--data", data)
    assert result(capsys, "eval", *flags, code=4)["error"]["exit_code"] == 4


@pytest.mark.parametrize("as_json", [True, False])
def test_quickstart_on_a_tiny_model(
    capsys: Capture,
    as_json: bool,
    tiny_quantized_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quickstart, "MODEL", str(tiny_quantized_dir))
    monkeypatch.setattr(quickstart, "SIZES", {"train": 20, "valid": 4, "test": 6, "unseen": 4})
    monkeypatch.setattr(quickstart, "ANSWER_TOKENS", 4)
    flags = ("quickstart", "--workdir", tmp_path / "demo", "--steps", 1)
    if as_json:
        made = result(capsys, *flags)
        assert {
            "base_exact_match",
            "tuned_exact_match",
            "tasks",
            "adapter",
            "fused",
            "exports",
            "wall_s",
            "unseen_exact_match",
        } <= made.keys()
        assert Path(made["exports"][0]["path"], "model.safetensors").is_file()
    else:
        told = text(capsys, *flags)
        assert "mean over tasks" in told
        assert f"mlx-itune chat --model {tmp_path / 'demo' / 'fused'}" in told
