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
from mlx_itune.export.gguf.lora import export_gguf_lora
from mlx_itune.export.gguf.to_gguf import export_gguf
from mlx_itune.export.transformers.to_hf import export_hf
from mlx_itune.export.transformers.to_peft import export_peft
from mlx_itune.kit.errors import ItuneError
from mlx_itune.kit.files import sha256_file
from tests.conftest import write_tiny_model
from tests.export.broken import A_NORM, A_SCALE, BROKEN, Place, settings, spoil
from tests.export.shipped_models import write_adapter

ROW = {
    "messages": [
        {"role": "user", "content": "Extract the medications."},
        {"role": "assistant", "content": "metformin 500 mg; zolpidem 5 mg"},
    ]
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 4-bit model, a LoRA and a grid adapter trained on it, and rows to measure on."""
    root = tmp_path_factory.mktemp("originals")
    model = write_tiny_model(root / "model", bits=4)
    tokenizer = load_tokenizer(model)
    for kind in ("lora", "grid"):
        folder = write_adapter(root / kind, model, kind=kind)
        papers = json.loads((folder / "provenance.json").read_text())
        papers["tokenizer"] = {
            "sha256": sha256_file(model / "tokenizer.json"),
            "template": "auto",
            "template_sha256": tokenizer.template_sha256,
        }
        (folder / "provenance.json").write_text(json.dumps(papers))
    (root / "data.jsonl").write_text((json.dumps(ROW) + "\n") * 3)
    return root


@pytest.fixture
def place(originals: Path, tmp_path: Path) -> Place:
    root = tmp_path / "here"
    shutil.copytree(originals, root)
    shutil.move(root / "lora", root / "adapter")
    return Place(root, root / "model", root / "adapter", root / "data.jsonl", root / "out")


def fuse(place: Place) -> tuple[str, ...]:
    return ("fuse", "--model", str(place.model), *_rest(place))


def to_mlx(place: Place) -> tuple[str, ...]:
    return ("export", "--model", str(place.model), "--to", "mlx", *_rest(place))


def _rest(place: Place) -> tuple[str, ...]:
    return (
        *("--adapter", str(place.adapter), "--data", str(place.data)),
        *("--out", str(place.out), "--max-kl", "10", "--offline"),
    )


def to_hf(place: Place) -> None:
    tokenizer = load_tokenizer(place.model)
    export_hf(place.model, place.out, tokenizer=tokenizer, adapter_dir=place.adapter)


def to_peft(place: Place) -> None:
    tokenizer = load_tokenizer(place.model)
    export_peft(place.adapter, str(place.model), place.out, tokenizer=tokenizer)


def to_gguf(place: Place) -> None:
    tokenizer = load_tokenizer(place.model)
    export_gguf(place.model, place.out, kind="f16", tokenizer=tokenizer)


def to_gguf_lora(place: Place) -> None:
    export_gguf_lora(place.adapter, str(place.model), place.out)


def outcome(
    way: Callable[[Place], Any], place: Place, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """(exit code, the line that says why) of one way to ship."""
    if way in (fuse, to_mlx):
        with pytest.raises(SystemExit) as left:
            main(list(way(place)))
        lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
        return int(left.value.code or 0), "\n".join(lines)
    with pytest.raises(ItuneError) as caught:
        way(place)
    return caught.value.exit_code, f"error: {caught.value}"


@pytest.mark.parametrize("way", [fuse, to_mlx, to_hf, to_peft])
@pytest.mark.parametrize("case", BROKEN)
def test_broken_input_is_refused(
    case: str, way: Any, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    breaking, code, words = BROKEN[case]
    breaking(place)
    before = place.listing()
    got, line = outcome(way, place, capsys)
    # Where a command wants a directory, Click looks before the library does.
    assert got in ((2, 5) if case == "out is a file" else (code,)), line
    assert line.count("\n") == 0
    assert line.startswith("error: ")
    assert words in line
    assert "a bug in" not in line
    assert place.listing() == before


# What one of the two GGUF exports does not look at.
ADAPTERS = frozenset(case for case in BROKEN if "adapter" in case) | {
    "another base",
    "wrong rank",
    "other layers",
    "unknown fine_tune_type",
    "grid without factors",
    "other tokenizer",
}
NOT_LORA = frozenset({"no tokenizer", "tokenizer larger than the model"})


@pytest.mark.parametrize(
    ("case", "way"),
    [
        *((case, to_gguf) for case in BROKEN if case not in ADAPTERS),
        *((case, to_gguf_lora) for case in BROKEN if case not in NOT_LORA),
    ],
)
def test_broken_input_to_gguf_is_refused(
    case: str, way: Any, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    breaking, code, words = BROKEN[case]
    breaking(place)
    before = place.listing()
    got, line = outcome(way, place, capsys)
    assert got == (5 if case.startswith("out is") else code), line
    assert line.count("\n") == 0
    assert words in line or case.startswith("out is")
    assert place.listing() == before


@pytest.mark.parametrize("way", [fuse, to_mlx, to_hf, to_gguf])
@pytest.mark.parametrize(("name", "value"), [(A_NORM, "nan"), (A_SCALE, "inf")])
def test_a_base_with_numbers_that_are_none(
    way: Any, name: str, value: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(place.model / "model.safetensors", name, float(value))
    _trained_on_this(place)
    before = place.listing()
    code, line = outcome(way, place, capsys)
    assert (code, line.count("\n")) == (4, 0)
    assert "holds NaN or infinity" in line
    assert place.listing() == before


@pytest.mark.parametrize("lossy", [True, False])
def test_a_broken_base_is_refused_even_where_loss_is_allowed(
    lossy: bool, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(place.model / "model.safetensors", A_NORM, float("nan"))
    _trained_on_this(place)
    before = place.listing()
    argv = [*fuse(place), "--allow-lossy"] if lossy else [*to_mlx(place)]
    if not lossy:
        for option in ("--adapter", "--max-kl"):
            at = argv.index(option)
            del argv[at : at + 2]
    with pytest.raises(SystemExit) as left:
        main(argv)
    assert left.value.code == 4
    assert "holds NaN or infinity" in capsys.readouterr().err
    assert place.listing() == before


def _trained_on_this(place: Place) -> None:
    from mlx_itune.model.loading.fingerprint import fingerprint

    papers = place.adapter / "provenance.json"
    base = {"id": "model", "fingerprint": fingerprint(place.model)}
    settings(papers, base=base)


@pytest.mark.parametrize("way", [fuse, to_mlx, to_hf, to_peft])
@pytest.mark.parametrize("where", ["model", "model/inside", "adapter", "adapter/inside", "."])
def test_a_destination_that_is_or_holds_the_source(
    way: Any, where: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    there = Place(place.root, place.model, place.adapter, place.data, place.root / where)
    before = place.listing()
    code, line = outcome(way, there, capsys)
    assert (code, line.count("\n")) == (2, 0), line
    assert place.listing() == before


@pytest.mark.parametrize("way", [fuse, to_mlx, to_hf, to_peft, to_gguf])
def test_a_full_disk_is_seen_ahead(
    way: Any, place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = place.listing()
    usage = shutil.disk_usage(place.root)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    code, line = outcome(way, place, capsys)
    assert (code, line.count("\n")) == (5, 0)
    assert "free" in line
    assert place.listing() == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("way", [to_hf, to_peft, to_gguf, to_gguf_lora])
def test_a_disk_that_fails_while_it_is_written(
    way: Any,
    number: int,
    place: Place,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = place.listing()
    monkeypatch.setattr(os, "write", _failing(number))
    code, line = outcome(way, place, capsys)
    assert (code, line.count("\n")) == (5, 0)
    assert os.strerror(number) in line
    assert place.listing() == before


@pytest.mark.parametrize("way", [fuse, to_mlx])
def test_a_disk_that_fails_mlx(
    way: Any, place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(file: str, *_: Any, **__: Any) -> None:
        Path(file).write_bytes(b"half")
        raise RuntimeError("[save_safetensors] Failed to write 100 bytes: No space left on device")

    before = place.listing()
    monkeypatch.setattr(mx, "save_safetensors", fails)
    code, line = outcome(way, place, capsys)
    assert (code, line.count("\n")) == (5, 0)
    assert "No space left" in line
    assert place.listing() == before


def _failing(number: int) -> Callable[..., int]:
    def write(descriptor: int, data: Any) -> int:
        raise OSError(number, os.strerror(number))

    return write


def test_an_interrupted_export_leaves_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> int:
        raise KeyboardInterrupt

    before = place.listing()
    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        to_hf(place)
    assert place.listing() == before
