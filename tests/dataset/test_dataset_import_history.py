"""The ledger, the lineage and `data trace`."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from import_command import Capture, asked, result, rows_in, said, text, write

from mlx_itune.cli import main
from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.dataset.importing.folder import FolderWriter
from mlx_itune.dataset.importing.history import history
from mlx_itune.dataset.importing.ledger import append_entry, read_entries, row_id, verify
from mlx_itune.kit.errors import DataError, UsageError


def test_trace_tells_the_history_of_a_row(capsys: Capture, tmp_path: Path) -> None:
    source = write(tmp_path / "quiz.jsonl", asked(range(40)))
    source.write_text(source.read_text() + "broken\n")
    flags = ("--operator", "kim")
    result(capsys, "data", "import", source, *flags, "--out", tmp_path / "1")
    result(
        capsys, "data", "import", tmp_path / "1", "--split", "50/25/25", *flags,
        "--out", tmp_path / "2",
    )  # fmt: skip
    row = rows_in(tmp_path / "2", "test")[0]
    traced = result(capsys, "data", "trace", "test:1", "--data", tmp_path / "2")
    assert traced["verified"] is True
    (history,) = traced["histories"]
    number = int(said(row).split("?")[0].removeprefix("What is "))
    assert (history["file"], history["line"], history["now"]) == (
        "quiz.jsonl",
        number + 1,
        "test:1",
    )
    assert [step["action"] for step in history["steps"]] == ["imported", "kept"]
    assert history["steps"][0]["operator"] == "kim"
    assert json.loads(history["text"]) == row
    by_origin = result(
        capsys, "data", "trace", f"quiz.jsonl:{number + 1}", "--data", tmp_path / "2"
    )
    by_id = result(capsys, "data", "trace", history["id"], "--data", tmp_path / "2")
    assert by_origin["histories"] == by_id["histories"] == [history]
    (broken,) = result(capsys, "data", "trace", "quiz.jsonl:41", "--data", tmp_path / "2")[
        "histories"
    ]
    assert (broken["now"], broken["steps"][0]["action"]) == (None, "rejected")
    told = text(capsys, "data", "trace", "test:1", "--data", tmp_path / "2")
    assert f"quiz.jsonl:{number + 1} -> test:1" in told
    assert "ledger verified: 2 steps" in told
    result(capsys, "data", "trace", "quiz.jsonl:99", "--data", tmp_path / "2", code=2)
    result(capsys, "data", "trace", "train:1", "--data", tmp_path, code=3)


def test_a_row_that_was_not_drawn_is_told_so(capsys: Capture, tmp_path: Path) -> None:
    source = write(tmp_path / "quiz.jsonl", asked(range(40)))
    result(capsys, "data", "import", source, "--sample", 10, "--out", tmp_path / "1")
    found = 0
    for line in range(1, 41):
        with pytest.raises(SystemExit) as left:
            main(["data", "trace", f"quiz.jsonl:{line}", "--data", str(tmp_path / "1")])
        found += not left.value.code
        told = capsys.readouterr().err
        assert not left.value.code or "are counted, not listed (30 by --sample)" in told
    assert found == 10


def test_merged_folders_keep_both_histories(capsys: Capture, tmp_path: Path) -> None:
    for name, numbers in {"one": range(9), "two": range(9, 18)}.items():
        source = write(tmp_path / f"{name}.jsonl", asked(numbers))
        result(capsys, "data", "import", source, "--out", tmp_path / name)
    merged = tmp_path / "merged"
    result(capsys, "data", "import", tmp_path / "one", tmp_path / "two", "--out", merged)
    for line, file in {"train:1": "one.jsonl", "train:18": "two.jsonl"}.items():
        traced = result(capsys, "data", "trace", line, "--data", merged)
        assert traced["problems"] == []
        (history,) = traced["histories"]
        assert history["file"] == file
        assert len(history["steps"]) == 2
    forward = result(capsys, "data", "trace", "two.jsonl:3", "--data", merged)["histories"]
    assert [history["now"] for history in forward] == ["train:12"]


def test_trace_tells_when_a_file_was_changed(capsys: Capture, tmp_path: Path) -> None:
    source = write(tmp_path / "quiz.jsonl", asked(range(20)))
    result(capsys, "data", "import", source, "--out", tmp_path / "1")
    train = tmp_path / "1" / "train.jsonl"
    train.write_text(train.read_text().replace("It is 7", "It is 8"))
    traced = result(capsys, "data", "trace", "train:1", "--data", tmp_path / "1", code=3)
    assert traced["problems"] == ["train.jsonl: changed after it was written (its SHA-256 differs)"]
    assert "TAMPERED" in text(capsys, "data", "trace", "train:1", "--data", tmp_path / "1", code=3)
    result(capsys, "data", "import", tmp_path / "1", "--out", tmp_path / "2")
    traced = result(capsys, "data", "trace", "train:1", "--data", tmp_path / "2", code=3)
    assert traced["problems"] == ["train.jsonl: changed by hand between step 1 and 2"]


def conversation(n: int, answer: str = "yes", origin: str = "") -> Conversation:
    turns = (Turn("user", f"Is it {n}?"), Turn("assistant", answer))
    return Conversation(turns, origin, tags={"source": "s"})


@pytest.fixture
def cleaned(tmp_path: Path) -> Path:
    """A folder of two steps: rows kept, changed, cut in two, removed."""
    source = write(tmp_path / "raw.jsonl", asked(range(8)))
    first, second = tmp_path / "first", tmp_path / "second"
    with FolderWriter(first, "import", [source], operator="kim") as writer:
        for n in range(8):
            writer.add("train" if n < 6 else "test", conversation(n, origin=f"{source}:{n + 1}"))
    train = first / "train.jsonl"
    with FolderWriter(second, "clean", [first], settings={"steps": ["pii"]}) as writer:
        rows = [conversation(n, origin=f"{train}:{n + 1}") for n in range(6)]
        writer.add("train", rows[0])
        writer.add("train", conversation(1, "no"), before=rows[1], reason="pii", detail="1 name")
        for half in ("left", "right"):
            writer.add("train", conversation(2, half), before=rows[2], reason="split")
        writer.remove(rows[3], "duplicate", "same as train.jsonl:1")
        writer.remove(rows[4], "refusal", show=False)
        writer.add("train", rows[5])
        for n in (6, 7):
            writer.add("test", conversation(n, origin=f"{first / 'test.jsonl'}:{n - 5}"))
    return second


def test_a_writer_lists_what_it_removed_and_changed(cleaned: Path) -> None:
    removed = [json.loads(line) for line in (cleaned / "removed.jsonl").open()]
    assert removed[0] == {
        "file": "train.jsonl",
        "line": 4,
        "reason": "duplicate",
        "detail": "same as train.jsonl:1",
        "row": {
            "messages": [
                {"role": "user", "content": "Is it 3?"},
                {"role": "assistant", "content": "yes"},
            ],
            "source": "s",
        },
    }
    assert removed[1]["row"] is None
    changed = [json.loads(line) for line in (cleaned / "changed.jsonl").open()]
    assert [(row["line"], row["reason"]) for row in changed] == [
        *((2, "pii"), (3, "split"), (3, "split"))
    ]
    described = json.loads((cleaned / "dataset.json").read_text())
    assert described["counts"] == {"train": 5, "test": 2}
    assert described["removed"] == {"duplicate": 1, "refusal": 1}
    # The raw file is still what the rows come from.
    assert [source["path"] for source in described["sources"]] == ["raw.jsonl"]
    entry = read_entries(cleaned)[-1]
    assert (entry["rows_in"], entry["rows_out"], entry["previous"]) == (
        *(8, 7),
        read_entries(cleaned)[0]["hash"],
    )
    assert verify(cleaned) == []


def test_removed_changed_and_cut_rows_are_traced(cleaned: Path) -> None:
    def told(row: str) -> list[tuple[list[str], str | None]]:
        return [
            ([step.line["action"] for step in one.steps], one.now) for one in history(cleaned, row)
        ]

    assert told("raw.jsonl:1") == [(["imported", "kept"], "train:1")]
    assert told("raw.jsonl:2") == [(["imported", "changed"], "train:2")]
    assert told("raw.jsonl:3") == [
        *((["imported", "changed"], "train:3"), (["imported", "changed"], "train:4"))
    ]
    assert told("raw.jsonl:4") == [(["imported", "removed"], None)]
    assert told("test:2") == [(["imported", "kept"], "test:2")]
    was = row_id(conversation(1))
    assert told(was) == told("raw.jsonl:2")
    (one,) = history(cleaned, was)
    assert (one.steps[1].line["was"], one.steps[1].line["detail"]) == (was, "1 name")
    assert (one.file, one.line) == ("raw.jsonl", 2)
    with pytest.raises(UsageError, match="no row"):
        history(cleaned, "train:9")


def test_every_byte_of_a_ledger_counts(cleaned: Path) -> None:
    random = Random(4)
    # Every byte of a short ledger, a sample of a longer one.
    for folder, share in ((cleaned.parent / "first", 1.0), (cleaned, 0.1)):
        ledger = folder / "ledger.jsonl"
        good = ledger.read_bytes()
        for at in range(len(good)):
            if random.random() < share:
                bad = bytearray(good)
                bad[at] ^= random.choice((1, 2, 4, 8, 16, 32, 64, 128))
                ledger.write_bytes(bad)
                assert verify(folder), f"byte {at}"
        ledger.write_bytes(good)
        assert verify(folder) == []


def test_every_file_of_a_folder_counts(cleaned: Path) -> None:
    random = Random(0)
    files = sorted(path for path in cleaned.rglob("*") if path.is_file())
    assert len(files) == 8
    for path in files:
        good = path.read_bytes()
        for _ in range(10):
            bad = bytearray(good)
            bad[random.randrange(len(bad))] ^= 1 << random.randrange(8)
            path.write_bytes(bad)
            assert verify(cleaned), path.name
        path.write_bytes(good + b"\n")
        assert verify(cleaned), path.name
        path.unlink()
        assert verify(cleaned), path.name
        path.write_bytes(good)
    write(cleaned / "valid.jsonl", asked([1]))
    assert verify(cleaned) == ["valid.jsonl: not written by any step of the ledger"]


def test_steps_cannot_be_dropped_swapped_or_forged(cleaned: Path) -> None:
    ledger = cleaned / "ledger.jsonl"
    good = ledger.read_bytes()
    first, second = good.splitlines(keepends=True)
    for bad in (first, second, second + first, first + first + second, b""):
        ledger.write_bytes(bad)
        assert verify(cleaned)
    # Sealed anew without its past, the entry no longer follows from the folder's history.
    ledger.unlink()
    append_entry(cleaned, {key: value for key, value in json.loads(second).items() if key != "n"})
    assert verify(cleaned)


def test_a_tampered_ledger_is_told_and_never_a_crash(capsys: Capture, cleaned: Path) -> None:
    ledger = cleaned / "ledger.jsonl"
    good = ledger.read_bytes()
    random = Random(2)
    values: list[object] = [None, 3, [], "x", {"../../x": "../../etc"}, {"a": 1}]
    for _ in range(60):
        lines = [json.loads(line) for line in good.splitlines()]
        entry = random.choice(lines)
        entry[random.choice([*entry, "branches", "parent"])] = random.choice(values)
        ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
        told = text(capsys, "data", "trace", "train:1", "--data", cleaned, code=3)
        assert "TAMPERED" in told
        assert "crash" not in told


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_an_interrupted_writer_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    source = write(tmp_path / "raw.jsonl", asked(range(3)))
    with (
        pytest.raises(BaseException),  # noqa: B017  (a disk's error changes its class)
        FolderWriter(tmp_path / "data", "import", [source]) as writer,
    ):
        writer.add("train", conversation(1, origin=f"{source}:1"))
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["raw.jsonl"]


def test_a_source_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "raw.jsonl", asked(range(3)))
    with (
        pytest.raises(DataError, match="changed while it was read"),
        FolderWriter(tmp_path / "data", "import", [source]) as writer,
    ):
        writer.add("train", conversation(1, origin=f"{source}:1"))
        write(source, asked(range(4)))
    with (
        pytest.raises(DataError, match="no row is left"),
        FolderWriter(tmp_path / "data", "import", [source]),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["raw.jsonl"]


def test_ids_name_what_is_said() -> None:
    one = conversation(1, origin="a:1")
    same = Conversation(one.turns, "b:7", tags={"task": "t"})
    assert row_id(one) == row_id(same)
    assert row_id(one) != row_id(conversation(1, "no"))
    assert row_id(one) != row_id(Conversation(one.turns, "", tools=({"name": "f"},)))
    # Arguments beyond 64 bits are numbers too.
    call = {"type": "function", "function": {"name": "f", "arguments": {"n": 2**70}}}
    called = Conversation((Turn("user", "x"), Turn("assistant", "", tool_calls=(call,))), "")
    assert len(row_id(called)) == 16
