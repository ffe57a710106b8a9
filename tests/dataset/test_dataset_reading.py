"""Bytes in, raw rows or faults out: strict, streamed, each at its line."""

import gzip
import json
import random
import subprocess
import sys

import orjson
import pytest

from mlx_itune.dataset.faults import Fault
from mlx_itune.dataset.reading import Record, read_records
from mlx_itune.dataset.reading import stream as streams
from mlx_itune.kit.errors import DataError, StorageError, UsageError

ROW = b'{"question": "q", "answer": "a"}'


def read(path, data, **options):
    path.write_bytes(data)
    return list(read_records(path, **options))


def outline(found):
    """Lines of rows; codes and lines of faults."""
    return [r.line if isinstance(r, Record) else (r.code, r.line) for r in found]


# Lines


def test_a_fault_names_its_column_and_its_byte_in_the_file(tmp_path):
    first, second = read(tmp_path / "a.jsonl", ROW + b"\n" + b'{"a": tru}')
    assert isinstance(first, Record)
    assert f"column 7, byte {len(ROW) + 8} of the file" in second.message


def test_a_line_that_is_far_too_long_is_one_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "CHUNK_BYTES", 64)
    monkeypatch.setattr(streams, "MAX_ROW_BYTES", 1000)
    data = ROW + b'\n{"a": "' + b"x" * 5000 + b'"}\n' + ROW + b'\n{"b": "' + b"y" * 2000
    found = read(tmp_path / "a.jsonl", data)
    assert outline(found) == [1, ("row-size", 2), 3, ("row-size", 4)]


@pytest.mark.parametrize("chunk", [1, 2, 7, 33, 1 << 20])
def test_chunks_may_end_anywhere(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(streams, "CHUNK_BYTES", chunk)
    lines = ROW + b"\r\n\n  \n" + ROW + b"\n{\n" + ROW
    assert outline(read(tmp_path / "a.jsonl", lines)) == [1, 4, ("json", 5), 6]
    data = b'[\n {"a": "}{\\"][,"},\n {"b": [{"c": "\\\\"}]},\n {"d": }\n]\n'
    found = read(tmp_path / "a.json", data)
    assert outline(found) == [2, 3, ("json", 4)]
    assert found[0].value == {"a": '}{"][,'}


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("rest", [b"", b"\n", b"\n" + ROW, ROW, b" \n" + ROW])
def test_with_or_without_a_mark_every_line_counts_once(tmp_path, bom, rest):
    found = read(tmp_path / "a.jsonl", bom + rest)
    assert len(found) == sum(bool(line.strip()) for line in (bom + rest).split(b"\n"))
    assert all(isinstance(r, Record) or r.code == "bom" for r in found)


# Arrays and objects


def array(*elements, sep=b",\n  "):
    return b"[\n  " + sep.join(elements) + b"\n]"


@pytest.mark.parametrize("sep", [b",", b", ", b",\n", b",\n  ", b",\r\n\t"])
@pytest.mark.parametrize(
    "broken",
    [
        b'{"question": "q", "answer": }',
        b'{"question": "q", "answer": "a",}',
        b'{"question": "q", "answer": "a}',
        b'{"question": "q, "answer": "a"}',
        b'{"question": "q", "answer": "a"',
        b'{"question": "q", "answer": ["a"}',
        b'{"question": "q", "answer": {"a": 1}',
        b'{"question": "\xff", "answer": "a"}',
        b'{"question": "\x00", "answer": "a"}',
        b'{"question": NaN, "answer": "a"}',
        b'{"question": "q", "question": "a"}',
        b'"question": "q", "answer": "a"}',
        b"7",
        b"null",
        b'"text, with {brackets]"',
        b"[1, [2]]",
        b"tru",
    ],
)
def test_a_broken_element_spoils_no_other(tmp_path, sep, broken):
    data = b"[" + sep[1:] + sep.join([ROW, ROW, broken, ROW, ROW]) + b"]"
    found = read(tmp_path / "a.json", data)
    records = [r for r in found if isinstance(r, Record)]
    assert len(records) == 4, found
    assert all(r.value == {"question": "q", "answer": "a"} for r in records)
    assert any(isinstance(r, Fault) for r in found)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"[]", []),
        (b"[\n]\n", []),
        (b"[" + ROW + b",]", [1]),
        (b"[" + ROW, [1, ("json", 1)]),
        (b"[", [("json", 1)]),
        (b"[" + ROW + b",,\n" + ROW + b"]", [1, ("json", 1), 2]),
        (b"[" + ROW + b"}, " + ROW + b"]", [1, ("json", 1), 1]),
        (b"[\n" + ROW + b"\n" + ROW + b",\n" + ROW + b"]", [2, ("json", 3), 4]),
        (b"[" + ROW + b"]\n" + b"x", [1, ("json", 2)]),
    ],
)
def test_arrays_to_the_letter(tmp_path, data, expected):
    assert outline(read(tmp_path / "a.json", data)) == expected


def test_what_is_lost_is_said(tmp_path):
    *_, fault = read(tmp_path / "a.json", b"[" + ROW + b', {"question": "q, "b": [' + b"x" * 5000)
    assert fault.code == "json" and "the last 5,0" in fault.message


def test_an_element_that_is_far_too_long_is_one_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "CHUNK_BYTES", 512)
    monkeypatch.setattr(streams, "MAX_ROW_BYTES", 100_000)
    long = b'{"question": "' + b"x" * 500_000 + b'", "answer": "a"}'
    for sep in (b",\n", b", "):
        found = read(tmp_path / "a.json", array(ROW, long, ROW, ROW, sep=sep))
        assert [r.code for r in found if isinstance(r, Fault)] == ["row-size"]
        assert sum(isinstance(r, Record) for r in found) == 3


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"data": [\n' + ROW + b",\n" + ROW + b"\n]}", [2, 3]),
        (b'{"version": "1", "n": {"a": [1]}, "train": [' + ROW + b'], "licence": "mit"}', [1]),
        (
            b'{"train": [' + ROW + b'],\n"test": [' + ROW + b"]}",
            [1, ("second-list", 2)],
        ),
        (b'{"data": []}', [("no-rows", 1)]),
        (b'{\n"question": "q",\n"answer": "a"\n}', [1]),
        (b'{\n"id": 7,\n"messages": []\n}', [1]),
        (b'{"data": [' + ROW + b", {]}", [1, ("json", 1)]),
        (b'{"data": [' + ROW + b"]", [1, ("json", 1)]),
        (b"{\n", [("json", 1)]),
        (b'{"a": [' + ROW + b"]} x", [1, ("json", 1)]),
    ],
)
def test_an_object_with_a_list_or_a_single_row(tmp_path, data, expected):
    assert outline(read(tmp_path / "a.json", data)) == expected


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson"])
@pytest.mark.parametrize("first", [b'["question": "q"}', b"[", b'[1, "x"]', b"{", b"[[", b"]["])
@pytest.mark.parametrize("last", [ROW, b"x", b"{"])
def test_a_damaged_first_line_does_not_turn_lines_into_an_array(tmp_path, name, first, last):
    data = b"\n".join([first, ROW, ROW, b"", ROW, last])
    found = read(tmp_path / name, data)
    assert len(found) == 5 and outline(found)[1:4] == [2, 3, 5]


def test_lists_line_by_line_are_lines(tmp_path):
    messages = b'[{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]\n'
    found = read(tmp_path / "a.jsonl", messages * 3)
    assert [f.code for f in found] == ["not-an-object"] * 3


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a"])
@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_is_an_array_under_any_name(tmp_path, name, indent):
    data = json.dumps([{"question": f"q{n}"} for n in range(200)], indent=indent).encode()
    assert sum(isinstance(r, Record) for r in read(tmp_path / name, data)) == 200


def test_an_array_of_many_chunks_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "CHUNK_BYTES", 4096)
    random_ = random.Random(3)
    rows = [
        {"id": n, "text": "".join(random_.choices('{}[]",:\\ \nabé', k=random_.randrange(300)))}
        for n in range(600)
    ]
    for indent in (None, 2):
        for way in (json.dumps, lambda value, indent: orjson.dumps(value).decode()):
            found = read(tmp_path / "a.json", way(rows, indent=indent).encode())
            assert [r.value for r in found] == rows


# Kinds, gzip, progress


@pytest.mark.parametrize("kind", ["lines", "array"])
def test_gzip_is_read_through_and_its_damage_told(tmp_path, kind):
    rows = [b'{"question": "q%d", "answer": "a"}' % n for n in range(5000)]
    data = b"\n".join(rows) if kind == "lines" else array(*rows)
    path = tmp_path / "a.jsonl.gz"
    packed = gzip.compress(data)
    assert len(read(path, packed)) == 5000
    found = read(path, packed[: len(packed) // 2])
    assert found[-1].code == "gzip" and len(found) > 100
    damaged = bytearray(packed)
    damaged[len(packed) // 2] ^= 255
    assert any(isinstance(r, Fault) and r.code == "gzip" for r in read(path, bytes(damaged)))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".jsonl.gz"])
def test_progress_adds_up_to_the_size_of_the_file(tmp_path, suffix):
    row = b'{"question": "' + b"q" * 1000 + b'", "answer": "a"}'
    data = b"\n".join([row] * 3000)
    if suffix == ".json":
        data = array(*[row] * 3000)
    if suffix.endswith(".gz"):
        data = gzip.compress(data)
    told = []
    read(tmp_path / f"a{suffix}", data, on_bytes=told.append)
    assert sum(told) == len(data) and len(told) > 1 and min(told) >= 0


def test_kinds_can_be_forced_and_strange_files_are_refused(tmp_path):
    assert len(read(tmp_path / "a.bin", ROW, kind="jsonl")) == 1
    with pytest.raises(UsageError, match="did you mean jsonl"):
        list(read_records(tmp_path / "a.bin", kind="json-l"))
    with pytest.raises(DataError, match="no kind of file"):
        read(tmp_path / "a.docx", b"\xd0\xcf\x11\xe0\x00\x00")
    with pytest.raises(DataError, match="not a parquet file"):
        read(tmp_path / "a.parquet", ROW)
    with pytest.raises(StorageError, match="No such file"):
        list(read_records(tmp_path / "none.jsonl"))


# Text


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("one\ntwo\n\nthree\n \n\nfour", [(1, "one\ntwo"), (4, "three"), (7, "four")]),
        ("one\n\ntwo\n<|endoftext|>\nthree\n", [(1, "one\n\ntwo"), (5, "three")]),
        ("Human: a\nAssistant: b\n\nHuman: c\nAssistant: d", [(1, None), (4, None)]),
        ("Human: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d", [(1, None)]),
        (
            "### Instruction:\na\n\n### Response:\nb\n\nb\n\n### Instruction:\nc\n\n"
            "### Response:\nd",
            [(1, None), (9, None)],
        ),
        ("\n\n", []),
    ],
)
def test_a_text_file_says_itself_what_a_row_is(tmp_path, text, rows):
    found = read(tmp_path / "a.txt", text.encode())
    assert [r.line for r in found] == [line for line, _ in rows]
    for record, (_, said) in zip(found, rows, strict=True):
        assert said is None or record.value == {"text": said}


# Memory

# On Linux ru_maxrss starts at what the parent had; VmHWM is of the process alone.
PEAK = """
import pathlib, resource, sys
from mlx_itune.dataset.sources import read_rows

def peak():
    if sys.platform == "linux":
        status = pathlib.Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = peak()
rows = sum(1 for _ in read_rows(pathlib.Path(sys.argv[1])))
print(rows, peak() - before)
"""


@pytest.mark.parametrize("kind", ["lines", "array"])
def test_memory_does_not_grow_with_the_file(tmp_path, kind):
    path = tmp_path / ("a.jsonl" if kind == "lines" else "a.json")
    row = {"question": "q" * 4000, "answer": "a" * 6000}
    block = (b",", b"\n")[kind == "lines"].join([orjson.dumps(row)] * 100)
    with path.open("wb") as file:
        if kind == "array":
            file.write(b"[")
        for n in range(200):
            file.write((b"" if n == 0 else (b",", b"\n")[kind == "lines"]) + block)
        if kind == "array":
            file.write(b"]")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True
    )
    rows, grown = map(int, done.stdout.split())
    assert rows == 20_000 and path.stat().st_size > 200e6
    assert grown < 40e6, f"{grown / 1e6:.0f} MB"
