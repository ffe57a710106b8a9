"""Bytes in, raw rows or faults out: strict, streamed, each at its line."""

import gzip
import json
import os
import socket
import subprocess
import sys

import pytest
from data_command import outline

from mlx_itune.dataset.reading import Record, read_records
from mlx_itune.dataset.reading import stream as streams
from mlx_itune.dataset.reading.stream import MAX_DEPTH
from mlx_itune.dataset.sources import expand, read_rows, split_paths
from mlx_itune.kit.errors import DataError, StorageError, UsageError

ROW = b'{"question": "q", "answer": "a"}'
GOOD = b'{"a": "b: c", "n": 1}'


# Lines


def test_a_line_that_is_far_too_long_is_one_fault(read, monkeypatch):
    monkeypatch.setattr(streams, "CHUNK_BYTES", 64)
    monkeypatch.setattr(streams, "MAX_ROW_BYTES", 1000)
    data = ROW + b'\n{"a": "' + b"x" * 5000 + b'"}\n' + ROW + b'\n{"b": "' + b"y" * 2000
    assert outline(read("a.jsonl", data)) == [1, ("row-size", 2), 3, ("row-size", 4)]


@pytest.mark.parametrize("chunk", [1, 2, 7, 33, 1 << 20])
def test_chunks_may_end_anywhere(read, monkeypatch, chunk):
    monkeypatch.setattr(streams, "CHUNK_BYTES", chunk)
    lines = ROW + b"\r\n\n  \n" + ROW + b"\n{\n" + ROW
    assert outline(read("a.jsonl", lines)) == [1, 4, ("json", 5), 6]
    found = read("a.json", b'[\n {"a": "}{\\"][,"},\n {"b": [{"c": "\\\\"}]},\n {"d": }\n]\n')
    assert outline(found) == [2, 3, ("json", 4)]
    assert found[0].value == {"a": '}{"][,'}


@pytest.mark.parametrize("rest", [b"", b"\n", b"\n" + ROW, ROW, b" \n" + ROW])
def test_a_byte_order_mark_spoils_the_first_row(read, rest):
    for data in (rest, b"\xef\xbb\xbf" + rest):
        found = read("a.jsonl", data)
        assert len(found) == sum(bool(line.strip()) for line in data.split(b"\n"))
        assert all(isinstance(r, Record) or (r.code, r.line) == ("bom", 1) for r in found)
    if rest.startswith(ROW):
        found = read("a.json", b"\xef\xbb\xbf[" + ROW + b",\n" + ROW + b"]")
        assert outline(found) == [("bom", 1), 2]


def deep(levels):
    return b'{"a": ' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


@pytest.mark.parametrize(
    ("raw", "code", "said"),
    [
        (b'{"a": 1, "a": 2}', "duplicate-key", "'a'"),
        (b'{"a":1,"\\u0061":2}', "duplicate-key", "'a'"),
        (b'{"a" : 1, "a"\t: 2}', "duplicate-key", "'a'"),
        (b'{"x": {"a:": 1, "a:": 2}}', "duplicate-key", "'a:'"),
        (b'{"a": 1, "a": "\\u003a\\u003A"}', "duplicate-key", "'a'"),
        (b'{"a": 1, "a": 2, "b": "\\u003a"}', "duplicate-key", "'a'"),
        (b'{"a": NaN}', "constant", "NaN"),
        (b'{"a": -Infinity}', "constant", "-Infinity"),
        (b'{"a": 1e999}', "json", "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "json", "too many digits"),
        (b'{"a": "\\u0000"}', "nul", "NUL"),
        (b'{"a": "\x00"}', "nul", "column 8, byte 108"),
        (b'{"a": "\\ud800"}', "surrogate", "surrogate"),
        (b'{"\\udc00": 1}', "surrogate", "surrogate"),
        (b'{"a": "\xff"}', "utf-8", "byte 8 of the line, byte 108"),
        (b'{"a": "\xed\xa0\x80"}', "utf-8", "0xed"),
        (b'{"a": "\tb"}', "json", "column 8, byte 108"),
        ('{"ä": "é", }'.encode(), "json", "byte 1"),
        (b"{'a': 1}", "json", "column 2"),
        (b'{"a": 1}, ', "json", "Extra data"),
        (b'["q", "a"]', "not-an-object", "must be a JSON object"),
        (b"\xef\xbb\xbf{}", "bom", "byte order mark"),
        (b"[" * 100_000, "json", "nested too deeply"),
        (deep(MAX_DEPTH + 1), "json", "nested too deeply"),
        (b'{"a":' * 3000 + b"1" + b"}" * 3000, "json", "nested too deeply"),
    ],
)
def test_strict_json_refuses_and_says_where(read, raw, code, said):
    fault, good = read("a.jsonl", b"\n".join([b" " * 99, raw, GOOD]))
    assert (fault.code, fault.line) == (code, 2) and said in fault.message
    assert good.value == {"a": "b: c", "n": 1}


def test_what_is_unusual_and_right_is_read(read):
    for raw in (
        b'{"a": ":smile:", "b": " : "}',
        b'{"a": "{\\"k\\": 1}", "b" : "x"}',
        b'{"a": 123456789012345678901234567890, "b": [18446744073709551616, -1.5e3]}',
        b'{"a": "\\ud83d\\ude00 \\u003a", "a\\u003a": "\\u003A"}',
        b'{"": {"": {"": ""}}}',
        deep(MAX_DEPTH),
        b' \t\r{"a": "\\\\u0000"} ',
        '{"é à": "\u2028 ü\u0085: \U0001f600\x7f"}\r'.encode(),
    ):
        assert [record.value for record in read("a.jsonl", raw)] == [json.loads(raw)]


# Kinds, gzip, progress


@pytest.mark.parametrize("kind", ["lines", "array"])
def test_gzip_is_read_through_and_its_damage_told(read, kind):
    rows = [b'{"question": "q%d", "answer": "a"}' % n for n in range(5000)]
    packed = gzip.compress(b"\n".join(rows) if kind == "lines" else b"[" + b",\n".join(rows) + b"]")
    assert len(read("a.jsonl.gz", packed)) == 5000
    found = read("a.jsonl.gz", packed[: len(packed) // 2])
    assert found[-1].code == "gzip" and len(found) > 100
    damaged = bytearray(packed)
    damaged[len(packed) // 2] ^= 255
    assert "gzip" in [getattr(r, "code", "") for r in read("a.jsonl.gz", bytes(damaged))]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".jsonl.gz"])
def test_progress_adds_up_to_the_size_of_the_file(read, suffix):
    rows = [b'{"question": "' + b"q" * 1000 + b'", "answer": "a"}'] * 3000
    data = b"[" + b", ".join(rows) + b"]" if suffix == ".json" else b"\n".join(rows)
    data = gzip.compress(data) if suffix.endswith(".gz") else data
    told = []
    read(f"a{suffix}", data, on_bytes=told.append)
    assert sum(told) == len(data) and len(told) > 1 and min(told) >= 0


def test_kinds_can_be_forced_and_strange_files_are_refused(read, tmp_path):
    assert len(read("a.bin", ROW, kind="jsonl")) == 1
    with pytest.raises(UsageError, match="did you mean jsonl"):
        read("a.bin", ROW, kind="json-l")
    with pytest.raises(DataError, match="no kind of file"):
        read("a.docx", b"\xd0\xcf\x11\xe0\x00\x00")
    with pytest.raises(StorageError, match="No such file"):
        list(read_rows(tmp_path / "none.jsonl"))


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("one\ntwo\n\nthree\n \n\nfour", [(1, "one\ntwo"), (4, "three"), (7, "four")]),
        ("one\n\ntwo\n<|endoftext|>\nthree\n", [(1, "one\n\ntwo"), (5, "three")]),
        ("Human: a\nAssistant: b\n\nHuman: c\nAssistant: d", [(1, None), (4, None)]),
        ("Human: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d", [(1, None)]),
        ("### Instruction:\na\n\n### Response:\nb\n\n### Instruction:\nc", [(1, None), (7, None)]),
        ("\n\n", []),
    ],
)
def test_a_text_file_says_itself_what_a_row_is(read, text, rows):
    found = read("a.txt", text)
    assert outline(found) == [line for line, _ in rows]
    for record, (_, said) in zip(found, rows, strict=True):
        assert said is None or record.value == {"text": said}


# Doors and memory


def test_only_regular_files_are_read_and_others_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "c.jsonl"))
        for name in ("a.jsonl", "b.jsonl", "c.jsonl", "/dev/zero"):
            for read_all in (read_records, lambda path: expand([path, tmp_path / "none"])):
                with pytest.raises((StorageError, DataError)):
                    list(read_all(tmp_path / name))
    path = tmp_path / os.fsdecode(b"\xff.jsonl")
    path.write_bytes(ROW)
    for find in (split_paths, lambda found: expand([found])):
        with pytest.raises(DataError, match="not UTF-8") as caught:
            find(path)
        str(caught.value).encode()


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


@pytest.mark.parametrize(
    ("name", "start", "sep", "end"), [("a.jsonl", b"", b"\n", b""), ("a.json", b"[", b",", b"]")]
)
def test_memory_does_not_grow_with_the_file(tmp_path, name, start, sep, end):
    row = b'{"question": "' + b"q" * 4000 + b'", "answer": "' + b"a" * 6000 + b'"}'
    with (tmp_path / name).open("wb") as file:
        file.write(start)
        file.writelines((sep if n else b"") + sep.join([row] * 100) for n in range(100))
        file.write(end)
    command = [sys.executable, "-c", PEAK, str(tmp_path / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows, grown = map(int, done.stdout.split())
    assert rows == 10_000 and (tmp_path / name).stat().st_size > 100e6
    assert grown < 40e6, f"{grown / 1e6:.0f} MB"
