"""Bundles: sealed by a manifest that finds every change; scripts that run; a card that tells."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_itune.export.shipping.bundle import Bundle, Part, check_bundle, write_bundle
from mlx_itune.kit.errors import ModelError, UsageError

PROVENANCE = {
    "base": {"id": "acme/base-1b", "revision": "abc", "fingerprint": "f" * 64},
    "data": [{"path": "train.jsonl", "rows": 3, "sha256": "0" * 64}],
    "fuse": {
        "method": "exact merge on the grid",
        "bits": 4,
        "tokens": 1200,
        "kl_mean": 3.5e-6,
        "kl_p99": 2e-5,
        "top1_agreement": 0.9998,
    },
}
DATASET = {
    "sources": [
        {"name": "notes|x", "path": "notes.jsonl", "licence": "CC BY 4.0"},
        {"name": "chats", "path": "chats.jsonl", "licence": None},
    ]
}


@pytest.fixture
def bundle(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """An MLX directory, a GGUF file and an Ollama folder, bundled."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "LICENSE").write_text("Licence of the base")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"GGUF weights")
    ollama = tmp_path / "-it's for ollama"
    ollama.mkdir()
    (ollama / "Modelfile").write_text("FROM ./m.gguf\n")
    (ollama / "m.gguf").write_bytes(b"GGUF weights")
    mlx = tmp_path / "mlx"
    shutil.copytree(tiny_model_dir, mlx)
    parts = [Part(mlx, "mlx"), Part(gguf, "gguf"), Part(ollama, "ollama")]
    out = tmp_path / "bundle"
    written = write_bundle(
        parts,
        out,
        name="My Notes 1B",
        provenance=PROVENANCE,
        base_folder=base,
        dataset=DATASET,
    )
    assert isinstance(written, Bundle)
    return out


def test_the_manifest_says_what_it_is(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["base"] == PROVENANCE["base"]
    assert manifest["fidelity"]["kl_mean"] == 3.5e-6
    assert manifest["licences"] == {
        "base model": "apache-2.0",
        "data: notes|x": "CC BY 4.0",
        "data: chats": "unknown: ask",
    }
    on_disk = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    assert {f["path"] for f in manifest["files"]} == on_disk - {"manifest.json"}
    assert (bundle / "LICENSE.base").read_text() == "Licence of the base"
    assert check_bundle(bundle).name == "My Notes 1B"
    card = (bundle / "README.md").read_text()
    for said in ("acme/base-1b", "3.5e-06", "99.98%", "notes\\|x", "unknown: ask", "llama-cli -m"):
        assert said in card


def test_it_can_be_moved(bundle: Path, tmp_path: Path) -> None:
    shutil.move(bundle, tmp_path / "elsewhere")
    check_bundle(tmp_path / "elsewhere")


def _flip(folder: Path) -> None:
    file = folder / "mlx/model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-5] ^= 1
    file.write_bytes(bytes(raw))


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped bit": (_flip, "mlx/model.safetensors: changed"),
    "shorter": (lambda f: os.truncate(f / "m.gguf", 5), "m.gguf: has 5 bytes"),
    "missing": (lambda f: (f / "mlx/config.json").unlink(), "mlx/config.json: is missing"),
    "extra": (lambda f: (f / "mlx/modeling.py").write_text("x"), "modeling.py: is not in the"),
    "hidden extra": (lambda f: (f / ".x").write_text("x"), ".x: is not in the manifest"),
    "link": (lambda f: (f / "l").symlink_to("/etc"), "l: is not in the manifest"),
    "script": (lambda f: (f / "install-ollama.sh").write_text("rm"), "install-ollama.sh"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "is not a bundle"),
    "broken": (lambda f: (f / "manifest.json").write_text("{}"), "manifest is broken"),
    "newer": (lambda f: (f / "manifest.json").write_text('{"v": 9}'), "has version 9"),
    "nested": (lambda f: (f / "manifest.json").write_text("[" * 100_000), "manifest is broken"),
    "no name": (
        lambda f: (f / "manifest.json").write_text(
            (f / "manifest.json").read_text().replace('"m.gguf",\n      "b', '5,\n      "b')
        ),
        "names 5, outside the bundle",
    ),
    "outside": (
        lambda f: (f / "manifest.json").write_text(
            (f / "manifest.json")
            .read_text()
            .replace('"m.gguf",\n      "b', '"../m.gguf",\n      "b')
        ),
        "outside the bundle",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_found(bundle: Path, change: str) -> None:
    alter, said = CHANGES[change]
    alter(bundle)
    with pytest.raises(ModelError) as caught:
        check_bundle(bundle)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def run(bundle: Path, script: str, tools: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(tools)}
    return subprocess.run(
        ["sh", str(bundle / script)], env=environment, capture_output=True, text=True, cwd="/"
    )


def test_the_scripts_install_and_refuse_changed_files(bundle: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    said = tools / "said"
    (tools / "ollama").write_text(f'#!/bin/sh\necho "$PWD" "$@" > {said}\n')
    (tools / "ollama").chmod(0o755)
    assert run(bundle, "install-ollama.sh", tools).returncode == 0
    assert said.read_text() == f"{bundle}/-it's for ollama create my-notes-1b -f Modelfile\n"
    done = run(bundle, "install-lmstudio.sh", tools)
    assert done.returncode == 0, done.stderr
    installed = tools / ".lmstudio/models/local/my-notes-1b"
    assert (installed / "model.safetensors").exists()
    again = run(bundle, "install-lmstudio.sh", tools)
    assert again.returncode != 0 and "exists already" in again.stderr

    said.unlink()
    (bundle / "-it's for ollama/m.gguf").write_bytes(b"GGUF Weights")
    refused = run(bundle, "install-ollama.sh", tools)
    assert refused.returncode != 0 and "changed" in refused.stderr and not said.exists()


def test_what_cannot_be_bundled(tmp_path: Path) -> None:
    out = tmp_path / "out"
    good = tmp_path / "m.gguf"
    good.write_bytes(b"GGUF")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/x.gguf").symlink_to(good)
    odd = tmp_path / "odd\nname.gguf"
    odd.write_bytes(b"GGUF")
    for parts, error in (
        ([], UsageError),
        ([Part(good, "gguf"), Part(good, "gguf")], UsageError),
        ([Part(good, "onnx")], UsageError),
        ([Part(tmp_path / "absent", "mlx")], UsageError),
        ([Part(tmp_path / "linked", "ollama")], ModelError),
        ([Part(odd, "gguf")], ModelError),
    ):
        with pytest.raises(error):
            write_bundle(parts, out, name="x")
        assert not out.exists()


def test_unknown_licences_are_said(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    made = write_bundle([Part(file, "gguf")], tmp_path / "out", name="x")
    assert made.licences == {"base model": "unknown: ask"} and made.fidelity is None
    assert "Not measured" in (tmp_path / "out/README.md").read_text()
