"""What a stranger's files and a changed base may not do, command by command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.cli import main

ADAPTER_COMMANDS = {
    "generate": ["hi", "--max-tokens", "1"],
    "eval": ["--no-generate", "--data", "rows.jsonl"],
    "compare": ["--no-generate", "--data", "rows.jsonl"],
    "fuse": ["--way", "float", "--no-score", "--data", "rows.jsonl", "--out", "out"],
    "export mlx": ["--way", "float", "--data", "rows.jsonl", "--out", "out"],
    "export gguf-lora": ["--out", "out.gguf"],
    "export peft": ["--out", "out"],
    "export hf": ["--out", "out"],
}


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as left:
        main([*argv, "--offline"])
    return int(left.value.code or 0), capsys.readouterr().err


@pytest.fixture(scope="module")
def tuned(tiny_quantized_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, an adapter on it and the rows that it learned."""
    place = tmp_path_factory.mktemp("tuned")
    shutil.copytree(tiny_quantized_dir, place / "model")
    rows = [{"prompt": f"Case {n}?", "completion": "- routine"} for n in range(8)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--data", str(place / "rows.jsonl"), "--out", str(place / "adapter"), "--steps", "1"]
    with pytest.raises(SystemExit) as left:
        main(["train", "--model", str(place / "model"), "--runs", str(place / "runs"), *flags])
    assert not left.value.code
    return place


@pytest.mark.parametrize("command", ADAPTER_COMMANDS)
def test_a_changed_base_is_refused_and_can_be_allowed(
    command: str,
    tuned: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("model", "adapter"):
        shutil.copytree(tuned / name, tmp_path / name)
    shutil.copy(tuned / "rows.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    edit(tmp_path / "model" / "config.json", rms_norm_eps=1e-3)
    name, _, kind = command.partition(" ")
    argv = [name, "--model", "model", "--adapter", "adapter", *ADAPTER_COMMANDS[command]]
    argv += ["--to", kind] if kind else []
    code, err = run(capsys, *argv)
    assert code == 4, err
    assert "rms_norm_eps is 0.001, was 1e-05" in err
    assert not [*tmp_path.glob("out*")]
    assert run(capsys, *argv, "--allow-other-base")[0] == 0


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("tokenizer_config.json", {"chat_template": 1.5}),
        ("tokenizer_config.json", {"chat_template": [{"name": 1}]}),
        ("tokenizer_config.json", {"eos_token": ["x"]}),
        ("generation_config.json", {"eos_token_id": "x"}),
        ("config.json", {"rope_theta": "x"}),
        ("model.safetensors.index.json", {"weight_map": [1]}),
    ],
)
def test_a_model_of_wrong_types_is_one_line(
    file: str,
    change: dict[str, Any],
    tiny_quantized_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(tiny_quantized_dir, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    edit(tmp_path / "model" / file, **change)
    code, err = run(capsys, "generate", "--model", str(tmp_path / "model"), "hi")
    assert code == 4, err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def edit(path: Path, **change: object) -> None:
    read = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(read | change))


@pytest.mark.parametrize("field", ["patterns", "starts"])
def test_a_lint_that_takes_for_ever_is_refused(
    field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lints, rows = tmp_path / "lints.toml", tmp_path / "rows.jsonl"
    lints.write_text(f'[[lint]]\ncode = "evil"\nmessage = "m"\n{field} = ["(a|aa)+$"]\n')
    rows.write_text(json.dumps({"prompt": "a" * 200 + "!", "completion": "b"}) + "\n")
    code, err = run(capsys, "data", "check", str(rows), "--lints", str(lints))
    assert code == 2
    assert "a pattern of the lint 'evil' takes too long" in err.splitlines()[-1]


@pytest.mark.parametrize("pattern", ["x{999999999}", "((((a{20}){20}){20}){20}){20}", "(" * 40000])
def test_a_pattern_that_is_endless_once_unrolled_is_refused(
    pattern: str, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tuned / "adapter", tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    parameters = json.loads(path.read_text())["lora_parameters"]
    edit(path, lora_parameters=parameters | {"keys": [f"re:{pattern}"]})
    files = ["--model", str(tuned / "model"), "--adapter", str(tmp_path / "adapter")]
    code, err = run(capsys, "generate", *files, "hi")
    assert code == 4
    assert "is no regular expression" in err
    assert err.count("\n") == 1
