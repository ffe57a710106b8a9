"""What a stranger's files and a changed base may not do, command by command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import ended

ADAPTER_COMMANDS = {
    "generate": ["hi", "--max-tokens", "1"],
    "eval": ["--no-generate", "--data", "rows.jsonl"],
    "fuse": ["--way", "float", "--no-score", "--data", "rows.jsonl", "--out", "out"],
    "export gguf-lora": ["--out", "out.gguf"],
    "export peft": ["--out", "out"],
    "export hf": ["--out", "out"],
}


@pytest.fixture(scope="module")
def tuned(tiny_quantized_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, an adapter on it and the rows that it learned."""
    place = tmp_path_factory.mktemp("tuned")
    shutil.copytree(tiny_quantized_dir, place / "model")
    rows = [{"prompt": f"Case {n}?", "completion": "- routine"} for n in range(8)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--data", place / "rows.jsonl", "--out", place / "adapter", "--steps", 1)
    assert ended("train", "--model", place / "model", "--runs", place / "runs", *flags) == 0
    return place


@pytest.mark.parametrize("command", ADAPTER_COMMANDS)
def test_a_changed_base_is_refused_and_can_be_allowed(
    cli: Any, command: str, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("model", "adapter"):
        shutil.copytree(tuned / name, tmp_path / name)
    shutil.copy(tuned / "rows.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    edit(tmp_path / "model" / "config.json", rms_norm_eps=1e-3)
    name, _, kind = command.partition(" ")
    argv = [name, "--model", "model", "--adapter", "adapter", *ADAPTER_COMMANDS[command]]
    argv += ["--to", kind] if kind else []
    assert "rms_norm_eps is 0.001, was 1e-05" in cli(*argv, "--offline", code=4).err
    assert not [*tmp_path.glob("out*")]
    cli(*argv, "--offline", "--allow-other-base")


@pytest.mark.parametrize("template", [1.5, [{"name": 1}]])
def test_a_template_of_another_type_is_one_line(
    cli: Any, template: object, tuned: Path, tmp_path: Path
) -> None:
    shutil.copytree(tuned / "model", tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    edit(tmp_path / "model" / "tokenizer_config.json", chat_template=template)
    cli.refused("generate", "--model", tmp_path / "model", "hi", code=4)


def edit(path: Path, **change: object) -> None:
    read = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(read | change))


@pytest.mark.parametrize("field", ["patterns", "starts"])
def test_a_lint_that_takes_for_ever_is_refused(cli: Any, field: str, tmp_path: Path) -> None:
    lints, rows = tmp_path / "lints.toml", tmp_path / "rows.jsonl"
    lints.write_text(f'[[lint]]\ncode = "evil"\nmessage = "m"\n{field} = ["(a|aa)+$"]\n')
    rows.write_text(json.dumps({"prompt": "a" * 200 + "!", "completion": "b"}) + "\n")
    err = cli("data", "check", rows, "--lints", lints, code=2).err
    assert "a pattern of the lint 'evil' takes too long" in err.splitlines()[-1]
