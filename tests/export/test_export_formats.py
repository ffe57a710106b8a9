"""`export`, `import` and `verify` as a user meets them: what is written, told and refused."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mlx_itune.export  # noqa: F401  (loads a fast BLAS before mlx.core)

import mlx.core as mx  # isort: skip

from mlx_itune.export import formats
from tests.cli.conftest import Cli
from tests.conftest import write_tiny_model
from tests.export.shipped_models import write_adapter

Run = Callable[..., Any]
ROW = {
    "messages": [
        {"role": "system", "content": "Answer in one line."},
        {"role": "user", "content": "Extract the medications."},
        {"role": "assistant", "content": "metformin 500 mg; zolpidem 5 mg"},
    ]
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 4-bit model, an adapter of each kind, rows."""
    root = tmp_path_factory.mktemp("made")
    model = write_tiny_model(root / "model", bits=4)
    for kind in ("lora", "grid", "dora"):
        write_adapter(root / kind, model, kind=kind)
    (root / "rows.jsonl").write_text((json.dumps(ROW) + "\n") * 3)
    return root


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return Cli(capsys).json


def export(made: Path, run: Run, out: Path, *argv: object, **more: Any) -> Any:
    given = ["--model", made / "model", "--out", out, *argv]
    merges = "--adapter" in argv and not {"gguf-lora", "peft", "hf"} & set(map(str, argv))
    if merges and "--separate" not in argv:
        given += ["--data", made / "rows.jsonl", "--max-kl", "10"]
    return run("export", *given, **more)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


CASES = [
    ("mlx", "mlx", None),
    ("gguf", "m.gguf", None),
    ("gguf", "m.gguf", "lora"),
    ("gguf", "m.gguf", "grid"),
    ("gguf-lora", "l.gguf", "lora"),
    ("hf", "hf", "dora"),
    ("peft", "peft", "dora"),
    ("ollama", "folder", "lora"),
    ("lmstudio", "models", "lora"),
]


@pytest.mark.parametrize(("kind", "name", "adapter"), CASES)
def test_every_format_is_written_and_read_back(
    made: Path, run: Run, tmp_path: Path, kind: str, name: str, adapter: str | None
) -> None:
    more = ["--adapter", made / adapter] if adapter else []
    found = export(made, run, tmp_path / name, "--to", kind, *more)
    (artifact,) = found["artifacts"]
    assert artifact["format"] == kind
    path = Path(artifact["path"])
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    assert artifact["bytes"] == sum(file.stat().st_size for file in files) > 0
    assert len(artifact["sha256"]) == 64
    assert found["verify"]
    merged = adapter is not None and kind not in ("gguf-lora", "hf", "peft")
    assert (found["fuse"] is not None) == merged
    if kind == "mlx":
        before, after = (mx.load(str(f / "model.safetensors")) for f in (made / "model", path))
        assert before.keys() == after.keys() and found["verify"]["tensors_equal"]
        assert all(mx.array_equal(before[tensor], after[tensor]).item() for tensor in before)
    if adapter == "grid":
        # It keeps the base's codes.
        assert found["fuse"]["way"] == "exact" and found["verify"]["types"]["Q4_1"]
    # Nothing of the making is left.
    assert names(tmp_path) == [name]


def test_a_merge_is_rounded_once_by_the_type_asked_for(
    made: Path, run: Run, tmp_path: Path
) -> None:
    given = ("--to", "gguf", "--adapter", made / "lora", "--type")
    coarse = export(made, run, tmp_path / "a.gguf", *given, "lossless")
    assert coarse["verify"]["types"]["Q4_1"]
    for kind in ("f16", "f32", "q8_0"):
        found = export(made, run, tmp_path / f"{kind}.gguf", *given, kind)
        assert found["fuse"]["way"] == "float"
        assert found["fuse"]["kl_mean"] <= coarse["fuse"]["kl_mean"]
        assert kind.upper() in found["verify"]["types"]


def test_ollama_s_folder(made: Path, run: Run, tmp_path: Path) -> None:
    given = ("--to", "ollama", "--adapter", made / "lora")
    told = export(made, run, tmp_path / "a b", *given)
    text = (tmp_path / "a b" / "Modelfile").read_text()
    assert text.startswith("FROM ./model.gguf\n")
    # The one of all rows.
    assert 'SYSTEM "Answer in one line."' in text
    # The command that is shown can be pasted.
    assert shlex.split(told["notes"][-1])[-1] == str(tmp_path / "a b" / "Modelfile")
    found = export(made, run, tmp_path / "o", *given, "--separate")
    assert names(tmp_path / "o") == ["Modelfile", "adapter.gguf", "model.gguf"]
    assert "ADAPTER ./adapter.gguf" in (tmp_path / "o" / "Modelfile").read_text()
    assert found["verify"]["adapter"]["pairs"] > 0


def test_a_bundle_is_whole_and_is_checked(made: Path, run: Run, tmp_path: Path) -> None:
    given = ("--to", "gguf", "--adapter", made / "lora", "--bundle", "--name", "acme/Notes")
    found = export(made, run, tmp_path / "b", *given)
    artifact, whole = found["artifacts"]
    assert Path(artifact["path"]) == tmp_path / "b" / "notes.gguf"
    assert whole["format"] == "bundle" and whole["bytes"] > artifact["bytes"]
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["fidelity"]["kl_mean"] == found["fuse"]["kl_mean"]
    assert manifest["base"]["id"] == "model" and manifest["base"]["fingerprint"]
    checked = run("verify", tmp_path / "b")
    assert checked["path"] == str(tmp_path / "b") and checked["name"] == "notes"
    assert len(checked["files"]) == len(names(tmp_path / "b")) - 1
    (tmp_path / "b" / "README.md").unlink()
    assert "is missing" in run("verify", tmp_path / "b", code=4)["message"]


REFUSED = [
    (("--to", "gguf"), "m", 2, ".gguf"),
    (("--to", "gguf", "--type", "q4_o"), "m.gguf", 2, "did you mean q4_0?"),
    (("--to", "mlx", "--type", "f16"), "m", 2, "leave --type out"),
    (("--to", "peft"), "m", 2, "--adapter"),
    (("--to", "peft", "--name", "x", "--adapter", "lora"), "m", 2, "no effect"),
    (("--to", "gguf", "--separate", "--adapter", "lora"), "m.gguf", 2, "--separate"),
    (("--to", "gguf-lora", "--adapter", "grid"), "m.gguf", 4, "fuse it"),
    (("--to", "peft", "--adapter", "grid"), "m", 4, "--to hf"),
    (("--to", "lmstudio", "--name", "a b/c"), "m", 2, "no name of a folder"),
    (("--to", "gguf", "--bits", "8"), "m.gguf", 2, "--adapter"),
    (("--to", "gguf", "--allow-lossy"), "m.gguf", 2, "give --adapter"),
    (("--to", "hf", "--bits", "8", "--adapter", "lora"), "m", 2, "merged and measured"),
    (("--to", "gguf-lora", "--max-kl", "1", "--adapter", "lora"), "m.gguf", 2, "leave them out"),
    (("--to", "gguf", "--way", "exact", "--adapter", "lora"), "m.gguf", 4, "exact merge"),
]


@pytest.mark.parametrize(("argv", "name", "code", "told"), REFUSED)
def test_what_cannot_be_is_refused_in_one_line(
    made: Path, run: Run, tmp_path: Path, argv: tuple[str, ...], name: str, code: int, told: str
) -> None:
    given = [made / word if word in ("lora", "grid", "dora") else word for word in argv]
    out = tmp_path / "new" / name
    assert told in str(export(made, run, out, *given, code=code))
    assert not names(tmp_path)


def test_what_gguf_cannot_say_is_refused_before_the_merge(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_tiny_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    (model / "config.json").write_text(json.dumps(config | {"rope_scaling": scaling}))
    adapter = write_adapter(tmp_path / "adapter", model)
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW))
    monkeypatch.setattr(formats, "fuse", None)
    given = ["--model", model, "--adapter", adapter, "--data", tmp_path / "rows.jsonl"]
    said = run("export", *given, "--to", "gguf", "--out", tmp_path / "m.gguf", code=4)
    assert said["where"] == str(model)
    assert said["message"].startswith("llama.cpp has no rotary scaling 'dynamic'")


def test_a_taken_place_is_refused_before_any_work(
    made: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats.base, "load", None)
    (tmp_path / "m.gguf").write_text("mine")
    (tmp_path / "null.gguf").symlink_to("/dev/null")
    os.mkfifo(tmp_path / "fifo.gguf")
    before = names(tmp_path)
    for kind, out in (
        *(("gguf", f"{name}.gguf") for name in ("m", "null", "fifo")),
        ("gguf-lora", "m.gguf"),
        *((kind, "") for kind in ("ollama", "hf", "peft", "mlx")),
    ):
        given = ("--to", kind, "--adapter", made / "lora")
        assert "already exists" in export(made, run, tmp_path / out, *given, code=5)["message"]
    assert names(tmp_path) == before and not (tmp_path / "null.gguf").is_file()


def test_lm_studio_s_folder_may_hold_the_source(made: Path, run: Run, tmp_path: Path) -> None:
    source = tmp_path / "models" / "someone" / "model"
    shutil.copytree(made / "model", source)
    at = ["--model", source, "--to", "lmstudio", "--out", tmp_path / "models"]
    run("export", *at, "--name", "me/tuned")
    assert (tmp_path / "models" / "me" / "tuned" / "model.safetensors").is_file()
    assert "is the model itself" in run("export", *at, "--name", "someone/model", code=2)["message"]


@pytest.mark.parametrize(("kind", "name"), [("mlx", "a b"), ("gguf", "a.gguf"), ("peft", "a [1]*")])
def test_what_a_killed_run_left_goes_with_the_next(
    made: Path, run: Run, tmp_path: Path, kind: str, name: str
) -> None:
    # No process has so high a number.
    dead, mine, other = (
        tmp_path / f".{of}.{process}-0123abcd.partial"
        for of, process in ((name, 99999999), (name, os.getpid()), ("other", 99999999))
    )
    for folder in (dead, mine, other):
        folder.mkdir()
    argv = ("--adapter", made / "lora") if kind == "peft" else ()
    export(made, run, tmp_path / name, "--to", kind, *argv)
    assert sorted(names(tmp_path)) == sorted([mine.name, other.name, name])


def test_a_path_is_no_pattern(made: Path, run: Run, tmp_path: Path) -> None:
    shutil.copytree(made / "model", tmp_path / "m[1]")
    told = run("generate", "--model", tmp_path / "m[1]", "--prompt", "a", code=4)
    assert "opens no path with" in told["message"]
