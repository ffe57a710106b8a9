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
from tests.export.broken import A_NORM, A_SCALE, BROKEN, Place, settings, spoil
from tests.export.shipped_models import write_adapter

ROW = {
    "messages": [
        {"role": "user", "content": "Extract the medications."},
        {"role": "assistant", "content": "metformin 500 mg; zolpidem 5 mg"},
    ]
}
# `gguf` is of the base alone; the others are of base and adapter.
WAYS = ("fuse", "mlx", "hf", "peft", "gguf", "gguf-lora")
Outcome = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 4-bit model, a LoRA and a grid adapter trained on it, and rows to measure on."""
    root = tmp_path_factory.mktemp("originals")
    model = write_tiny_model(root / "model", bits=4)
    tokenizer = load_tokenizer(model)
    for kind in ("lora", "grid"):
        folder = write_adapter(root / kind, model, kind=kind)
        trained_with = {
            "sha256": sha256_file(model / "tokenizer.json"),
            "template": "auto",
            "template_sha256": tokenizer.template_sha256,
        }
        settings(folder / "provenance.json", tokenizer=trained_with)
    (root / "data.jsonl").write_text((json.dumps(ROW) + "\n") * 3)
    return root


@pytest.fixture
def place(originals: Path, tmp_path: Path) -> Place:
    root = tmp_path / "here"
    shutil.copytree(originals, root)
    shutil.move(root / "lora", root / "adapter")
    return Place(root, root / "model", root / "adapter", root / "data.jsonl", root / "out")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Outcome:
    """One way to ship: its exit code and the line that says why; it left all as it was."""

    def outcome(way: str, place: Place, *more: str) -> tuple[int, str]:
        before = place.listing()
        argv = ["fuse"] if way == "fuse" else ["export", "--to", way]
        argv += ["--model", str(place.model), "--out", str(place.out), "--offline", *more]
        if way != "gguf":
            argv += ["--adapter", str(place.adapter)]
        if way in ("fuse", "mlx"):
            argv += ["--data", str(place.data), "--max-kl", "10"]
        with pytest.raises(SystemExit) as left:
            main(argv)
        told = capsys.readouterr().err
        (line,) = [x for x in told.splitlines() if x.startswith("error: ")]
        assert "Traceback" not in told and "a bug in" not in told
        assert place.listing() == before
        return int(left.value.code or 0), line

    return outcome


def named(place: Place, way: str) -> Place:
    """With an output as this way wants it called."""
    out = place.out.with_suffix(".gguf") if way.startswith("gguf") else place.out
    return Place(place.root, place.model, place.adapter, place.data, out)


# An adapter in GGUF holds no tokenizer.
NO_TOKENIZER = ("tokenizer larger than the model", "gguf-lora")


@pytest.mark.parametrize(
    ("case", "way"),
    [
        (case, way)
        for case in BROKEN
        for way in ("fuse", "hf", "peft", "gguf-lora")
        if (case, way) != NO_TOKENIZER
    ],
)
def test_broken_input_is_refused(case: str, way: str, place: Place, refused: Outcome) -> None:
    breaking, words = BROKEN[case]
    breaking(place)
    code, line = refused(way, named(place, way))
    assert code == 4 and words in line, line


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("folder", [True, False])
def test_a_taken_place_stays_as_it_is(
    folder: bool, way: str, place: Place, refused: Outcome
) -> None:
    place = named(place, way)
    if folder:
        place.out.mkdir()
    (place.out / "kept" if folder else place.out).write_text("kept")
    # Where a command wants a directory, Click looks before the library does.
    assert refused(way, place)[0] in (2, 5)


@pytest.mark.parametrize(
    ("way", "more"),
    [
        *((way, ()) for way in ("fuse", "mlx", "hf", "gguf")),
        *((way, ("--allow-lossy",)) for way in ("fuse", "mlx")),
    ],
)
@pytest.mark.parametrize(("name", "value"), [(A_NORM, "nan"), (A_SCALE, "inf")])
def test_a_base_with_numbers_that_are_none(
    way: str, name: str, value: str, more: tuple[str, ...], place: Place, refused: Outcome
) -> None:
    spoil(place.model / "model.safetensors", name, float(value))
    base = {"id": "model", "fingerprint": fingerprint(place.model)}
    settings(place.adapter / "provenance.json", base=base)
    code, line = refused(way, named(place, way), *more)
    assert code == 4 and "holds NaN or infinity" in line


@pytest.mark.parametrize("way", ["fuse", "mlx", "hf", "peft"])
@pytest.mark.parametrize("where", ["model", "model/inside", "adapter", "adapter/inside", "."])
def test_a_destination_that_is_or_holds_the_source(
    way: str, where: str, place: Place, refused: Outcome
) -> None:
    there = Place(place.root, place.model, place.adapter, place.data, place.root / where)
    assert refused(way, there)[0] == 2


@pytest.mark.parametrize("way", WAYS)
def test_a_full_disk_is_seen_ahead(
    way: str, place: Place, refused: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(place.root)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    code, line = refused(way, named(place, way))
    assert code == 5 and "free" in line


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("way", WAYS)
def test_a_disk_that_fails_while_it_is_written(
    way: str, number: int, place: Place, refused: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(descriptor: int, data: Any) -> int:
        raise OSError(number, os.strerror(number))

    def save(file: str, *_: Any, **__: Any) -> None:
        Path(file).write_bytes(b"half")
        raise RuntimeError(f"[save_safetensors] Failed to write 100 bytes: {os.strerror(number)}")

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(mx, "save_safetensors", save)
    code, line = refused(way, named(place, way))
    assert code == 5 and os.strerror(number) in line


def test_an_interrupted_export_leaves_nothing(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> int:
        raise KeyboardInterrupt

    before = place.listing()
    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(SystemExit) as left:
        main(["export", "--to", "hf", "--model", str(place.model), "--out", str(place.out)])
    assert left.value.code == 130 and place.listing() == before
