"""Bundles: sealed by a manifest that finds every change; scripts that run; a card that tells."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.export.bundle import Part, check_bundle, seal_bundle
from mlx_itune.kit.errors import ModelError

PROVENANCE = {
    "source_tokens": {"quiz": 100, "notes": 300},
    "base": {"id": "acme/base-1b", "revision": "abc", "fingerprint": "f" * 64},
    "data": [
        {"path": "train.jsonl", "licences": {"notes|x": "CC BY 4.0", "web": None}},
        {"path": "valid.jsonl", "licences": {"notes|x": "CC BY 4.0", "web": None}},
        {"path": "chats.jsonl"},
    ],
    "fuse": {
        "method": "exact merge on the grid",
        "bits": 4,
        "tokens": 1200,
        "kl_mean": 3.5e-6,
        "kl_p99": 2e-5,
        "top1_agreement": 0.9998,
    },
}


def sealed(out: Path, artefact: Path, kind: str, provenance: Any = PROVENANCE) -> Path:
    """A bundle of one artefact, whose base has a licence."""
    base = out.parent / "base"
    base.mkdir(exist_ok=True)
    (base / "LICENSE").write_text("Licence of the base")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    out.mkdir()
    (shutil.copytree if artefact.is_dir() else shutil.copyfile)(artefact, out / artefact.name)
    part = Part(artefact.name, kind)
    seal_bundle(out, part, name="my-notes-1b", base_folder=base, provenance=provenance)
    return out


@pytest.fixture
def bundle(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return sealed(tmp_path / "bundle", shutil.copytree(tiny_model_dir, tmp_path / "mlx"), "mlx")


def test_the_manifest_says_what_it_is(bundle: Path, tmp_path: Path) -> None:
    assert check_bundle(bundle).name == "my-notes-1b"
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["base"] == PROVENANCE["base"]
    assert manifest["fidelity"]["kl_mean"] == 3.5e-6
    assert manifest["token_shares"] == {"quiz": 0.25, "notes": 0.75}
    assert manifest["licences"] == {
        "base model": "apache-2.0",
        "data: notes|x": "CC BY 4.0",
        "data: web": "unknown: ask",
        "data: chats.jsonl": "unknown: ask",
    }
    on_disk = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    assert {f["path"] for f in manifest["files"]} == on_disk - {"manifest.json"}
    assert (bundle / "LICENSE.base").read_text() == "Licence of the base"
    check_bundle(bundle.rename(tmp_path / "elsewhere"))
    card = (tmp_path / "elsewhere/README.md").read_text()
    for said in ("acme/base-1b", "3.5e-06", "99.98%", "notes\\|x", "unknown: ask", 'load("mlx")'):
        assert said in card


def _named(folder: Path, name: str) -> None:
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"mlx/config.json"', name))


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "another byte": (
        lambda f: (f / "LICENSE.base").write_text("Licence of the case"),
        "LICENSE.base: changed",
    ),
    "shorter": (lambda f: os.truncate(f / "mlx/config.json", 5), "config.json: has 5 bytes"),
    "missing": (lambda f: (f / "mlx/config.json").unlink(), "mlx/config.json: is missing"),
    "extra": (lambda f: (f / "mlx/modeling.py").write_text("x"), "modeling.py: is not in the"),
    "hidden extra": (lambda f: (f / ".x").write_text("x"), ".x: is not in the manifest"),
    "link": (lambda f: (f / "l").symlink_to("/etc"), "l: is not in the manifest"),
    "script": (lambda f: (f / "install-lmstudio.sh").write_text("rm"), "install-lmstudio.sh"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "is not a bundle"),
    "a pipe": (
        lambda f: ((f / "manifest.json").unlink(), os.mkfifo(f / "manifest.json")),
        "is a pipe",
    ),
    "empty": (lambda f: (f / "manifest.json").write_text('{"v": 1}'), "name: is missing"),
    "newer": (lambda f: (f / "manifest.json").write_text('{"v": 9}'), "has version 9"),
    "nested": (lambda f: (f / "manifest.json").write_text('{"a":' + "[" * 100_000), "levels deep"),
    "no name": (lambda f: _named(f, "5"), "path: a text is needed, not 5"),
    "outside": (lambda f: _named(f, '"../m.gguf"'), "outside the bundle"),
    "whole disk": (lambda f: _named(f, '"/etc/hosts"'), "outside the bundle"),
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
    folder = tmp_path / "-it's for ollama"
    folder.mkdir()
    (folder / "Modelfile").write_text("FROM ./m.gguf\n")
    (folder / "m.gguf").write_bytes(b"GGUF weights")
    other = sealed(tmp_path / "other", folder, "ollama", {})
    # What was not measured is said.
    assert check_bundle(other).fidelity is None
    assert "Not measured" in (other / "README.md").read_text()
    assert run(other, "install-ollama.sh", tools).returncode == 0
    assert said.read_text() == f"{other}/-it's for ollama create my-notes-1b -f Modelfile\n"
    said.unlink()
    (other / "-it's for ollama/m.gguf").write_bytes(b"GGUF Weights")
    refused = run(other, "install-ollama.sh", tools)
    assert refused.returncode != 0 and "changed" in refused.stderr and not said.exists()

    done = run(bundle, "install-lmstudio.sh", tools)
    assert done.returncode == 0, done.stderr
    assert (tools / ".lmstudio/models/local/my-notes-1b/model.safetensors").exists()
    again = run(bundle, "install-lmstudio.sh", tools)
    assert again.returncode != 0 and "exists already" in again.stderr


@pytest.mark.parametrize(
    "wrong", [{"base": [1]}, {"data": {}}, {"data": [3]}, {"data": [{"licences": {"a": 1}}]}]
)
def test_a_provenance_of_wrong_types_is_told(wrong: Any, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"provenance\.json: .* is needed"):
        sealed(tmp_path / "out", file, "gguf", wrong)
