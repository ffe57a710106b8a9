"""A data folder's record, the origins of its rows, and `data trace`."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from import_command import Capture, asked, imported, result, rows_in, said, text, traced, write

from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.dataset.importing.folder import new_folder
from mlx_itune.dataset.importing.provenance import read_dataset, verify
from mlx_itune.kit.errors import DataError


@pytest.fixture
def cleaned(capsys: Capture, tmp_path: Path) -> Path:
    """A folder of two steps: ten rows with a licence, one of them changed, one removed."""
    rows = [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in (*range(9), 3)]
    rows[1]["question"] = "What is\u00a01?"
    source = write(tmp_path / "quiz.jsonl", rows)
    source.write_text(source.read_text() + "broken\n")
    imported(capsys, tmp_path / "one", source, "--licence", "MIT", "--operator", "kim")
    flags = ("--steps", "whitespace,exact-duplicates", "--out", tmp_path / "two")
    result(capsys, "data", "clean", tmp_path / "one", *flags)
    return tmp_path / "two"


def test_rows_are_traced_through_import_clean_and_render(
    capsys: Capture, tmp_path: Path, cleaned: Path
) -> None:
    tasks, out = tmp_path / "t.toml", tmp_path / "three"
    tasks.write_text(
        '[[task]]\nname = "t"\nfields = {q = "messages.0.content", a = "messages.1.content"}\n'
        '[[task.template]]\ninput = "Q: {q}"\ntarget = "{a}"\n'
    )
    made = result(capsys, "data", "render", cleaned, "--templates", tasks, "--out", out)
    history = traced(capsys, out, "train:4")
    assert (history["file"], history["line"], history["now"]) == ("quiz.jsonl", 4, "train:4")
    assert json.loads(history["text"]) == rows_in(out, "train")[3]
    steps = [(step["command"], step["action"]) for step in history["steps"]]
    assert steps == [("import", "imported"), ("clean", "kept"), ("render", "kept")]
    assert history["steps"][0]["operator"] == "kim"
    for name in ("quiz.jsonl:4", tmp_path / "quiz.jsonl:4", history["id"]):
        assert traced(capsys, out, str(name)) == history
    described = json.loads((out / "dataset.json").read_text())
    assert (described["seal"], len(described["earlier"])) == (made["ledger"], 2)
    assert [source["licence"] for source in described["sources"]] == ["MIT"]
    told = text(capsys, "data", "trace", "train:4", "--data", out)
    assert "quiz.jsonl:4 -> train:4" in told
    assert "verified: 3 steps" in told


def test_changed_removed_and_rejected_rows_are_traced(
    capsys: Capture, tmp_path: Path, cleaned: Path
) -> None:
    def last(folder: Path, row: str) -> tuple[str | None, str, str | None]:
        history = traced(capsys, folder, row)
        step = history["steps"][-1]
        return history["now"], step["action"], step.get("reason")

    was = traced(capsys, tmp_path / "one", "train:2")["id"]
    assert last(cleaned, "quiz.jsonl:2") == ("train:2", "changed", "whitespace")
    assert last(cleaned, was) == ("train:2", "changed", "whitespace")
    assert last(cleaned, "quiz.jsonl:10") == (None, "removed", "exact-duplicates")
    assert last(tmp_path / "one", "quiz.jsonl:11") == (None, "rejected", "json")
    (removed,) = rows_in(cleaned, "removed")
    assert removed.keys() == {"file", "line", "origin", "reason", "detail", "row"}
    for row in ("quiz.jsonl:99", "train:99"):
        result(capsys, "data", "trace", row, "--data", cleaned, code=2)
    result(capsys, "data", "trace", "train:1", "--data", tmp_path, code=3)


def test_rows_that_are_gone_are_told_so(capsys: Capture, tmp_path: Path, cleaned: Path) -> None:
    imported(capsys, tmp_path / "few", cleaned, "--sample", 1)
    kept = said(rows_in(tmp_path / "few", "train")[0])
    line = 1 if kept != said(rows_in(cleaned, "train")[0]) else 3
    told = text(capsys, "data", "trace", f"quiz.jsonl:{line}", "--data", tmp_path / "few", code=2)
    assert "are counted, not listed (1 by exact-duplicates of data clean, 8 by --sample" in told


def test_merged_folders_keep_both_histories(capsys: Capture, tmp_path: Path) -> None:
    # Two raw files of one name: their rows are still told apart.
    for name, numbers in {"one": range(9), "two": range(9, 18)}.items():
        source = write(tmp_path / name / "raw" / "quiz.jsonl", asked(numbers))
        imported(capsys, tmp_path / name / "data", source)
    merged = tmp_path / "merged"
    imported(capsys, merged, tmp_path / "one" / "data", tmp_path / "two" / "data")
    for line, file in {"train:1": "quiz.jsonl", "train:18": "quiz.jsonl#2"}.items():
        history = traced(capsys, merged, line)
        assert (history["file"], len(history["steps"])) == (file, 2)
    assert traced(capsys, merged, "quiz.jsonl#2:3")["now"] == "train:12"


def test_one_file_of_a_folder_brings_its_record_along(
    capsys: Capture, tmp_path: Path, cleaned: Path
) -> None:
    made = imported(capsys, tmp_path / "out", cleaned / "train.jsonl")
    assert [source["licence"] for source in made["sources"]] == ["MIT"]
    assert len(traced(capsys, tmp_path / "out", "quiz.jsonl:4")["steps"]) == 3


def test_trace_tells_when_a_file_was_changed(
    capsys: Capture, tmp_path: Path, cleaned: Path
) -> None:
    train = cleaned / "train.jsonl"
    train.write_text(train.read_text().replace("It is 7", "It is 8"))
    told = text(capsys, "data", "trace", "train:1", "--data", cleaned, code=3)
    assert "CHANGED: train.jsonl: changed after it was written (its SHA-256 differs)" in told
    imported(capsys, tmp_path / "out", cleaned)
    found = result(capsys, "data", "trace", "train:1", "--data", tmp_path / "out", code=3)
    assert found["problems"] == ["train.jsonl: changed by hand before step 3 read it"]


def test_a_folder_of_an_earlier_version_is_still_imported(capsys: Capture, tmp_path: Path) -> None:
    old = tmp_path / "old"
    write(old / "train.jsonl", asked(range(5)))
    write(old / "ledger.jsonl", [{"n": 1, "hash": "0" * 64}])
    source = {"name": "quiz", "path": "quiz.jsonl", "sha256": "0" * 64, "licence": "CC-BY-4.0"}
    described = {"version": 1, "sources": [source], "counts": {"train": 5}, "settings": {}}
    (old / "dataset.json").write_text(json.dumps(described))
    made = imported(capsys, tmp_path / "new", old)
    assert [each["licence"] for each in made["sources"]] == ["CC-BY-4.0"]
    history = traced(capsys, tmp_path / "new", "train:2")
    assert (history["file"], history["line"]) == ("train.jsonl", 2)
    told = text(capsys, "data", "trace", "train:2", "--data", old, code=3)
    assert "no record that rows can be traced by" in told


def test_a_field_called_origin_is_kept_under_another_name(capsys: Capture, tmp_path: Path) -> None:
    source = write(tmp_path / "quiz.jsonl", asked(range(2), origin="the moon"))
    made = imported(capsys, tmp_path / "1", source)
    assert made["notes"] == ["the rows' own field 'origin' is kept as 'given_origin'"]
    imported(capsys, tmp_path / "2", tmp_path / "1")
    (row, _) = rows_in(tmp_path / "2", "train")
    assert (row["origin"], row["given_origin"]) == ("quiz.jsonl:1", "the moon")


def test_every_byte_of_a_folder_counts(cleaned: Path) -> None:
    random = Random(0)
    files = sorted(path for path in cleaned.rglob("*") if path.is_file())
    assert len(files) == 4
    assert verify(cleaned) == []
    for path in files:
        good = path.read_bytes()
        for _ in range(20):
            bad = bytearray(good)
            bad[random.randrange(len(bad))] ^= 1 << random.randrange(8)
            path.write_bytes(bad)
            try:
                # White space between the keys of the record is nobody's.
                same = path.name == "dataset.json" and json.loads(bad) == json.loads(good)
                assert bool(verify(cleaned)) is not same, path.name
            except (DataError, ValueError):
                pass
        path.write_bytes(good)
    (cleaned / "removed.jsonl").unlink()
    write(cleaned / "valid.jsonl", asked([1]))
    assert verify(cleaned) == [
        "valid.jsonl: not written by the step that made the folder",
        "removed.jsonl: missing",
    ]


@pytest.mark.parametrize("value", [None, 3, [], {"../../x": "../../etc"}, {"a": 1}])
def test_a_tampered_record_is_told_and_never_a_crash(
    capsys: Capture, cleaned: Path, value: Any
) -> None:
    path = cleaned / "dataset.json"
    good = json.loads(path.read_text())
    for key in good:
        if good[key] != value:
            path.write_text(json.dumps({**good, key: value}))
            text(capsys, "data", "trace", "train:1", "--data", cleaned, code=3)
    path.write_text(json.dumps({**good, "sources": good["sources"] * 2}))
    assert read_dataset(cleaned) is not None
    assert verify(cleaned) == ["dataset.json: changed after it was sealed"]


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    source = write(tmp_path / "raw.jsonl", asked(range(3)))
    turns = (Turn("user", "Is it?"), Turn("assistant", "yes"))

    def attempt(error: BaseException | None, rows: int = 1) -> None:
        with new_folder(tmp_path / "data", "import", [source]) as writer:
            for n in range(rows):
                writer.add("train", Conversation(turns, f"{source}:{n + 1}"))
            if error:
                raise error
            write(source, asked(range(4)))

    for error in (KeyboardInterrupt(), ValueError()):
        with pytest.raises(type(error)):
            attempt(error)
    with pytest.raises(DataError, match="no row is left"):
        attempt(None, rows=0)
    write(source, asked(range(3)))
    with pytest.raises(DataError, match="changed while it was read"):
        attempt(None)
    assert [path.name for path in tmp_path.iterdir()] == ["raw.jsonl"]
