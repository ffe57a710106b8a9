"""``data import``, end to end."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.dataset.import_command import (
    Capture,
    asked,
    imported,
    result,
    rows_in,
    said,
    text,
    write,
)


def test_an_import_is_a_data_folder(capsys: Capture, tmp_path: Path) -> None:
    source = write(tmp_path / "quiz.jsonl", asked(range(30), task="arithmetic"))
    made = imported(capsys, tmp_path / "data", source)
    assert (made["rows"], made["accepted"], made["rejected"]) == (30, 30, 0)
    assert made["splits"] == {"train": 30}
    first = rows_in(tmp_path / "data", "train")[0]
    assert first["messages"][0] == {"role": "user", "content": "What is 0?"}
    assert (first["source"], first["task"]) == ("quiz", "arithmetic")
    described = json.loads((tmp_path / "data" / "dataset.json").read_text())
    (entry,) = described["sources"]
    assert (entry["path"], entry["rows"], entry["licence"]) == ("quiz.jsonl", 30, None)
    assert described["counts"] == {"train": 30}
    assert str(tmp_path) not in (tmp_path / "data" / "dataset.json").read_text()
    assert result(capsys, "data", "check", tmp_path / "data")["rejected"] == 0


def test_formats_and_sources_mix(capsys: Capture, tmp_path: Path) -> None:
    array = tmp_path / "alpaca.json"
    array.write_text(json.dumps([{"instruction": "Add.", "input": "1 2", "output": "3"}]))
    mixed = write(
        tmp_path / "mixed.jsonl",
        [
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
            *asked([1]),
        ],
    )
    imported(capsys, tmp_path / "data", array, mixed)
    rows = rows_in(tmp_path / "data", "train")
    assert [row["source"] for row in rows] == ["alpaca", "mixed", "mixed"]
    assert said(rows[0]) == "Add.\n\n1 2|3"
    table = tmp_path / "faq.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["q", "a"], ["Why?", "Because,\nyes."]])
    imported(capsys, tmp_path / "faq", table, "--map", "instruction=q", "--map", "output=a")
    assert said(rows_in(tmp_path / "faq", "train")[0]) == "Why?|Because,\nyes."


def test_broken_rows_are_listed_and_left_out(capsys: Capture, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", asked(range(5)))
    with source.open("a") as file:
        file.write('{"messages": []}\n' + "{\n" * 70)
    told = text(capsys, "data", "import", source, "--out", tmp_path / "data")
    assert f"{source}:7: json:" in told
    assert "76 rows, 5 accepted, 71 rejected" in told
    assert told.count(f"{source}:") == 50
    assert "... and 21 more" in told
    rejected = rows_in(tmp_path / "data", "rejected")
    assert [(row["file"], row["line"]) for row in rejected] == [
        ("rows.jsonl", line) for line in range(6, 77)
    ]
    assert rejected[0].keys() == {"file", "line", "origin", "code", "message"}
    made = imported(capsys, tmp_path / "strict", source, "--strict", code=3)
    assert (made["written"], made["rejected"]) == (False, 71)
    source.write_text("not json\n")
    made = imported(capsys, tmp_path / "none", source, code=3)
    assert (made["accepted"], made["rejected"], made["written"]) == (0, 1, False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "rows.jsonl"]


def test_where_keeps_rows_by_tag(capsys: Capture, tmp_path: Path) -> None:
    rows = [
        *asked(range(4), source="metamath"),
        *asked(range(4, 7), source="airoboros"),
        {**asked([9])[0], "metadata": {"source": "metamath", "level": "hard"}},
    ]
    source = write(tmp_path / "hermes.jsonl", rows)

    def kept(*where: str) -> int:
        flags = [word for text in where for word in ("--where", text)]
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        return len(imported(capsys, out, source, *flags) and rows_in(out, "train"))

    assert kept("source=metamath") == 5
    assert kept("source!=metamath") == 3
    assert kept("source=metamath", "level=hard") == 1
    argv = ("data", "import", source, "--where", "source=metamth", "--out", tmp_path / "n")
    told = text(capsys, *argv, code=3)
    assert "no row with source=metamth (source is 'metamath', 'airoboros')" in told
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize(
    ("flags", "told", "code"),
    [
        (["--split", "0.9/0.2/0.1"], "adds up to 1.2", 2),
        (["--split", "0.9/x"], "is not a list of numbers", 2),
        (["--split", "1e999999/1"], "is not a list of numbers", 2),
        (["--split", "0/0.5/0.5"], "leaves nothing to train on", 2),
        (["--where", "source"], "is not key=value", 2),
        (["--group-by", "id"], "--split", 2),
        (["--weights", "rows=much"], "not a number", 2),
        (["--weights", "rows=1", "--cap", "3"], "--weights or --cap", 2),
        (["--licence", "rws=MIT"], "did you mean rows?", 2),
        (["--group-by", "id", "--split", "90/5/5"], "no row has a tag 'id'", 2),
        (["--stratify", "id", "--split", "90/5/5"], "no row has a tag 'id'", 2),
        (["--weights", "row=1"], "did you mean rows?", 2),
        (["--sample", "0"], "--sample must be at least 1", 2),
    ],
)
def test_wrong_wishes_are_one_line(
    capsys: Capture, tmp_path: Path, flags: list[str], told: str, code: int
) -> None:
    source = write(tmp_path / "rows.jsonl", asked(range(9)))
    body = result(capsys, "data", "import", source, *flags, "--out", tmp_path / "data", code=code)
    assert told in body["error"]["message"] + str(body["error"].get("hint"))
    assert not (tmp_path / "data").exists()


def test_an_occupied_or_inner_out_is_refused(capsys: Capture, tmp_path: Path) -> None:
    source = write(tmp_path / "in" / "rows.jsonl", asked(range(9)))
    imported(capsys, tmp_path / "in" / "data", source.parent, code=2)
    write(tmp_path / "full" / "keep.jsonl", asked([1]))
    imported(capsys, tmp_path / "full", source, code=5)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["keep.jsonl"]
    imported(capsys, tmp_path / "d", tmp_path / "gone.jsonl", code=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "in"]


def test_licences_are_found_given_and_carried(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carded = write(tmp_path / "carded" / "a.jsonl", asked(range(9)))
    (carded.parent / "README.md").write_text("---\nlicense: cc-by-nc-4.0\ntags:\n- x\n---\n# A\n")
    other = write(tmp_path / "other" / "b.jsonl", asked(range(9, 18)))
    made = imported(capsys, tmp_path / "1", carded, other)
    assert [source["licence"] for source in made["sources"]] == ["cc-by-nc-4.0", None]
    told = text(
        capsys, "data", "import", tmp_path / "1", "--licence", "b=MIT", "--out", tmp_path / "2"
    )
    assert "licence of a: cc-by-nc-4.0" in told
    assert "licence of b: MIT" in told
    described = json.loads((tmp_path / "2" / "dataset.json").read_text())
    assert [source["licence"] for source in described["sources"]] == ["cc-by-nc-4.0", "MIT"]
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("click.prompt", lambda question, **how: "Apache-2.0")
    told = text(capsys, "data", "import", other, "--out", tmp_path / "3")
    assert "licence of b: Apache-2.0" in told


def test_the_licence_of_the_data_travels_with_what_is_shipped(
    capsys: Capture, tmp_path: Path
) -> None:
    source = write(tmp_path / "quiz.jsonl", asked(range(30)))
    data, adapter, bundle = (tmp_path / name for name in ("data", "adapter", "bundle"))
    imported(capsys, data, source, "--licence", "CC BY-NC 4.0")
    base = ("--model", "starter")
    flags = ("--data", data, "--out", adapter, "--runs", tmp_path / "runs", "--steps", 1)
    result(capsys, "train", *base, *flags)
    said = json.loads((adapter / "provenance.json").read_text())["data"]
    assert [file["licences"] for file in said] == [{"quiz": "CC BY-NC 4.0"}]
    flags = ("--adapter", adapter, "--to", "peft", "--bundle", "--out", bundle)
    result(capsys, "export", *base, *flags)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["licences"]["data: quiz"] == "CC BY-NC 4.0"
    assert "| data: quiz | CC BY-NC 4.0 |" in (bundle / "README.md").read_text()


def test_a_hub_data_set_comes_from_the_cache_when_offline(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    commit = "a" * 40
    home = Path(constants.HF_HUB_CACHE) / "datasets--org--quiz"
    write(home / "snapshots" / commit / "data" / "train-00000-of-00001.jsonl", asked(range(6)))
    write(home / "snapshots" / commit / "data" / "test-00000-of-00001.jsonl", asked([6]))
    card = home / "snapshots" / commit / "README.md"
    card.write_text("---\nlicense:\n- mit\n---\n")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    monkeypatch.chdir(tmp_path)
    made = imported(capsys, tmp_path / "1", "org/quiz")
    assert made["splits"] == {"train": 6, "test": 1}
    assert {source["revision"] for source in made["sources"]} == {commit}
    assert {source["name"] for source in made["sources"]} == {"quiz"}
    assert {source["licence"] for source in made["sources"]} == {"mit"}
    one = imported(capsys, tmp_path / "2", "org/quiz:test")
    assert one["splits"] == {"train": 1}
    missing = imported(capsys, tmp_path / "3", "org/none", code=2)
    assert "download it once without --offline" in str(missing["error"])
    write(tmp_path / "org" / "quiz" / "rows.jsonl", asked(range(3)))
    local = imported(capsys, tmp_path / "4", "org/quiz")
    assert local["accepted"] == 3
