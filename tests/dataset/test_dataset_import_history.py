"""A data folder's record, the origins of its rows, and `data trace`."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from import_command import Capture, asked, imported, result, rows_in, said, text, traced, write

from mlx_itune.cli import main
from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.dataset.importing.folder import new_folder
from mlx_itune.dataset.importing.provenance import read_dataset, row_id, verify
from mlx_itune.dataset.importing.trace import trace
from mlx_itune.kit.errors import DataError, UsageError


def test_trace_tells_the_history_of_a_row(capsys: Capture, tmp_path: Path) -> None:
    source = write(tmp_path / "quiz.jsonl", asked(range(40)))
    source.write_text(source.read_text() + "broken\n")
    one, two = tmp_path / "1", tmp_path / "2"
    imported(capsys, one, source, "--operator", "kim")
    imported(capsys, two, one, "--split", "50/25/25")
    row = rows_in(two, "test")[0]
    history = traced(capsys, two, "test:1")
    number = int(said(row).split("?")[0].removeprefix("What is ")) + 1
    assert row["origin"] == f"quiz.jsonl:{number}"
    assert (history["file"], history["line"], history["now"]) == ("quiz.jsonl", number, "test:1")
    assert [step["action"] for step in history["steps"]] == ["imported", "kept"]
    assert history["steps"][0]["operator"] == "kim"
    assert json.loads(history["text"]) == row
    for name in (f"quiz.jsonl:{number}", f"{source}:{number}", history["id"]):
        assert traced(capsys, two, name) == history
    broken = traced(capsys, one, "quiz.jsonl:41")
    assert (broken["now"], broken["steps"][0]["action"]) == (None, "rejected")
    told = text(capsys, "data", "trace", "test:1", "--data", two)
    assert f"quiz.jsonl:{number} -> test:1" in told
    assert "verified: 2 steps" in told
    result(capsys, "data", "trace", "quiz.jsonl:99", "--data", two, code=2)
    result(capsys, "data", "trace", "train:1", "--data", tmp_path, code=3)


def test_rows_are_traced_through_import_clean_and_render(capsys: Capture, tmp_path: Path) -> None:
    rows = [{"question": f"What is  {n}?", "answer": f"It is {n}."} for n in (*range(9), 3)]
    source = write(tmp_path / "quiz.jsonl", rows)
    tasks = tmp_path / "t.toml"
    tasks.write_text(
        '[[task]]\nname = "t"\nfields = {q = "messages.0.content", a = "messages.1.content"}\n'
        '[[task.template]]\ninput = "Q: {q}"\ntarget = "{a}"\n'
    )
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    imported(capsys, one, source, "--licence", "MIT")
    flags = ("--steps", "whitespace,exact-duplicates")
    result(capsys, "data", "clean", one, *flags, "--out", two)
    made = result(capsys, "data", "render", two, "--templates", tasks, "--out", three)
    history = traced(capsys, three, "train:4")
    assert (history["file"], history["line"]) == ("quiz.jsonl", 4)
    assert [step["command"] for step in history["steps"]] == ["import", "clean", "render"]
    assert traced(capsys, three, "quiz.jsonl:4") == history
    gone = traced(capsys, two, "quiz.jsonl:10")
    assert (gone["now"], gone["steps"][-1]["reason"]) == (None, "exact-duplicates")
    told = text(capsys, "data", "trace", "quiz.jsonl:10", "--data", three, code=2)
    assert "1 by exact-duplicates of data clean" in told
    described = json.loads((three / "dataset.json").read_text())
    assert (described["seal"], len(described["earlier"])) == (made["ledger"], 2)
    assert [source["licence"] for source in described["sources"]] == ["MIT"]


def test_a_row_that_was_not_drawn_is_told_so(capsys: Capture, tmp_path: Path) -> None:
    source = write(tmp_path / "quiz.jsonl", asked(range(12)))
    imported(capsys, tmp_path / "1", source, "--sample", 4)
    found = 0
    for line in range(1, 13):
        with pytest.raises(SystemExit) as left:
            main(["data", "trace", f"quiz.jsonl:{line}", "--data", str(tmp_path / "1")])
        found += not left.value.code
        told = capsys.readouterr().err
        assert not left.value.code or "are counted, not listed (8 by --sample" in told
    assert found == 4


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


def test_trace_tells_when_a_file_was_changed(capsys: Capture, tmp_path: Path) -> None:
    source = write(tmp_path / "quiz.jsonl", asked(range(20)))
    imported(capsys, tmp_path / "1", source)
    train = tmp_path / "1" / "train.jsonl"
    train.write_text(train.read_text().replace("It is 7", "It is 8"))
    told = text(capsys, "data", "trace", "train:1", "--data", tmp_path / "1", code=3)
    assert "CHANGED: train.jsonl: changed after it was written (its SHA-256 differs)" in told
    imported(capsys, tmp_path / "2", tmp_path / "1")
    found = result(capsys, "data", "trace", "train:1", "--data", tmp_path / "2", code=3)
    assert found["problems"] == ["train.jsonl: changed by hand before step 2 read it"]


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


def conversation(n: int, answer: str = "yes", origin: str = "") -> Conversation:
    turns = (Turn("user", f"Is it {n}?"), Turn("assistant", answer))
    return Conversation(turns, origin, tags={"source": "s"})


@pytest.fixture
def cleaned(tmp_path: Path) -> Path:
    """A folder of two steps: rows kept, changed, cut in two, removed."""
    source = write(tmp_path / "raw.jsonl", asked(range(8)))
    first, second = tmp_path / "first", tmp_path / "second"
    with new_folder(first, "import", [source], operator="kim") as writer:
        for n in range(8):
            writer.add("train" if n < 6 else "test", conversation(n, origin=f"{source}:{n + 1}"))
    with new_folder(second, "clean", [first], settings={"steps": ["pii"]}) as writer:
        rows = [
            Conversation(
                one.turns,
                f"{first / 'train.jsonl'}:{n + 1}",
                tags={**one.tags, "origin": f"raw.jsonl:{n + 1}"},
            )
            for n, one in enumerate(map(conversation, range(6)))
        ]
        writer.add("train", rows[0])
        writer.add("train", conversation(1, "no"), before=rows[1], reason="pii", detail="1 name")
        for half in ("left", "right"):
            writer.add("train", conversation(2, half), before=rows[2], reason="split")
        writer.remove(rows[3], "duplicate", "same as train.jsonl:1")
        writer.remove(rows[4], "refusal", show=False)
        writer.add("train", rows[5])
    return second


def test_a_writer_lists_what_it_removed_and_changed(cleaned: Path) -> None:
    removed = [json.loads(line) for line in (cleaned / "removed.jsonl").open()]
    question, answer = ({"role": "user", "content": "Is it 3?"}, "yes")
    assert removed[0] == {
        "file": "train.jsonl",
        "line": 4,
        "origin": "raw.jsonl:4",
        "reason": "duplicate",
        "detail": "same as train.jsonl:1",
        "row": {"messages": [question, {"role": "assistant", "content": answer}], "source": "s"},
    }
    assert removed[1]["row"] is None
    changed = [json.loads(line) for line in (cleaned / "changed.jsonl").open()]
    assert [(row["line"], row["reason"]) for row in changed] == [
        *((2, "pii"), (3, "split"), (3, "split"))
    ]
    record = read_dataset(cleaned)
    assert record is not None
    assert (record.counts, record.removed) == ({"train": 5}, {"duplicate": 1, "refusal": 1})
    # The raw file is still what the rows come from.
    assert [source.path for source in record.sources] == ["raw.jsonl"]
    assert verify(cleaned) == []


def test_removed_changed_and_cut_rows_are_traced(cleaned: Path) -> None:
    def told(row: str) -> list[tuple[list[str], str | None]]:
        return [([step["action"] for step in one.steps], one.now) for one in trace(cleaned, row)]

    assert told("raw.jsonl:1") == [(["imported", "kept"], "train:1")]
    assert told("raw.jsonl:2") == [(["imported", "changed"], "train:2")]
    assert told("raw.jsonl:3") == [
        *((["imported", "changed"], "train:3"), (["imported", "changed"], "train:4"))
    ]
    assert told("raw.jsonl:4") == [(["imported", "removed"], None)]
    assert told(row_id(conversation(1))) == told("raw.jsonl:2")
    (one,) = trace(cleaned, row_id(conversation(1)))
    assert (one.steps[1]["detail"], one.file, one.line) == ("1 name", "raw.jsonl", 2)
    with pytest.raises(UsageError, match="no row"):
        trace(cleaned, "train:9")


def test_every_byte_of_a_folder_counts(cleaned: Path) -> None:
    random = Random(0)
    files = sorted(path for path in cleaned.rglob("*") if path.is_file())
    assert len(files) == 4
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


@pytest.mark.parametrize("value", [None, 3, [], "x", {"../../x": "../../etc"}, {"a": 1}])
def test_a_tampered_record_is_told_and_never_a_crash(
    capsys: Capture, cleaned: Path, value: object
) -> None:
    path = cleaned / "dataset.json"
    good = json.loads(path.read_text())
    for key in good:
        if good[key] != value:
            path.write_text(json.dumps({**good, key: value}))
            told = text(capsys, "data", "trace", "train:1", "--data", cleaned, code=3)
            assert "crash" not in told


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_an_interrupted_writer_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    source = write(tmp_path / "raw.jsonl", asked(range(3)))
    with (
        pytest.raises(BaseException),  # noqa: B017  (a disk's error changes its class)
        new_folder(tmp_path / "data", "import", [source]) as writer,
    ):
        writer.add("train", conversation(1, origin=f"{source}:1"))
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["raw.jsonl"]


def test_a_source_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "raw.jsonl", asked(range(3)))
    with (
        pytest.raises(DataError, match="changed while it was read"),
        new_folder(tmp_path / "data", "import", [source]) as writer,
    ):
        writer.add("train", conversation(1, origin=f"{source}:1"))
        write(source, asked(range(4)))
    with (
        pytest.raises(DataError, match="no row is left"),
        new_folder(tmp_path / "data", "import", [source]),
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
