"""Bad input to fuse and export: the right exit code, one line with the reason, nothing left."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mlx_itune.export  # noqa: F401  (loads a fast BLAS before mlx.core)

import mlx.core as mx  # isort: skip

from mlx_itune.cli import main
from mlx_itune.dataset.tokens.tokenizer import load_tokenizer
from mlx_itune.kit.files import sha256_file
from mlx_itune.model.loading.fingerprint import fingerprint
from tests.conftest import write_tiny_model
from tests.export.shipped_models import settings, spoil, write_adapter

# `gguf` is of the base alone; the others are of base and adapter.
WAYS = ("fuse", "mlx", "hf", "peft", "gguf", "gguf-lora")
Outcome = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 4-bit model, a LoRA trained on it, and rows to measure on."""
    root = tmp_path_factory.mktemp("originals")
    model = write_tiny_model(root / "model", bits=4)
    trained_with = {
        "sha256": sha256_file(model / "tokenizer.json"),
        "template": "auto",
        "template_sha256": load_tokenizer(model).template_sha256,
    }
    settings(write_adapter(root / "adapter", model) / "provenance.json", tokenizer=trained_with)
    turns = [{"role": "user", "content": "Medications?"}, {"role": "assistant", "content": "none"}]
    (root / "data.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 3)
    return root


@pytest.fixture
def place(originals: Path, tmp_path: Path) -> Path:
    return shutil.copytree(originals, tmp_path / "here")


def output(place: Path, way: str) -> Path:
    """As this way wants it called."""
    return place / ("out.gguf" if way.startswith("gguf") else "out")


def listing(place: Path) -> list[tuple[str, int]]:
    return sorted(
        (str(p), 0 if p.is_dir() and not p.is_symlink() else p.lstat().st_size)
        for p in place.rglob("*")
    )


@pytest.fixture
def refused(place: Path, capsys: pytest.CaptureFixture[str]) -> Outcome:
    """One way to ship: its exit code and the line that says why; it left all as it was."""

    def outcome(way: str, *more: str, out: Path | None = None) -> tuple[int, str]:
        before = listing(place)
        argv = ["fuse"] if way == "fuse" else ["export", "--to", way]
        argv += ["--model", str(place / "model"), "--out", str(out or output(place, way))]
        if way != "gguf":
            argv += ["--adapter", str(place / "adapter")]
        if way in ("fuse", "mlx"):
            argv += ["--data", str(place / "data.jsonl"), "--max-kl", "10"]
        with pytest.raises(SystemExit) as left:
            main([*argv, "--offline", *more])
        told = capsys.readouterr().err
        (line,) = [x for x in told.splitlines() if x.startswith("error: ")]
        assert "Traceback" not in told and "a bug in" not in told
        assert listing(place) == before
        return int(left.value.code or 0), line

    return outcome


def another_base(place: Path) -> None:
    shutil.rmtree(place / "model")
    write_tiny_model(place / "model", bits=4, seed=5)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def looped(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(path)


def larger_tokenizer(place: Path) -> None:
    value = json.loads((place / "model/tokenizer.json").read_text())
    token = {"id": 5000, "content": "<|new|>", "special": True}
    token |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    value["added_tokens"].append(token)
    value["model"]["vocab"]["<|new|>"] = 5000
    (place / "model/tokenizer.json").write_text(json.dumps(value))
    settings(place / "adapter/provenance.json", tokenizer={"template": "auto"})


def other_tokenizer(place: Path) -> None:
    file = place / "model/tokenizer.json"
    file.write_text(file.read_text().replace("metformin", "zolpidemx") + "\n")


FACTORS, WEIGHTS = "adapter/adapters.safetensors", "model/model.safetensors"
# What else can be wrong with a model or an adapter: tests/model, where each is vetted.
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another base": (another_base, "was trained on"),
    "truncated adapter": (lambda p: cut(p / FACTORS), "not a valid safetensors file"),
    "no number": (
        lambda p: spoil(p / FACTORS, "model.layers.0.self_attn.q_proj.lora_a", float("nan")),
        "NaN",
    ),
    "adapter in a loop": (lambda p: looped(p / FACTORS), "no adapter directory"),
    "other tokenizer": (other_tokenizer, "another tokenizer"),
    "larger tokenizer": (larger_tokenizer, "rows"),
    "truncated model": (lambda p: cut(p / WEIGHTS), "not a valid safetensors"),
    "custom code": (
        lambda p: settings(p / "model/config.json", auto_map={"AutoModel": "modeling.M"}),
        "custom code",
    ),
    "model in a loop": (lambda p: looped(p / "model"), ""),
}
CASES = [(case, way) for case in BROKEN for way in ("fuse", "hf", "peft", "gguf-lora")]
# An adapter in GGUF holds no tokenizer.
CASES.remove(("larger tokenizer", "gguf-lora"))


@pytest.mark.parametrize(("case", "way"), CASES)
def test_broken_input_is_refused(case: str, way: str, place: Path, refused: Outcome) -> None:
    breaking, words = BROKEN[case]
    breaking(place)
    code, line = refused(way)
    assert code == 4 and words in line, line


@pytest.mark.parametrize("way", WAYS)
def test_a_place_that_has_no_room(
    way: str, place: Path, refused: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(place)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    code, line = refused(way)
    assert code == 5 and "free" in line


@pytest.mark.parametrize(
    ("name", "value"), [("model.norm.weight", "nan"), ("model.layers.1.mlp.up_proj.scales", "inf")]
)
def test_a_base_with_numbers_that_are_none(
    name: str, value: str, place: Path, refused: Outcome
) -> None:
    spoil(place / WEIGHTS, name, float(value))
    base = {"id": "model", "fingerprint": fingerprint(place / "model")}
    settings(place / "adapter/provenance.json", base=base)
    lossy = ("--allow-lossy",)
    for way, more in (("fuse", ()), ("fuse", lossy), ("mlx", lossy), ("hf", ()), ("gguf", ())):
        code, line = refused(way, *more)
        assert code == 4 and "holds NaN or infinity" in line


@pytest.mark.parametrize("way", ["fuse", "mlx", "hf", "peft"])
def test_a_destination_that_is_or_holds_the_source(way: str, place: Path, refused: Outcome) -> None:
    for where in ("model", "model/inside", "adapter", "adapter/inside", "."):
        assert refused(way, out=place / where)[0] == 2


@pytest.mark.parametrize("reason", [os.strerror(errno.ENOSPC), os.strerror(errno.EIO)])
@pytest.mark.parametrize("way", WAYS)
def test_a_disk_that_fails_while_it_is_written(
    way: str, reason: str, refused: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(descriptor: int, data: Any) -> int:
        raise OSError(0, reason)

    def save(file: str, *_: Any, **__: Any) -> None:
        Path(file).write_bytes(b"half")
        raise RuntimeError(f"[save_safetensors] Failed to write 100 bytes: {reason}")

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(mx, "save_safetensors", save)
    code, line = refused(way)
    assert code == 5 and reason in line


def test_an_interrupted_export_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> int:
        raise KeyboardInterrupt

    before = listing(place)
    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(SystemExit) as left:
        main(["export", "--to", "hf", "--model", f"{place}/model", "--out", f"{place}/out"])
    assert left.value.code == 130 and listing(place) == before
