"""JSON documents: arrays of rows, objects around them, rows one after the other, and damage."""

import json
import random

import pytest

from mlx_itune.dataset.conversation import place_of
from mlx_itune.dataset.faults import Fault, fault_at
from mlx_itune.dataset.reading import Record, read_records
from mlx_itune.dataset.reading import stream as streams

ROW = b'{"question": "q", "answer": "a"}'
PRETTY = b'{\n  "question": "q",\n  "answer": "a"\n}'


def read(path, data):
    path.write_bytes(data)
    return list(read_records(path))


def outline(found):
    """Lines of rows; codes and lines of faults."""
    return [r.line if isinstance(r, Record) else (r.code, r.line) for r in found]


@pytest.mark.parametrize("sep", [b",", b", ", b",\n", b",\n  ", b",\r\n\t"])
@pytest.mark.parametrize(
    "broken",
    [
        b'{"question": "q", "answer": }',
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
    assert [r.value for r in records] == [{"question": "q", "answer": "a"}] * 4, found
    assert any(isinstance(r, Fault) for r in found)


def cut(row, random_):
    return row[: random_.randrange(1, len(row) - 1)]


def without(marks):
    def damaged(row, random_):
        at = random_.choice([n for n, byte in enumerate(row) if byte in marks])
        return row[:at] + row[at + 1 :]

    return damaged


def strewn(row, random_):
    at = random_.randrange(1, len(row))
    return row[:at] + b"\x01" + row[at:]


def unclosed(row, random_):
    return row.removesuffix(b"]}").removesuffix(b"}")


@pytest.mark.parametrize("shape", ["lines", "one line", "indented", "wrapped"])
@pytest.mark.parametrize("damaged", [cut, without(b'"'), without(b"{}"), strewn, unclosed])
def test_of_2000_rows_60_are_damaged_and_1940_found(tmp_path, shape, damaged):
    random_ = random.Random(5)
    words = 'one {two} [three] "four" five, é:\n'.split(" ")

    def text():
        return " ".join(random_.choices(words, k=random_.randint(1, 20)))

    rows = [
        {"messages": [{"role": role, "content": text()} for role in ("user", "assistant")]}
        for _ in range(2000)
    ]
    broken = {*random_.sample(range(2000), 60)}
    indent = 2 if shape == "indented" else None
    parts = [json.dumps(row, indent=indent).replace("\n", "\n  ").encode() for row in rows]
    parts = [damaged(p, random_) if n in broken else p for n, p in enumerate(parts)]
    start, sep, end = {
        "lines": (b"[\n", b",\n", b"\n]"),
        "one line": (b"[", b", ", b"]"),
        "indented": (b"[\n  ", b",\n  ", b"\n]"),
        "wrapped": (b'{"version": 1, "data": [', b",", b"]}"),
    }[shape]
    found = read(tmp_path / "a.json", start + sep.join(parts) + end)
    good = [json.dumps(r.value) for r in found if isinstance(r, Record)]
    wanted = [json.dumps(row) for n, row in enumerate(rows) if n not in broken]
    assert not {*wanted} - {*good}
    # Two damaged rows side by side may be one fault; what is lost in a text may be a row still.
    assert len(found) >= 1998 and len(good) <= 2000
    where = [r.origin("a.json") if isinstance(r, Record) else r.where for r in found]
    assert len({*where}) == len(where)


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
        (b"[\n" + ROW + b"]\n[\n" + ROW + b"]", [2, 4]),
        (b'{"data": [\n' + ROW + b",\n" + ROW + b"\n]}", [2, 3]),
        (b'{"version": "1", "n": {"a": [1]}, "train": [' + ROW + b'], "licence": "mit"}', [1]),
        (b'{"train": [' + ROW + b'],\n"test": [' + ROW + b"]}", [1, ("second-list", 2)]),
        (b'{"data": []}', [("no-rows", 1)]),
        (b'{\n"question": "q",\n"answer": "a"\n}', [1]),
        (b'{\n"id": 7,\n"messages": []\n}', [1]),
        (b'{"data": [' + ROW + b", {]}", [1, ("json", 1)]),
        (b'{"data": [' + ROW + b"]", [1, ("json", 1)]),
        (b"{\n", [("json", 1)]),
        (b'{"a": [' + ROW + b"]} x", [1, ("json", 1)]),
        (b"\n".join([PRETTY] * 3), [1, 5, 9]),
        (b"\n\n".join([PRETTY, PRETTY[:20], PRETTY]), [1, ("json", 6), 9]),
    ],
)
def test_documents_to_the_letter(tmp_path, data, expected):
    assert outline(read(tmp_path / "a.json", data)) == expected


def test_rows_on_one_line_have_addresses_of_their_own(tmp_path):
    data = b"[" + ROW + b", 7,\n" + ROW + b",\n" + ROW + b"," + ROW + b"]"
    found = read(tmp_path / "a.json", data)
    where = [r.origin("a.json") if isinstance(r, Record) else r.where for r in found]
    assert where[0] == "a.json:#1" and where[1].endswith("a.json:#2")
    assert where[2:] == ["a.json:2", "a.json:3#4", "a.json:3#5"]
    assert place_of("a:b.json:3#5") == ("a:b.json", 3, 5)
    assert place_of("a.json:#17") == ("a.json", 1, 17) and place_of("none") == ("none", 0, None)
    fault = fault_at("a.json:#17", "code", "message")
    assert (fault.line, fault.row, fault.where) == (1, 17, "a.json:#17")


def test_pretty_objects_are_rows_in_a_file_of_lines_too(tmp_path):
    assert outline(read(tmp_path / "a.jsonl", b"\n".join([PRETTY] * 3))) == [1, 5, 9]


def test_what_is_lost_is_said(tmp_path):
    *_, fault = read(tmp_path / "a.json", b"[" + ROW + b', {"question": "q, "b": [' + b"x" * 5000)
    assert fault.code == "json" and "the last 5,0" in fault.message
    other = b'{"title": "t", "body": "b"}, ' * 1000
    data = b"[" + ROW + b', {"question": tru}, ' + other + ROW + b"]"
    _, fault, last = read(tmp_path / "a.json", data)
    assert "the next 29,0" in fault.message and isinstance(last, Record)


def test_an_element_that_is_far_too_long_is_one_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "CHUNK_BYTES", 512)
    monkeypatch.setattr(streams, "MAX_ROW_BYTES", 100_000)
    long = b'{"question": "' + b"x" * 500_000 + b'", "answer": "a"}'
    for sep in (b",\n", b", "):
        found = read(tmp_path / "a.json", b"[\n  " + sep.join([ROW, long, ROW, ROW]) + b"\n]")
        assert [r.code for r in found if isinstance(r, Fault)] == ["row-size"]
        assert sum(isinstance(r, Record) for r in found) == 3


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson"])
@pytest.mark.parametrize("first", [b'["question": "q"}', b"[", b'[1, "x"]', b"{", b"[[", b"]["])
@pytest.mark.parametrize("last", [ROW, b"x", b"{"])
def test_a_damaged_first_line_does_not_turn_lines_into_an_array(tmp_path, name, first, last):
    found = read(tmp_path / name, b"\n".join([first, ROW, ROW, b"", ROW, last]))
    assert len(found) == 5 and outline(found)[1:4] == [2, 3, 5]


def test_a_first_row_on_two_lines_is_two_faults_of_a_file_of_lines(tmp_path):
    found = read(tmp_path / "a.jsonl", b"\n".join([ROW.replace(b" ", b"\n", 1), *[ROW] * 5, b"x"]))
    assert outline(found) == [("json", 1), ("json", 2), 3, 4, 5, 6, 7, ("json", 8)]


def test_lists_line_by_line_are_lines(tmp_path):
    messages = b'[{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]\n'
    found = read(tmp_path / "a.jsonl", messages * 3)
    assert [f.code for f in found] == ["not-an-object"] * 3


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a"])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("is_ascii", [True, False])
def test_an_array_of_many_chunks_is_one_under_any_name(
    tmp_path, monkeypatch, name, indent, is_ascii
):
    monkeypatch.setattr(streams, "CHUNK_BYTES", 4096)
    random_ = random.Random(3)
    rows = [
        {"id": n, "text": "".join(random_.choices('{}[]",:\\ \nabé', k=random_.randrange(300)))}
        for n in range(600)
    ]
    data = json.dumps(rows, indent=indent, ensure_ascii=is_ascii).encode()
    assert [r.value for r in read(tmp_path / name, data)] == rows
