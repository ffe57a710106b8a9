"""`data import`, end to end: files, broken rows, tags, licences and Hub data sets in."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from data_command import asked, said

from mlx_itune.cli import main
from mlx_itune.dataset.importing.inputs import data_files, find_inputs, licence_beside

COMMIT = "b" * 40


def test_any_mixture_of_formats_is_a_data_folder(run):
    quiz = run.write("quiz.jsonl", asked(range(30), task="arithmetic"))
    mixed = run.write(
        "mixed.jsonl",
        [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}],
    )
    array = run.home / "alpaca.json"
    array.write_text(json.dumps([{"instruction": "Add.", "input": "1 2", "output": "3"}]))
    made = run("import", quiz, mixed, array, out="data")
    assert (made["rows"], made["accepted"], made["rejected"]) == (32, 32, 0)
    assert made["splits"] == {"train": 32}
    rows = run.rows("data")
    assert rows[0]["messages"][0] == {"role": "user", "content": "What is 0?"}
    assert (rows[0]["source"], rows[0]["task"]) == ("quiz", "arithmetic")
    assert [row["source"] for row in rows[30:]] == ["mixed", "alpaca"]
    assert said(rows[31]) == "Add.\n\n1 2|3"
    record = run.record("data")
    entry = record["sources"][0]
    assert (entry["path"], entry["rows"], entry["licence"]) == ("quiz.jsonl", 30, None)
    assert record["counts"] == {"train": 32} and str(run.home) not in json.dumps(record)
    assert run("check", run.home / "data")["rejected"] == 0
    table = run.home / "faq.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["q", "a"], ["Why?", "Because,\nyes."]])
    run("import", table, "--map", "instruction=q", "--map", "output=a", out="faq")
    assert said(run.rows("faq")[0]) == "Why?|Because,\nyes."


def test_broken_rows_are_listed_and_left_out(run):
    source = run.write("rows.jsonl", asked(range(5)))
    with source.open("a") as file:
        file.write('{"messages": []}\n' + "{\n" * 70)
    told = run.told("import", source, out="data")
    assert f"{source}:7: json:" in told and "76 rows, 5 accepted, 71 rejected" in told
    assert told.count(f"{source}:") == 2 and "; the same in 69 more rows" in told
    rejected = run.rows("data", "rejected")
    assert {row["file"] for row in rejected} == {"rows.jsonl"}
    assert [row["line"] for row in rejected] == [*range(6, 77)]
    assert rejected[0].keys() == {"file", "line", "origin", "code", "message"}
    made = run("import", source, "--strict", out="strict", code=3)
    assert (made["written"], made["rejected"]) == (False, 71)
    source.write_text("not json\n")
    made = run("import", source, out="none", code=3)
    assert (made["accepted"], made["rejected"], made["written"]) == (0, 1, False)
    assert sorted(path.name for path in run.home.iterdir()) == ["data", "rows.jsonl"]


@pytest.mark.parametrize(
    ("where", "kept"),
    [("source=metamath", 5), ("source!=metamath", 3), ("source=metamath --where level=hard", 1)],
)
def test_where_keeps_rows_by_tag(run, where, kept):
    hard = {**asked([9])[0], "metadata": {"source": "metamath", "level": "hard"}}
    rows = [*asked(range(4), source="metamath"), *asked(range(4, 7), source="airoboros"), hard]
    source = run.write("hermes.jsonl", rows)
    assert run("import", source, "--where", *where.split(), out="out")["splits"]["train"] == kept
    told = run.told("import", source, "--where", "source=metamth", out="n", code=3)
    assert "no row with source=metamth (source is 'metamath', 'airoboros')" in told


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--split 0.9/0.2/0.1", "adds up to 1.2"),
        ("--split 0.9/x", "is not a list of numbers"),
        ("--split 1e999999/1", "is not a list of numbers"),
        ("--split 0/0.5/0.5", "leaves nothing to train on"),
        ("--where source", "is not key=value"),
        ("--group-by id", "--split"),
        ("--weights rows=much", "not a number"),
        ("--weights rows=1 --cap 3", "--weights or --cap"),
        ("--weights row=1", "did you mean rows?"),
        ("--licence rws=MIT", "did you mean rows?"),
        ("--group-by id --split 90/5/5", "no row has a tag 'id'"),
        ("--stratify id --split 90/5/5", "no row has a tag 'id'"),
        ("--sample 0", "--sample must be at least 1"),
    ],
)
def test_wrong_wishes_are_one_line(run, flags, told):
    source = run.write("rows.jsonl", asked(range(9)))
    error = run("import", source, *flags.split(), out="data", code=2)["error"]
    assert told in error["message"] + str(error["hint"])
    assert not (run.home / "data").exists()


def test_an_occupied_or_inner_out_and_a_file_twice_are_refused(run):
    source = run.write("in/rows.jsonl", asked(range(9)))
    run("import", source.parent, out="in/data", code=2)
    run.write("full/keep.jsonl", asked([1]))
    run("import", source, out="full", code=5)
    assert [path.name for path in (run.home / "full").iterdir()] == ["keep.jsonl"]
    assert "is given twice" in run.told("import", source, source, out="twice", code=3)
    assert sorted(path.name for path in run.home.iterdir()) == ["full", "in"]


def test_licences_are_found_given_asked_for_and_carried(run, monkeypatch):
    carded = run.write("carded/a.jsonl", asked(range(9)))
    (carded.parent / "README.md").write_text("---\nlicense: cc-by-nc-4.0\ntags:\n- x\n---\n# A\n")
    other = run.write("other/b.jsonl", asked(range(9, 18)))
    made = run("import", carded, other, out="1")
    assert [source["licence"] for source in made["sources"]] == ["cc-by-nc-4.0", None]
    told = run.told("import", run.home / "1", "--licence", "b=MIT", out="2")
    assert "licence of a: cc-by-nc-4.0" in told and "licence of b: MIT" in told
    licences = [source["licence"] for source in run.record("2")["sources"]]
    assert licences == ["cc-by-nc-4.0", "MIT"]
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("click.prompt", lambda question, **how: "Apache-2.0")
    assert "licence of b: Apache-2.0" in run.told("import", other, out="3")


def test_the_licence_of_the_data_travels_with_what_is_shipped(run, cli):
    source = run.write("quiz.jsonl", asked(range(30)))
    data, adapter, bundle = (run.home / name for name in ("data", "adapter", "bundle"))
    run("import", source, "--licence", "CC BY-NC 4.0", out="data")
    base = ("--model", "starter")
    flags = ("--data", data, "--out", adapter, "--runs", run.home / "runs", "--steps", 1)
    cli.json("train", *base, *flags)
    files = json.loads((adapter / "provenance.json").read_text())["data"]
    assert [file["licences"] for file in files] == [{"quiz": "CC BY-NC 4.0"}]
    flags = ("--adapter", adapter, "--to", "peft", "--bundle", "--out", bundle)
    cli.json("export", *base, *flags)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["licences"]["data: quiz"] == "CC BY-NC 4.0"
    assert "| data: quiz | CC BY-NC 4.0 |" in (bundle / "README.md").read_text()


@pytest.mark.parametrize(
    ("file", "content", "licence"),
    [
        ("README.md", "---\nlicense: mit\n---\n", "mit"),
        ("README.md", '---\r\npretty_name: x\r\nlicense: "cc-by-4.0"  \r\n---\r\n', "cc-by-4.0"),
        ("README.md", "---\nlicense:\n- apache-2.0\n- mit\n---\n", "apache-2.0 and mit"),
        ("README.md", "---\nlicense: [mit]\n---\n", "mit"),
        ("README.md", "# Rows\nlicense: mit\n", None),
        ("README.md", "---\nlicense:\ntags:\n- x\n---\n", None),
        ("LICENSE", "Apache License\n   Version 2.0, January 2004", "Apache-2.0"),
        ("LICENSE.txt", "Attribution-NonCommercial 4.0 International", "CC-BY-NC-4.0"),
        ("LICENCE", "Permission is hereby granted, free of charge,\nto any person obtaining a copy",
         "MIT"),
        ("COPYING", "All rights reserved.", None),
    ],
)  # fmt: skip
def test_licences_are_recognised(tmp_path, file, content, licence):
    (tmp_path / file).write_bytes(content.encode())
    assert licence_beside(tmp_path) == licence_beside(tmp_path / "rows.jsonl") == licence


def test_names_of_files_are_told_apart_and_do_no_harm(run):
    names = ("one/rows.jsonl", "two/rows.jsonl", "x/two/rows.jsonl", "ro\nws.jsonl", '"},{".jsonl',
             "a:7#3.jsonl")  # fmt: skip
    sources = [run.write(name, asked([n])) for n, name in enumerate(names)]
    made = run("import", *sources, out="data")
    labels = [source["path"] for source in made["sources"]]
    assert len(set(labels)) == len(names)
    assert not any(Path(label).is_absolute() or "\n" in label for label in labels)
    run("import", run.home / "data", out="again")
    for number, label in enumerate(labels, 1):
        history = run.trace("again", f"train:{number}")
        assert (history["file"], history["line"], len(history["steps"])) == (label, 1, 2)
        assert run.trace("data", f"{label}:1")["now"] == f"train:{number}"


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("dataa/tickets.csv", "did you mean data/tickets.csv?"),
        ("data/tickts.csv", "did you mean data/tickets.csv?"),
        ("data/deep/x", "no such data file or folder"),
        ("~/no/such", "no such data file or folder"),
        ("org/quiz.parquet:train", "no such data file or folder"),
    ],
)
def test_a_mistyped_path_is_not_asked_of_the_hub(run, monkeypatch, typed, told):
    run.write("data/tickets.csv", [])
    monkeypatch.chdir(run.home)
    assert told in run.told("import", typed, out="out", code=3)
    if ":" not in typed:
        assert told in run.told("check", typed, code=3)


def test_only_data_files_of_one_kind_and_split_are_read():
    names = [
        *("README.md", "quiz.py", "dataset_infos.json", ".gitattributes", "config.json"),
        *("data/test-00000-of-00001.parquet", "data/train-00000-of-00002.parquet"),
        *("data/train-00001-of-00002.parquet", "raw/all.jsonl", "raw/all.csv"),
    ]
    assert data_files(names, None) == names[5:8]
    assert data_files(names, "train") == names[6:8]
    assert data_files(names, "tra") == []
    assert data_files(["quiz.py", "x.csv", "y.jsonl.gz"], None) == ["y.jsonl.gz"]
    assert data_files(["train/a.json", "test/a.json"], "test") == ["test/a.json"]


def test_a_hub_data_set_comes_from_the_cache_when_offline(run, monkeypatch):
    from huggingface_hub import constants

    home = Path(constants.HF_HUB_CACHE) / "datasets--org--quiz"
    snapshot = home / "snapshots" / COMMIT
    run.write(snapshot / "data" / "train-00000-of-00001.jsonl", asked(range(6)))
    run.write(snapshot / "data" / "test-00000-of-00001.jsonl", asked([6]))
    (snapshot / "README.md").write_text("---\nlicense:\n- mit\n---\n")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    monkeypatch.chdir(run.home)
    made = run("import", "org/quiz", out="1")
    assert made["splits"] == {"train": 6, "test": 1}
    found = {(source["revision"], source["name"], source["licence"]) for source in made["sources"]}
    assert found == {(COMMIT, "quiz", "mit")}
    assert run("import", "org/quiz:test", out="2")["splits"] == {"train": 1}
    missing = run("import", "org/none", out="3", code=2)
    assert "download it once without --offline" in str(missing["error"])
    run.write("org/quiz/rows.jsonl", asked(range(3)))
    assert run("import", "org/quiz", out="4")["accepted"] == 3, "a local path wins"


def test_a_download_is_pinned_and_takes_no_code(run, monkeypatch):
    asked_for = {}

    class Hub:
        def dataset_info(self, name, revision):
            files = ("quiz.py", "train[1].jsonl", "README.md")
            return SimpleNamespace(
                sha=COMMIT, siblings=[SimpleNamespace(rfilename=file) for file in files]
            )

    def download(name, **how):
        asked_for.update(how)
        return str(run.write(f"{COMMIT}/train[1].jsonl", asked(range(2))).parent)

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    (file,) = find_inputs(["org/quiz"]).files
    assert (file.source.revision, file.path.name) == (COMMIT, "train[1].jsonl")
    assert asked_for["revision"] == COMMIT
    assert asked_for["allow_patterns"] == ["train[[]1[]].jsonl", "README.md", "LICENSE*"]


@pytest.mark.parametrize(
    ("kind", "code", "told"),
    [
        ("HTTPError", 3, "org/quiz: is no local path, and could not be downloaded: no route"),
        ("RepositoryNotFoundError", 2, "is neither a local path nor a data set of the Hub"),
        ("RevisionNotFoundError", 2, "org/quiz: has no revision 'v9'"),
        ("OfflineModeIsEnabled", 3, "could not be downloaded: no route"),
        ("OSError", 3, "could not be downloaded: no route"),
    ],
)
def test_whatever_the_hub_says_is_one_line(capsys, tmp_path, monkeypatch, kind, code, told):
    from huggingface_hub import errors

    error = getattr(errors, kind, OSError)
    response = SimpleNamespace(headers={}, request=None)
    more = {"response": response} if issubclass(error, errors.HfHubHTTPError) else {}

    def unreachable(*args, **how):
        raise error("no route\nto anywhere", **more)

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unreachable)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["data", "import", "org/quiz@v9", "--out", "data"])
    assert left.value.code == code
    printed = capsys.readouterr().err
    assert told in printed and printed.count("\n") == 1
