"""`mlx-itune data ...` as tests use it, in a folder of their own, and the small files they feed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.cli import main
from mlx_itune.dataset.conversation import Fault

SPLITS = ("train", "valid", "test")


class DataRun:
    """`run("import", source, out="a")` is the object that is printed; names are within `home`."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self._capsys = home, capsys

    def __call__(self, *argv: object, out: str | None = None, code: int = 0) -> Any:
        printed = self.told(*argv, "--json", out=out, code=code)
        assert printed.count("\n") == 1
        return json.loads(printed)

    def told(self, *argv: object, out: str | None = None, code: int = 0) -> str:
        """All that is printed for people."""
        argv = (*argv, *(("--out", self.home / out) if out else ()), "--offline")
        with pytest.raises(SystemExit) as left:
            main(["data", *map(str, argv)])
        captured = self._capsys.readouterr()
        assert (left.value.code or 0) == code, captured
        assert "Traceback" not in captured.err
        return captured.out + ("" if "--json" in argv else captured.err)

    def write(self, name: str, rows: Any) -> Path:
        """A file of rows; a text among them is a line as it is."""
        path = self.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (
            row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows
        )
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    def rows(self, out: str, split: str = "train") -> list[dict[str, Any]]:
        path = self.home / out / f"{split}.jsonl"
        return [json.loads(line) for line in path.open(encoding="utf-8")] if path.exists() else []

    def record(self, out: str) -> dict[str, Any]:
        return json.loads((self.home / out / "dataset.json").read_text())

    def sides(self, out: str) -> dict[str, str]:
        """The split of every row, by what it says."""
        return {said(row): split for split in SPLITS for row in self.rows(out, split)}

    def trace(self, out: str, row: object) -> dict[str, Any]:
        """The one history of a row in an unharmed folder."""
        found = self("trace", row, "--data", self.home / out)
        assert (found["verified"], found["problems"]) == (True, [])
        (history,) = found["histories"]
        return history


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> DataRun:
    """The data commands in an empty folder."""
    return DataRun(tmp_path, capsys)


def asked(numbers: Any, **tags: str) -> list[dict[str, Any]]:
    return [{"question": f"What is {n}?", "answer": f"It is {n}.", **tags} for n in numbers]


def said(row: dict[str, Any]) -> str:
    return "|".join(message["content"] for message in row["messages"])


def outline(found: Any) -> list[Any]:
    """Lines of rows; codes and lines of faults."""
    return [(r.code, r.line) if isinstance(r, Fault) else r.line for r in found]
