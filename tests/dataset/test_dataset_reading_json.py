"""JSON text: strict, and the same whether the short cut of whole blocks is taken or not."""

import json
import random

import pytest

from mlx_itune.dataset.faults import RowFault
from mlx_itune.dataset.reading import Record, read_records
from mlx_itune.dataset.reading.strict_json import MAX_DEPTH, StrictDecoder

GOOD = b'{"a": "b: c", "n": 1}'


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
        (b"\xef\xbb\xbf{}", "bom", "byte order mark"),
        (b"[" * 100_000, "json", "nested too deeply"),
        (deep(MAX_DEPTH + 1), "json", "nested too deeply"),
        (b'{"a":' * 3000 + b"1" + b"}" * 3000, "json", "nested too deeply"),
    ],
)
def test_strict_json_refuses_and_says_where(tmp_path, raw, code, said):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([b" " * 99, raw, GOOD]))
    fault, good = read_records(path)
    assert (fault.code, fault.line) == (code, 2) and said in fault.message
    assert good.value == {"a": "b: c", "n": 1}


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a": ":smile:", "b": " : "}',
        b'{"a": "{\\"k\\": 1}", "b" : "x"}',
        b'{"a": 123456789012345678901234567890, "b": [18446744073709551616, -1.5e3]}',
        b'{"a": "\\ud83d\\ude00 \\u003a", "a\\u003a": "\\u003A"}',
        b'{"": {"": {"": ""}}}',
        deep(MAX_DEPTH),
        b' \t\r{"a": "\\\\u0000"} ',
        '{"é à": "\u2028 ü: \U0001f600"}'.encode(),
    ],
)
def test_what_is_unusual_and_right_is_read(tmp_path, raw):
    path = tmp_path / "a.jsonl"
    path.write_bytes(raw)
    assert [record.value for record in read_records(path)] == [json.loads(raw)]


def test_the_short_cut_agrees_on_thousands_of_mutations(tmp_path):
    random_ = random.Random(7)
    seeds = [
        b'{"a": "x: y", "b": [1, 2.5, {"c": null}], "a:": "\\u003a\\"\\\\"}',
        b'{"messages": [{"role": "user", "content": "\\ud83d\\ude00"}], "n": 12345678901234567890}',
    ]
    bits = [b'"a"', b":", b'"a": 1, ', b"\\u003a", b'\\"', b" ", b"\\", b"9" * 20, b"{", b"}", b","]
    path, strict = tmp_path / "a.jsonl", StrictDecoder()
    accepted = 0
    for _ in range(2_000):
        raw = bytearray(random_.choice(seeds))
        for _ in range(random_.randint(1, 3)):
            at = random_.randrange(len(raw))
            if random_.random() < 0.5:
                raw[at : at + random_.randint(0, 2)] = random_.choice(bits)
            else:
                raw[at] = random_.randrange(256)
        raw = bytes(raw).replace(b"\n", b" ")
        path.write_bytes(b"\n".join([GOOD, raw, GOOD]))
        _, found, _ = read_records(path)
        try:
            wanted = json.dumps(strict.row(raw, 0))
        except RowFault as fault:
            wanted = fault.code
        is_row = isinstance(found, Record)
        assert (json.dumps(found.value) if is_row else found.code) == wanted, raw
        accepted += is_row
    assert 80 < accepted < 1800
