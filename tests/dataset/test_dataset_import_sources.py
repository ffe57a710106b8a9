"""What an import reads and what it learns about it: Hub data sets, file names, licences."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from import_command import Capture, asked, imported, rows_in, text, traced, write

from mlx_itune.cli import main
from mlx_itune.dataset.importing.hub import data_files, fetch, parse_name
from mlx_itune.dataset.importing.inputs import licence_beside
from mlx_itune.kit.errors import UsageError

COMMIT = "b" * 40


def test_only_data_files_of_one_kind_and_split_are_read() -> None:
    names = [
        *("README.md", "quiz.py", "dataset_infos.json", ".gitattributes", "config.json"),
        *("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"),
        *("data/test-00000-of-00001.parquet", "raw/all.jsonl", "raw/all.csv"),
    ]
    assert data_files(names, None) == [
        "data/test-00000-of-00001.parquet",
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
    ]
    assert data_files(names, "train") == names[5:7]
    assert data_files(names, "tra") == []
    assert data_files(["quiz.py", "x.csv", "y.jsonl.gz"], None) == ["y.jsonl.gz"]
    assert data_files(["train/a.json", "test/a.json"], "test") == ["test/a.json"]


def test_a_hub_name_is_told_from_a_path() -> None:
    name = parse_name("org/some-set@v1.2:test")
    assert name is not None
    assert (name.name, name.revision, name.split) == ("org/some-set", "v1.2", "test")
    for path in ("rows.jsonl", "a/b/c", "./a/b", "/a/b", "../a", "org/", "a b/c", "org/..", "~/x"):
        assert parse_name(path) is None, path


def test_a_download_is_pinned_and_takes_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for: dict[str, object] = {}

    class Hub:
        def dataset_info(self, name: str, revision: str | None) -> object:
            files = ("quiz.py", "train[1].jsonl", "README.md")
            return SimpleNamespace(
                sha=COMMIT, siblings=[SimpleNamespace(rfilename=file) for file in files]
            )

    def download(name: str, **how: object) -> str:
        asked_for.update(how)
        write(tmp_path / "train[1].jsonl", asked(range(2)))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    name = parse_name("org/quiz")
    assert name is not None
    data = fetch(name)
    assert data.revision == COMMIT
    assert [path.name for path in data.files] == ["train[1].jsonl"]
    assert asked_for["revision"] == COMMIT
    assert asked_for["allow_patterns"] == ["train[[]1[]].jsonl", "README.md", "LICENSE*"]
    with pytest.raises(UsageError, match="no data file of a split 'dev'"):
        fetch(parse_name("org/quiz:dev") or name)


@pytest.mark.parametrize(
    ("kind", "code", "told"),
    [
        ("HTTPError", 3, "org/quiz: is no local path, and could not be downloaded: no route"),
        ("RepositoryNotFoundError", 2, "is neither a local path nor a data set of the Hub"),
        ("GatedRepoError", 2, "org/quiz: is neither a local path nor a data set of the Hub"),
        ("RevisionNotFoundError", 2, "org/quiz: has no revision 'v9'"),
        ("OfflineModeIsEnabled", 3, "could not be downloaded: no route"),
        ("HFValidationError", 3, "could not be downloaded: no route"),
        ("OSError", 3, "could not be downloaded: no route"),
    ],
)
def test_whatever_the_hub_says_is_one_line(
    capsys: Capture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    code: int,
    told: str,
) -> None:
    from huggingface_hub import errors

    error = getattr(errors, kind, OSError)
    response = SimpleNamespace(headers={}, request=None)
    more = {"response": response} if issubclass(error, errors.HfHubHTTPError) else {}

    def unreachable(*args: object, **how: object) -> object:
        raise error("no route\nto anywhere", **more)

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unreachable)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["data", "import", "org/quiz@v9", "--out", "data"])
    assert left.value.code == code
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("dataa/tickets.csv", "did you mean data/tickets.csv?"),
        ("data/tickts.csv", "did you mean data/tickets.csv?"),
        ("./data/ticket.csv", "did you mean data/tickets.csv?"),
        ("data/deep/x", "no such data file or folder"),
        ("tickets", "no such data file or folder"),
        ("~/no/such", "no such data file or folder"),
        ("org/quiz.parquet:train", "no such data file or folder"),
    ],
)
def test_a_mistyped_path_is_not_asked_of_the_hub(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, told: str
) -> None:
    write(tmp_path / "data" / "tickets.csv", [])
    monkeypatch.chdir(tmp_path)
    assert told in text(capsys, "data", "import", typed, "--out", "out", code=3)
    if ":" not in typed:
        assert told in text(capsys, "data", "check", typed, code=3)


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
def test_licences_are_recognised(
    tmp_path: Path, file: str, content: str, licence: str | None
) -> None:
    (tmp_path / file).write_bytes(content.encode())
    assert licence_beside(tmp_path) == licence
    assert licence_beside(tmp_path / "rows.jsonl") == licence


def test_equal_file_names_are_told_apart(capsys: Capture, tmp_path: Path) -> None:
    first = write(tmp_path / "one" / "rows.jsonl", asked([1]))
    second = write(tmp_path / "two" / "rows.jsonl", asked([2]))
    third = write(tmp_path / "x" / "two" / "rows.jsonl", asked([3]))
    made = imported(capsys, tmp_path / "data", first, second, third)
    labels = [source["path"] for source in made["sources"]]
    assert len(set(labels)) == 3
    assert all(not Path(label).is_absolute() for label in labels)
    for number, label in enumerate(labels, 1):
        assert traced(capsys, tmp_path / "data", f"{label}:1")["now"] == f"train:{number}"
    told = text(capsys, "data", "import", first, first, "--out", tmp_path / "twice", code=3)
    assert "is given twice" in told


def test_strange_file_names_do_no_harm(capsys: Capture, tmp_path: Path) -> None:
    good = write(tmp_path / "plain.jsonl", asked([1]))
    for number, name in enumerate(("ro\nws.jsonl", '"},{".jsonl', "a:7#3.jsonl")):
        (tmp_path / name).write_bytes(good.read_bytes())
        out, again = tmp_path / f"out{number}", tmp_path / f"again{number}"
        assert "1 accepted" in text(capsys, "data", "import", tmp_path / name, "--out", out)
        assert imported(capsys, again, out)["accepted"] == 1
        assert len(traced(capsys, again, "train:1")["steps"]) == 2
        assert rows_in(out, "train")[0]["source"]
