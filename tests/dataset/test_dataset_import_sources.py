"""What an import reads and what it learns about it: Hub data sets, file names, licences."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from import_command import Capture, asked, result, rows_in, text, write

from mlx_itune.dataset.importing.hub import data_files, fetch, parse_name
from mlx_itune.dataset.importing.licences import licence_beside
from mlx_itune.kit.errors import StorageError, UsageError

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
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    name = parse_name("org/quiz")
    assert name is not None
    data = fetch(name, offline=False)
    assert data.revision == COMMIT
    assert [path.name for path in data.files] == ["train[1].jsonl"]
    assert asked_for["revision"] == COMMIT
    assert asked_for["allow_patterns"] == ["train[[]1[]].jsonl", "README.md", "LICENSE*"]
    with pytest.raises(UsageError, match="no data file of a split 'dev'"):
        fetch(parse_name("org/quiz:dev") or name, offline=False)


def test_no_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import OfflineModeIsEnabled

    def unreachable(*args: object, **how: object) -> object:
        raise OfflineModeIsEnabled("no route\nto anywhere")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unreachable)
    name = parse_name("org/quiz")
    assert name is not None
    with pytest.raises(StorageError, match=r"could not be downloaded: no route$"):
        fetch(name, offline=False)


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
    made = result(capsys, "data", "import", first, second, third, "--out", tmp_path / "data")
    labels = [source["path"] for source in made["sources"]]
    assert len(set(labels)) == 3
    assert all(not Path(label).is_absolute() for label in labels)
    for number, label in enumerate(labels, 1):
        (one,) = result(capsys, "data", "trace", f"{label}:1", "--data", tmp_path / "data")[
            "histories"
        ]
        assert one["now"] == f"train:{number}"
    told = text(capsys, "data", "import", first, first, "--out", tmp_path / "twice", code=3)
    assert "is given twice" in told


def test_strange_file_names_do_no_harm(capsys: Capture, tmp_path: Path) -> None:
    good = write(tmp_path / "plain.jsonl", asked([1]))
    for number, name in enumerate((b"ro\nws.jsonl", b"\xff\xfe.jsonl", b'"},{".jsonl')):
        path = tmp_path / os.fsdecode(name)
        try:
            path.write_bytes(good.read_bytes())
        except OSError:
            continue  # a file system that wants UTF-8
        out = tmp_path / f"out{number}"
        told = text(capsys, "data", "import", path, "--out", out)
        assert "1 accepted" in told
        again = result(capsys, "data", "import", out, "--out", tmp_path / f"again{number}")
        assert again["accepted"] == 1
        traced = result(capsys, "data", "trace", "train:1", "--data", tmp_path / f"again{number}")
        assert len(traced["histories"][0]["steps"]) == 2
        assert rows_in(out, "train")[0]["source"]
