"""`data show`: what is learned can be seen, of any row, without reading more than is needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.cli import main
from mlx_itune.dataset import sources
from mlx_itune.dataset.importing.provenance import row_id

Capture = pytest.CaptureFixture[str]


def run(*argv: object, code: int = 0) -> None:
    with pytest.raises(SystemExit) as left:
        main(["data", "show", *map(str, argv)])
    assert (left.value.code or 0) == code


def result(capsys: Capture, *argv: object, code: int = 0) -> dict[str, Any]:
    """The one JSON object that `data show` prints."""
    run(*argv, "--json", "--offline", code=code)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    value: dict[str, Any] = json.loads(out)
    return value


def text(capsys: Capture, *argv: object) -> str:
    run(*argv)
    return capsys.readouterr().out


def learned(row: dict[str, Any]) -> str:
    return "".join(token["text"] for token in row["tokens"] if token["weight"] > 0)


def write_rows(path: Path, *rows: object) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def asked(question: str, *answers: str, **extra: object) -> dict[str, object]:
    turns: list[dict[str, object]] = []
    for n, answer in enumerate(answers):
        turns += [
            {"role": "user", "content": question if not n else "And?"},
            {"role": "assistant", "content": answer},
        ]
    return {"messages": turns, **extra}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for split, first in (("train", 0), ("valid", 50), ("test", 70)):
        rows = (asked(f"Case {first + n}?", f"- {split} {n}", id=f"{split}:{n}") for n in range(9))
        write_rows(folder / f"{split}.jsonl", *rows)
    return folder


@pytest.fixture
def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The origin of every row that was read, in order."""
    real, seen = sources.read_rows, []

    def counting(*args: Any, **options: Any) -> Iterator[Any]:
        for row in real(*args, **options):
            seen.append(getattr(row, "origin", "fault"))
            yield row

    monkeypatch.setattr(sources, "read_rows", counting)
    return seen


def test_the_keys_that_scripts_rely_on(capsys: Capture, data: Path) -> None:
    shown = result(capsys, data, "--model", "starter", "--rows", 2)
    assert shown.keys() == {"rows", "skipped", "html"}
    assert [row["row"] for row in shown["rows"]] == [
        f"{data / 'train.jsonl'}:1",
        f"{data / 'train.jsonl'}:2",
    ]
    row = shown["rows"][0]
    assert row.keys() == {"row", "tokens", "learned", "example", "examples", "notes"}
    assert row["tokens"][0].keys() == {"id", "text", "weight"}
    assert learned(row).strip() == "- train 0<|end|>"
    assert row["learned"] == sum(token["weight"] > 0 for token in row["tokens"])


def test_without_colour_learned_runs_stand_in_brackets(capsys: Capture, data: Path) -> None:
    out = text(capsys, data, "--model", "starter", "--rows", 1)
    assert "[[ - train 0<|end|>]]" in out
    assert "\x1b" not in out
    assert "tokens learned" in out.splitlines()[0]


def test_a_few_rows_are_all_that_is_read(
    capsys: Capture, tmp_path: Path, rows_read: list[str]
) -> None:
    file = write_rows(tmp_path / "big.jsonl", *(asked(f"q{n}", "a") for n in range(20_000)))
    assert len(result(capsys, file, "--model", "starter", "--rows", 3)["rows"]) == 3
    assert len(rows_read) == 3
    rows_read.clear()
    result(capsys, file, "--model", "starter", "--row", f"{file}:40")
    assert len(rows_read) <= 41


@pytest.mark.parametrize(
    ("spec", "answer"),
    [
        ("test:3", "- test 2"),
        ("valid.jsonl:2", "- valid 1"),
        ("4", "- train 3"),
        ("train:7", "- train 6"),
        ("test:0", "- test 0"),
    ],
)
def test_one_row_by_place_or_id(capsys: Capture, data: Path, spec: str, answer: str) -> None:
    (row,) = result(capsys, data, "--model", "starter", "--row", spec)["rows"]
    assert learned(row).strip() == f"{answer}<|end|>"


def test_rows_of_one_line_have_numbers(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([asked("q", answer) for answer in "abc"]), encoding="utf-8")
    for spec in ("#2", "rows:#2"):
        (row,) = result(capsys, file, "--model", "starter", "--row", spec)["rows"]
        assert (row["row"], learned(row).strip()) == (f"{file}:#2", "b<|end|>")


def test_several_rows_come_in_file_order(capsys: Capture, data: Path) -> None:
    first = next(sources.read_rows(data / "train.jsonl"))
    name = row_id(first)  # type: ignore[arg-type]
    flags = ("--row", "test:1", "--row", f"{data / 'train.jsonl'}:2", "--row", name)
    shown = result(capsys, data, "--model", "starter", *flags)["rows"]
    places = [Path(row["row"]).name for row in shown]
    assert places == ["train.jsonl:1", "train.jsonl:2", "test.jsonl:1"]


def test_a_row_that_is_not_there_is_one_line(capsys: Capture, data: Path) -> None:
    failed = result(capsys, data, "--model", "starter", "--row", "train:99", code=2)
    assert "no row 'train:99'" in failed["error"]["message"]


def test_broken_rows_are_named_and_stepped_over(capsys: Capture, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", "not json", asked("q", "a"), asked("r", "b"))
    run(file, "--model", "starter", "--rows", 1)
    told = capsys.readouterr()
    assert "[[ a<|end|>]]" in told.out
    assert f"left out: {file}:1: json" in told.err
    failed = result(capsys, file, "--model", "starter", "--row", "rows:1", code=3)
    assert failed["error"]["where"] == f"{file}:1"
    skipped = result(capsys, file, "--model", "starter")["skipped"]
    assert [entry["row"] for entry in skipped] == [f"{file}:1"]


def test_nothing_to_show_is_an_error(capsys: Capture, tmp_path: Path) -> None:
    assert result(capsys, tmp_path / "none.jsonl", "--model", "starter", code=3)["error"]
    empty = write_rows(tmp_path / "empty.jsonl")
    assert result(capsys, empty, "--model", "starter", code=3)["error"]["exit_code"] == 3
    long = write_rows(tmp_path / "long.jsonl", asked("q", "word " * 99))
    flags = ("--model", "starter", "--max-length", 20, "--too-long", "drop")
    assert "do not fit" in result(capsys, long, *flags, code=3)["error"]["message"]


def test_a_long_row_is_cut_and_each_part_says_why(capsys: Capture, tmp_path: Path) -> None:
    file = write_rows(
        tmp_path / "rows.jsonl", asked("word " * 9, *(f"answer {n}" for n in range(6)))
    )
    flags = (file, "--model", "starter", "--template", "chatml", "--max-length", 90)
    shown = result(capsys, *flags)["rows"]
    assert len(shown) > 1
    assert [row["example"] for row in shown] == list(range(1, len(shown) + 1))
    assert all("cut between exchanges" in row["notes"][0] for row in shown)
    out = text(capsys, *flags)
    assert f"example 1 of {len(shown)}" in out and "note: cut between exchanges" in out
    run(*flags, "--too-long", "error", code=3)


def test_weights_are_written_out(capsys: Capture, tmp_path: Path) -> None:
    row = asked("q", "half", "twice", "whole")
    for turn, weight in zip(row["messages"][1::2], (0.5, 2, 1), strict=True):  # type: ignore[index]
        turn["weight"] = weight
    file = write_rows(tmp_path / "rows.jsonl", row)
    out = text(capsys, file, "--model", "starter", "--template", "chatml")
    assert "[[0.5: half" in out and "[[2: twice" in out and "[[whole" in out
    marked = result(capsys, file, "--model", "starter", "--learn", "last")["rows"][0]
    assert learned(marked).strip() == "whole<|end|>"


def test_colour_and_borders_in_a_terminal(
    capsys: Capture, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = text(capsys, data, "--model", "starter", "--rows", 1)
    assert "\x1b[1;32m·- train 0\x1b[0m" in out, "learned: bold green, the border's space visible"
    assert "\x1b[1;7;32m<|end|>\x1b[0m" in out, "a control token is inverse"
    assert "[[" not in out
    assert "│" in text(capsys, data, "--model", "starter", "--rows", 1, "--tokens")


HOSTILE = "\x1b[2J\x1b]0;owned\x07 \u202eright to left\u202c \r overwritten [bold]not markup[/bold]"


@pytest.mark.parametrize("colour", ["1", ""])
def test_data_cannot_drive_the_terminal(
    capsys: Capture, tmp_path: Path, colour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if colour:
        monkeypatch.setenv("FORCE_COLOR", colour)
    file = write_rows(tmp_path / "rows.jsonl", asked(HOSTILE, HOSTILE))
    out = text(capsys, file, "--model", "starter")
    assert "\x1b[2J" not in out and "\x1b]0" not in out
    assert not set("\x07\r\u202e\u202c") & set(out)
    assert "\\x1b[2J" in out and "\\u202e" in out and "[bold]not markup[/bold]" in out


def test_a_page_instead(capsys: Capture, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "tokens.html"
    said = text(capsys, data, "--model", "starter", "--rows", 2, "--html", out)
    assert said == f"{out}: 2 examples\n"
    document = out.read_text(encoding="utf-8")
    assert document.startswith("<!DOCTYPE html>")
    assert str(tmp_path) not in document, "a page that is passed on tells no path of this machine"
    failed = result(capsys, data, "--model", "starter", "--html", out, code=5)
    assert failed["error"]["where"] == str(out), "nothing is overwritten"
    failed = result(capsys, data, "--model", "starter", "--html", data / "train.jsonl", code=2)
    assert ".html" in failed["error"]["hint"]
