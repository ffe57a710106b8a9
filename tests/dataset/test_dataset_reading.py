"""Bytes in, raw rows or faults out: strict, streamed, each at its line."""

import gzip
import os
import socket
import subprocess
import sys

import pytest

from mlx_itune.dataset.faults import Fault
from mlx_itune.dataset.reading import Record, read_records
from mlx_itune.dataset.reading import stream as streams
from mlx_itune.dataset.sources import expand, split_paths
from mlx_itune.kit.errors import DataError, StorageError, UsageError

ROW = b'{"question": "q", "answer": "a"}'


def read(path, data, **options):
    path.write_bytes(data)
    return list(read_records(path, **options))


def outline(found):
    """Lines of rows; codes and lines of faults."""
    return [r.line if isinstance(r, Record) else (r.code, r.line) for r in found]


# Lines


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


# Kinds, gzip, progress


@pytest.mark.parametrize("kind", ["lines", "array"])
def test_gzip_is_read_through_and_its_damage_told(tmp_path, kind):
    rows = [b'{"question": "q%d", "answer": "a"}' % n for n in range(5000)]
    data = b"\n".join(rows) if kind == "lines" else b"[" + b",\n".join(rows) + b"]"
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
        data = b"[" + b", ".join([row] * 3000) + b"]"
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


# Doors


def test_only_regular_files_are_read_and_others_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "c.jsonl"))
        for name in ("a.jsonl", "b.jsonl", "c.jsonl", "/dev/zero"):
            for read_all in (read_records, lambda path: expand([path, tmp_path / "none"])):
                with pytest.raises((StorageError, DataError)):
                    list(read_all(tmp_path / name))


def test_a_name_that_is_not_utf_8_is_refused_in_one_line(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff.jsonl")
    path.write_bytes(ROW)
    for find in (split_paths, lambda found: expand([found])):
        with pytest.raises(DataError, match="not UTF-8") as caught:
            find(path)
        str(caught.value).encode()


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


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_memory_does_not_grow_with_the_file(tmp_path, name):
    row = b'{"question": "' + b"q" * 4000 + b'", "answer": "' + b"a" * 6000 + b'"}'
    joint = b"\n" if name == "a.jsonl" else b","
    block = joint.join([row] * 100)
    with (tmp_path / name).open("wb") as file:
        file.write(b"" if name == "a.jsonl" else b"[")
        file.writelines(block + (joint if n < 99 else b"") for n in range(100))
        file.write(b"" if name == "a.jsonl" else b"]")
    command = [sys.executable, "-c", PEAK, str(tmp_path / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows, grown = map(int, done.stdout.split())
    assert rows == 10_000 and (tmp_path / name).stat().st_size > 100e6
    assert grown < 40e6, f"{grown / 1e6:.0f} MB"
