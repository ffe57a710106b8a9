"""What a stranger's files and a changed base may not do, command by command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mlx_itune.cli import main

ADAPTER_COMMANDS = {
    "generate": ["hi", "--max-tokens", "1"],
    "eval": ["--no-generate", "--data", "rows.jsonl"],
    "fuse": ["--way", "float", "--no-score", "--data", "rows.jsonl", "--out", "out"],
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


@pytest.mark.parametrize("template", [1.5, [{"name": 1}]])
def test_a_template_of_another_type_is_one_line(
    template: object, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tuned / "model", tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    edit(tmp_path / "model" / "tokenizer_config.json", chat_template=template)
    code, err = run(capsys, "generate", "--model", str(tmp_path / "model"), "hi")
    assert (code, err.count("\n")) == (4, 1), err


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
