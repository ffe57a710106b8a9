"""Rows in, conversations or faults out; splits that do not move."""

import json

import pytest

from mlx_itune.dataset.how import Reading
from mlx_itune.dataset.sources import expand, load_splits
from mlx_itune.kit.errors import DataError

QA = b'{"question": "q", "answer": "a"}'


def write(folder, name, count):
    rows = [{"question": f"q{n}", "answer": "a"} for n in range(count)]
    (folder / name).write_text("\n".join(map(json.dumps, rows)))


def test_a_folder_gives_its_splits_and_their_hashes(tmp_path):
    for name, count in (("train", 5), ("valid", 3), ("test", 2)):
        write(tmp_path, f"{name}.jsonl", count)
    splits = load_splits(tmp_path)
    assert [len(s) for s in (splits.train, splits.valid, splits.test)] == [5, 3, 2]
    sources = [(s.path, s.rows) for s in splits.sources]
    assert sources == [("train.jsonl", 5), ("valid.jsonl", 3), ("test.jsonl", 2)]
    assert len({s.sha256 for s in splits.sources}) == 3


@pytest.mark.parametrize(
    ("count", "low", "high"), [(1, 0, 0), (2, 1, 1), (10, 1, 4), (1000, 30, 70), (20000, 500, 500)]
)
def test_a_missing_validation_set_is_held_out(tmp_path, count, low, high):
    write(tmp_path, "rows.jsonl", count)
    splits = load_splits(tmp_path / "rows.jsonl")
    assert low <= len(splits.valid) <= high
    assert len(splits.train) + len(splits.valid) == count and splits.train
    assert not {c.origin for c in splits.train} & {c.origin for c in splits.valid}


def test_the_hold_out_depends_on_content_and_seed_only(tmp_path):
    rows = [json.dumps({"question": f"q{n % 150}", "answer": "a"}) for n in range(300)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    (tmp_path / "b.jsonl").write_text("\n".join(reversed(rows)))

    def held(name, seed=0):
        splits = load_splits(tmp_path / name, seed=seed)
        said = [{c.turns[0].content for c in part} for part in (splits.train, splits.valid)]
        assert not said[0] & said[1], "equal rows must stay on one side"
        return said[1]

    assert held("a.jsonl") == held("b.jsonl") != held("a.jsonl", seed=1)


def test_all_broken_rows_of_all_files_are_counted_and_the_first_told(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b"\n".join([QA, b"{", b"[]", QA]))
    (tmp_path / "valid.jsonl").write_bytes(b"{\n{\n")
    with pytest.raises(DataError) as caught:
        load_splits(tmp_path)
    line = str(caught.value)
    assert f"4 of 6 rows are broken: {tmp_path / 'train.jsonl'}:2: json: " in line
    assert "train.jsonl:3: not-an-object" in line and line.count("valid.jsonl:1") == 1
    assert line.count(": json: ") == 2, "one of a kind and file"


def test_missing_and_empty_data_are_named(tmp_path):
    with pytest.raises(DataError, match="no such data file"):
        load_splits(tmp_path / "none")
    for content in (b"", b"\n \n", b"[]"):
        (tmp_path / "train.jsonl").write_bytes(content)
        with pytest.raises(DataError, match=r"train\.jsonl: holds no rows"):
            load_splits(tmp_path)
    write(tmp_path, "train.json", 1)
    with pytest.raises(DataError, match="has both"):
        load_splits(tmp_path)
    for name in ("train.json", "train.jsonl"):
        (tmp_path / name).rename(tmp_path / "valid.jsonl")
    with pytest.raises(DataError, match=r"no train.jsonl or train.json; found valid\.jsonl"):
        load_splits(tmp_path)


def test_raw_files_of_any_kind_and_folders_of_them_are_split(tmp_path):
    (tmp_path / "a.csv").write_text("frage,antwort\n" + "".join(f"q{n},a\n" for n in range(40)))
    (tmp_path / "b.tsv").write_text("antwort\tfrage\na\tq41\n")
    columns = {"question": "frage", "answer": "antwort"}
    both = load_splits(tmp_path, how=Reading(columns=columns))
    assert len(both.train) + len(both.valid) == 41 and both.valid
    assert [source.path for source in both.sources] == ["a.csv", "b.tsv"]
    (tmp_path / "test.json").write_text('[{"frage": "q", "antwort": "a"}]')
    with pytest.raises(DataError, match="no train"):
        load_splits(tmp_path, how=Reading(columns=columns))
    (tmp_path / "a.csv").rename(tmp_path / "train.csv")
    assert len(load_splits(tmp_path, how=Reading(columns=columns)).test) == 1


def test_folders_expand_to_their_files_of_rows(tmp_path):
    names = "b.jsonl a.csv.gz dataset.json removed.jsonl ledger.jsonl .h.json notes.md c.parquet"
    for name in names.split():
        (tmp_path / name).touch()
    (tmp_path / "lineage").mkdir()
    found = expand([tmp_path / "notes.md", tmp_path, tmp_path / "b.jsonl"])
    assert [path.name for path in found] == ["notes.md", "a.csv.gz", "b.jsonl", "c.parquet"]
    with pytest.raises(DataError, match="no file of rows; found nothing"):
        expand([tmp_path / "lineage"])
