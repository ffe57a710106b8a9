"""LM Studio: the layout it lists, data only, other models left alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mlx_itune.export.shipping.to_lmstudio import export_lmstudio
from mlx_itune.kit.errors import ModelError, StorageError, UsageError


def test_a_gguf_file(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF weights")
    (tmp_path / "models/else/where").mkdir(parents=True)
    result = export_lmstudio(file, tmp_path / "models", publisher="acme", model="notes-1b")
    assert (tmp_path / "models/acme/notes-1b/notes-1b.gguf").read_bytes() == b"GGUF weights"
    assert (tmp_path / "models/else/where").is_dir()
    assert result.name == "acme/notes-1b"


def test_an_mlx_directory_without_its_code(tiny_quantized_dir: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_quantized_dir, source)
    (source / "modeling.py").write_text("raise SystemExit")
    export_lmstudio(source, tmp_path / "models", publisher="acme", model="notes")
    out = tmp_path / "models/acme/notes"
    assert {p.name for p in out.iterdir()} == {p.name for p in tiny_quantized_dir.iterdir()}
    for file in out.iterdir():
        assert file.read_bytes() == (source / file.name).read_bytes()


def test_it_opens_with_mlx_lm(tiny_quantized_dir: Path, tmp_path: Path) -> None:
    from mlx_itune.model.loading import mlx_lm_models as stock

    export_lmstudio(tiny_quantized_dir, tmp_path, publisher="acme", model="notes")
    stock.reopen(tmp_path / "acme/notes")


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "-x", "a b", "a\nb"])
def test_names_that_are_no_folders(tiny_model_dir: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        export_lmstudio(tiny_model_dir, tmp_path / "m", publisher=name, model="x")
    with pytest.raises(UsageError):
        export_lmstudio(tiny_model_dir, tmp_path / "m", publisher="x", model=name)
    assert not (tmp_path / "m").exists()


def test_what_is_no_model_and_what_is_there_already(tmp_path: Path, tiny_model_dir: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"not one")
    (tmp_path / "empty").mkdir()
    for source in ("a.gguf", "empty", "absent"):
        with pytest.raises(ModelError):
            export_lmstudio(tmp_path / source, tmp_path / "m", publisher="p", model="m")
    assert not (tmp_path / "m").exists()
    export_lmstudio(tiny_model_dir, tmp_path / "m", publisher="p", model="m")
    with pytest.raises(StorageError, match="not empty"):
        export_lmstudio(tiny_model_dir, tmp_path / "m", publisher="p", model="m")
