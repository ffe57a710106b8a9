"""The command line as tests of imports use it, and the small files they feed it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.cli import main

Capture = pytest.CaptureFixture[str]
Row = dict[str, Any]


def result(capsys: Capture, *argv: object, code: int = 0) -> dict[str, Any]:
    """The one JSON object a command prints."""
    with pytest.raises(SystemExit) as left:
        main([*map(str, argv), "--json", "--offline"])
    out = capsys.readouterr().out
    assert (left.value.code or 0) == code, out
    assert out.count("\n") == 1
    value: dict[str, Any] = json.loads(out)
    return value


def imported(capsys: Capture, out: Path, *argv: object, code: int = 0) -> dict[str, Any]:
    """What `data import ... --out OUT` says."""
    return result(capsys, "data", "import", *argv, "--out", out, code=code)


def traced(capsys: Capture, data: Path, row: str) -> dict[str, Any]:
    """The one history that `data trace` knows of a row in an unharmed folder."""
    found = result(capsys, "data", "trace", row, "--data", data)
    assert (found["verified"], found["problems"]) == (True, [])
    (history,) = found["histories"]
    assert isinstance(history, dict)
    return history


def text(capsys: Capture, *argv: object, code: int = 0) -> str:
    """All that a command prints for people."""
    with pytest.raises(SystemExit) as left:
        main([*map(str, argv), "--offline"])
    assert (left.value.code or 0) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.out + captured.err


def asked(numbers: Iterable[int], **tags: str) -> list[Row]:
    return [{"question": f"What is {n}?", "answer": f"It is {n}.", **tags} for n in numbers]


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_in(folder: Path, split: str) -> list[Row]:
    path = folder / f"{split}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def said(row: Row) -> str:
    return "|".join(message["content"] for message in row["messages"])


def sides(folder: Path) -> dict[str, str]:
    """The split of every row, by what it says."""
    return {
        said(row): split for split in ("train", "valid", "test") for row in rows_in(folder, split)
    }
