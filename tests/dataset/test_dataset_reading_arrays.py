"""JSON documents: arrays of rows, objects around them, rows one after the other, and damage."""

import json
import random

import pytest
from data_command import outline

from mlx_itune.dataset.conversation import Fault, fault_at, place_of
from mlx_itune.dataset.reading import Record
from mlx_itune.dataset.reading import stream as streams

ROW = b'{"question": "q", "answer": "a"}'
PRETTY = b'{\n  "question": "q",\n  "answer": "a"\n}'


def addresses(found):
    return [r.origin("a.json") if isinstance(r, Record) else r.where for r in found]


@pytest.mark.parametrize("sep", [b",", b", ", b",\n", b",\n  ", b",\r\n\t"])
@pytest.mark.parametrize(
    "broken",
    [
        b'{"question": "q", "answer": }', b'{"question": "q", "answer": "a}',
        b'{"question": "q, "answer": "a"}', b'{"question": "q", "answer": "a"',
        b'{"question": "q", "answer": ["a"}', b'{"question": "q", "answer": {"a": 1}',
        b'{"question": "\xff", "answer": "a"}', b'{"question": "\x00", "answer": "a"}',
        b'{"question": NaN, "answer": "a"}', b'{"question": "q", "question": "a"}',
        b'"question": "q", "answer": "a"}', b'"text, with {brackets]"', b"[1, [2]]", b"null",
        b"tru",
    ],
)  # fmt: skip
def test_a_broken_element_spoils_no_other(read, sep, broken):
    found = read("a.json", b"[" + sep[1:] + sep.join([ROW, ROW, broken, ROW, ROW]) + b"]")
    records = [r for r in found if isinstance(r, Record)]
    assert [r.value for r in records] == [{"question": "q", "answer": "a"}] * 4, found
    assert any(isinstance(r, Fault) for r in found)


def without(marks):
    def damaged(row, random_):
        at = random_.choice([n for n, byte in enumerate(row) if byte in marks])
        return row[:at] + row[at + 1 :]

    return damaged


def strewn(row, random_):
    at = random_.randrange(1, len(row))
    return row[:at] + b"\x01" + row[at:]


DAMAGE = {
    "cut": lambda row, random_: row[: random_.randrange(1, len(row) - 1)],
    "unclosed": lambda row, _: row.removesuffix(b"]}").removesuffix(b"}"),
    "unquoted": without(b'"'),
    "unbraced": without(b"{}"),
    "strewn": strewn,
}
SHAPES = {
    "lines": (b"[\n", b",\n", b"\n]"),
    "one line": (b"[", b", ", b"]"),
    "indented": (b"[\n  ", b",\n  ", b"\n]"),
    "wrapped": (b'{"version": 1, "data": [', b",", b"]}"),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_of_2000_rows_60_are_damaged_and_1940_found(read, shape, damage):
    random_ = random.Random(5)
    words = 'one {two} [three] "four" five, é:\n'.split(" ")

    def message(role):
        words_here = random_.choices(words, k=random_.randint(1, 20))
        return {"role": role, "content": " ".join(words_here)}

    rows = [{"messages": [message("user"), message("assistant")]} for _ in range(2000)]
    broken = {*random_.sample(range(2000), 60)}
    indent = 2 if shape == "indented" else None
    parts = [json.dumps(row, indent=indent).replace("\n", "\n  ").encode() for row in rows]
    parts = [DAMAGE[damage](p, random_) if n in broken else p for n, p in enumerate(parts)]
    start, sep, end = SHAPES[shape]
    found = read("a.json", start + sep.join(parts) + end)
    good = [json.dumps(r.value) for r in found if isinstance(r, Record)]
    wanted = [json.dumps(row) for n, row in enumerate(rows) if n not in broken]
    assert not {*wanted} - {*good}
    # Two damaged rows side by side may be one fault; what is lost in a text may be a row still.
    assert len(found) >= 1998 and len(good) <= 2000
    assert len({*addresses(found)}) == len(found)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"[\n]\n", []),
        (b"[" + ROW + b",]", [1]),
        (b"[" + ROW, [1, ("json", 1)]),
        (b"[", [("json", 1)]),
        (b"[" + ROW + b",,\n" + ROW + b"]", [1, ("json", 1), 2]),
        (b"[" + ROW + b"}, " + ROW + b"]", [1, ("json", 1), 1]),
        (b"[\n" + ROW + b"\n" + ROW + b",\n" + ROW + b"]", [2, ("json", 3), 4]),
        (b"[" + ROW + b"]\n" + b"x", [1, ("json", 2)]),
        (b"[\n" + ROW + b"],\n" + ROW + b",\n" + ROW + b"]", [2, ("json", 2), 3, 4]),
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
def test_documents_to_the_letter(read, data, expected):
    assert outline(read("a.json", data)) == expected


def test_rows_on_one_line_have_addresses_of_their_own(read, tmp_path):
    found = read("a.json", b"[" + ROW + b", 7,\n" + ROW + b",\n" + ROW + b"," + ROW + b"]")
    second = f"{tmp_path}/a.json:#2"
    assert addresses(found) == ["a.json:#1", second, "a.json:2", "a.json:3#4", "a.json:3#5"]
    assert place_of("a:b.json:3#5") == ("a:b.json", 3, 5)
    assert place_of("none") == ("none", 0, None)
    fault = fault_at("a.json:#17", "code", "message")
    assert (fault.line, fault.row, fault.where) == (1, 17, "a.json:#17")


def test_what_is_lost_is_said(read):
    *_, fault = read("a.json", b"[" + ROW + b', {"question": "q, "b": [' + b"x" * 5000)
    assert fault.code == "json" and "the last 5,0" in fault.message
    other = b'{"title": "t", "body": "b"}, ' * 1000
    _, fault, last = read("a.json", b"[" + ROW + b', {"question": tru}, ' + other + ROW + b"]")
    assert "the next 29,0" in fault.message and isinstance(last, Record)


@pytest.mark.parametrize("sep", [b",\n", b", "])
def test_an_element_that_is_far_too_long_is_one_fault(read, monkeypatch, sep):
    monkeypatch.setattr(streams, "CHUNK_BYTES", 512)
    monkeypatch.setattr(streams, "MAX_ROW_BYTES", 100_000)
    long = b'{"question": "' + b"x" * 500_000 + b'", "answer": "a"}'
    found = read("a.json", b"[\n  " + sep.join([ROW, long, ROW, ROW]) + b"\n]")
    assert [getattr(r, "code", "") for r in found] == ["", "row-size", "", ""]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson"])
@pytest.mark.parametrize("first", [b'["question": "q"}', b"[", b'[1, "x"]', b"{", b"[[", b"]["])
def test_a_damaged_first_line_does_not_turn_lines_into_an_array(read, name, first):
    for last in (ROW, b"x", b"{"):
        found = read(name, b"\n".join([first, ROW, ROW, b"", ROW, last]))
        assert len(found) == 5 and outline(found)[1:4] == [2, 3, 5]


def test_lines_and_documents_are_told_apart_in_a_file_of_lines(read):
    assert outline(read("a.jsonl", b"\n".join([PRETTY] * 3))) == [1, 5, 9]
    found = read("a.jsonl", b"\n".join([ROW.replace(b" ", b"\n", 1), *[ROW] * 5, b"x"]))
    assert outline(found) == [("json", 1), ("json", 2), 3, 4, 5, 6, 7, ("json", 8)]
    lists = read(
        "a.jsonl", b'[{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]\n' * 3
    )
    assert [f.code for f in lists] == ["not-an-object"] * 3


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a"])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("is_ascii", [True, False])
def test_an_array_of_many_chunks_is_one_under_any_name(read, monkeypatch, name, indent, is_ascii):
    monkeypatch.setattr(streams, "CHUNK_BYTES", 4096)
    random_ = random.Random(3)
    rows = [
        {"id": n, "text": "".join(random_.choices('{}[]",:\\ \nabé', k=random_.randrange(300)))}
        for n in range(600)
    ]
    data = json.dumps(rows, indent=indent, ensure_ascii=is_ascii)
    assert [r.value for r in read(name, data)] == rows
