"""A data folder's record, the origins of its rows, and `data trace`."""

import json
from random import Random

import pytest
from data_command import asked, said

from mlx_itune.dataset.conversation import Conversation, Turn
from mlx_itune.dataset.importing.folder import new_folder
from mlx_itune.dataset.importing.provenance import read_dataset, verify
from mlx_itune.kit.errors import DataError


@pytest.fixture
def cleaned(run):
    """A folder of two steps: ten rows with a licence, one of them changed, one removed."""
    rows = asked((*range(9), 3))
    rows[1]["question"] = "What is\u00a01?"
    source = run.write("quiz.jsonl", rows)
    source.write_text(source.read_text() + "broken\n")
    run("import", source, "--licence", "MIT", "--operator", "kim", out="one")
    run("clean", run.home / "one", "--steps", "whitespace,exact-duplicates", out="two")
    return run.home / "two"


def test_rows_are_traced_through_import_clean_and_render(run, cleaned):
    tasks = run.home / "t.toml"
    tasks.write_text(
        '[[task]]\nname = "t"\nfields = {q = "messages.0.content", a = "messages.1.content"}\n'
        '[[task.template]]\ninput = "Q: {q}"\ntarget = "{a}"\n'
    )
    made = run("render", cleaned, "--templates", tasks, out="three")
    history = run.trace("three", "train:4")
    assert (history["file"], history["line"], history["now"]) == ("quiz.jsonl", 4, "train:4")
    assert json.loads(history["text"]) == run.rows("three")[3]
    steps = [(step["command"], step["action"]) for step in history["steps"]]
    assert steps == [("import", "imported"), ("clean", "kept"), ("render", "kept")]
    assert history["steps"][0]["operator"] == "kim"
    for name in ("quiz.jsonl:4", run.home / "quiz.jsonl:4", history["id"]):
        assert run.trace("three", name) == history
    record = run.record("three")
    assert (record["seal"], len(record["earlier"])) == (made["ledger"], 2)
    assert [source["licence"] for source in record["sources"]] == ["MIT"]
    told = run.told("trace", "train:4", "--data", run.home / "three")
    assert "quiz.jsonl:4 -> train:4" in told and "verified: 3 steps" in told


def test_rows_that_were_changed_removed_rejected_or_passed_over(run, cleaned):
    def last(out, row):
        history = run.trace(out, row)
        step = history["steps"][-1]
        return history["now"], step["action"], step.get("reason")

    was = run.trace("one", "train:2")["id"]
    assert last("two", "quiz.jsonl:2") == ("train:2", "changed", "whitespace")
    assert last("two", was) == ("train:2", "changed", "whitespace")
    assert last("two", "quiz.jsonl:10") == (None, "removed", "exact-duplicates")
    assert last("one", "quiz.jsonl:11") == (None, "rejected", "json")
    (removed,) = run.rows("two", "removed")
    assert removed.keys() == {"file", "line", "origin", "reason", "detail", "row"}
    for row, folder, code in (
        ("quiz.jsonl:99", cleaned, 2), ("train:99", cleaned, 2), ("train:1", run.home, 3)
    ):  # fmt: skip
        run("trace", row, "--data", folder, code=code)
    run("import", cleaned, "--sample", 1, out="few")
    line = 1 if said(run.rows("few")[0]) != said(run.rows("two")[0]) else 3
    told = run.told("trace", f"quiz.jsonl:{line}", "--data", run.home / "few", code=2)
    assert "are counted, not listed (1 by exact-duplicates of data clean, 8 by --sample" in told


def test_merged_folders_and_single_files_bring_their_histories(run, cleaned):
    # Two raw files of one name: their rows are still told apart.
    for name, numbers in {"a": range(9), "b": range(9, 18)}.items():
        run("import", run.write(f"{name}/raw/quiz.jsonl", asked(numbers)), out=f"{name}/data")
    run("import", run.home / "a/data", run.home / "b/data", out="merged")
    for line, file in {"train:1": "quiz.jsonl", "train:18": "quiz.jsonl#2"}.items():
        history = run.trace("merged", line)
        assert (history["file"], len(history["steps"])) == (file, 2)
    assert run.trace("merged", "quiz.jsonl#2:3")["now"] == "train:12"
    made = run("import", cleaned / "train.jsonl", out="alone")
    assert [source["licence"] for source in made["sources"]] == ["MIT"]
    assert len(run.trace("alone", "quiz.jsonl:4")["steps"]) == 3


def test_folders_of_an_earlier_version_and_rows_with_an_origin_of_their_own(run):
    old = run.write("old/train.jsonl", asked(range(5))).parent
    run.write("old/ledger.jsonl", [{"n": 1, "hash": "0" * 64}])
    source = {"name": "quiz", "path": "quiz.jsonl", "sha256": "0" * 64, "licence": "CC-BY-4.0"}
    record = {"version": 1, "sources": [source], "counts": {"train": 5}, "settings": {}}
    (old / "dataset.json").write_text(json.dumps(record))
    made = run("import", old, out="new")
    assert [each["licence"] for each in made["sources"]] == ["CC-BY-4.0"]
    history = run.trace("new", "train:2")
    assert (history["file"], history["line"]) == ("train.jsonl", 2)
    told = run.told("trace", "train:2", "--data", old, code=3)
    assert "no record that rows can be traced by" in told
    # A field that rows call "origin" themselves is kept.
    made = run("import", run.write("quiz.jsonl", asked(range(2), origin="the moon")), out="1")
    assert made["notes"] == ["the rows' own field 'origin' is kept as 'given_origin'"]
    run("import", run.home / "1", out="2")
    row = run.rows("2")[0]
    assert (row["origin"], row["given_origin"]) == ("quiz.jsonl:1", "the moon")


def test_every_byte_of_a_folder_counts(run, cleaned):
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
    run.write("two/valid.jsonl", asked([1]))
    assert verify(cleaned) == [
        "valid.jsonl: not written by the step that made the folder",
        "removed.jsonl: missing",
    ]
    train = cleaned / "train.jsonl"
    train.write_text(train.read_text().replace("It is 7", "It is 8"))
    told = run.told("trace", "train:1", "--data", cleaned, code=3)
    assert "CHANGED: train.jsonl: changed after it was written (its SHA-256 differs)" in told
    run("import", train, out="out")
    found = run("trace", "train:1", "--data", run.home / "out", code=3)
    assert found["problems"] == ["train.jsonl: changed by hand before step 3 read it"]


@pytest.mark.parametrize("value", [None, 3, [], {"../../x": "../../etc"}, {"a": 1}])
def test_a_tampered_record_is_told_and_never_a_crash(run, cleaned, value):
    path = cleaned / "dataset.json"
    good = json.loads(path.read_text())
    for key in good:
        if good[key] != value:
            path.write_text(json.dumps({**good, key: value}))
            run.told("trace", "train:1", "--data", cleaned, code=3)
    path.write_text(json.dumps({**good, "sources": good["sources"] * 2}))
    assert read_dataset(cleaned) is not None
    assert verify(cleaned) == ["dataset.json: changed after it was sealed"]


def test_a_writer_that_fails_leaves_nothing(run):
    source = run.write("raw.jsonl", asked(range(3)))
    turns = (Turn("user", "Is it?"), Turn("assistant", "yes"))

    def attempt(error=None, rows=1):
        with new_folder(run.home / "data", "import", [source]) as writer:
            for n in range(rows):
                writer.add("train", Conversation(turns, f"{source}:{n + 1}"))
            if error:
                raise error
            run.write("raw.jsonl", asked(range(4)))

    for error in (KeyboardInterrupt(), ValueError()):
        with pytest.raises(type(error)):
            attempt(error)
    with pytest.raises(DataError, match="no row is left"):
        attempt(rows=0)
    run.write("raw.jsonl", asked(range(3)))
    with pytest.raises(DataError, match="changed while it was read"):
        attempt()
    assert [path.name for path in run.home.iterdir()] == ["raw.jsonl"]
