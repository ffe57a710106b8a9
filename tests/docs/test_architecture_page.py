"""docs/architecture.md says how the house is: its rooms exist, and a row takes the way it tells."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from mlx_itune.dataset.batching import batches
from mlx_itune.dataset.rendering.prepare import tokenized
from mlx_itune.dataset.tokens.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "mlx_itune"
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
FOLDERS = ("kit", "dataset", "model", "training", "inference", "export", "api", "studio", "cli")


def test_every_room_is_on_the_page_and_every_name_exists() -> None:
    named = {n.rstrip("/") for n in re.findall(r"`((?:%s)/[^` ]*)`" % "|".join(FOLDERS), PAGE)}  # noqa: UP031
    assert not [name for name in named if not (PACKAGE / name).exists()]
    rooms = {
        str(path.parent.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if path.parent != PACKAGE
    }
    assert not rooms - named - {"training", "model", "export", "cli"}


def test_a_row_takes_the_way_of_the_page(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_ITUNE_CACHE", str(tmp_path / "cache"))
    tokenizer = load_tokenizer(tiny_model_dir)
    row = (
        '{"messages": [{"role": "user", "content": "%d?"}, {"role": "assistant", "content": "a"}]}'
    )
    entered: set[str] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        file = Path(frame.f_code.co_filename)
        # Made once for a file is no part of a row's way.
        if event == "call" and file.is_relative_to(PACKAGE) and frame.f_code.co_name != "__init__":
            entered.add(str(file.relative_to(PACKAGE)))

    # Once before, so that what is imported and made on first use is there.
    for name in ("warm", "real"):
        (tmp_path / name).mkdir()
        lines = "".join(row % (n + len(name)) + "\n" for n in range(40))
        (tmp_path / name / "train.jsonl").write_text(lines)
        entered.clear()
        sys.setprofile(note)
        try:
            rows = tokenized(tmp_path / name, tokenizer)
            next(batches(len(rows.train.examples), 4, seed=0, steps=1))
        finally:
            sys.setprofile(None)
    way = {file for file in entered if file.startswith("dataset/")}
    table = PAGE.partition("## A row's way")[2].partition("\n## ")[0]
    told = set(re.findall(r"^\| `(dataset/[^`]+)`", table, re.MULTILINE))
    assert way == told
    assert len(told) <= 15
