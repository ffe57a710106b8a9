"""JSON text: strict, and the same whether the short cut is taken or not."""

import json
import random

import orjson
import pytest

from mlx_itune.dataset.faults import RowFault
from mlx_itune.dataset.reading.json_text import MAX_DEPTH, are_exact, parse, strict


@pytest.mark.parametrize(
    ("raw", "code", "said"),
    [
        (b'{"a": 1, "a": 2}', "duplicate-key", "'a'"),
        (b'{"a":1,"\\u0061":2}', "duplicate-key", "'a'"),
        (b'{"a" : 1, "a"\t: 2}', "duplicate-key", "'a'"),
        (b'{"x": {"a:": 1, "a:": 2}}', "duplicate-key", "'a:'"),
        (b'{"a\\\\":1,"b":2,"b":3}', "duplicate-key", "'b'"),
        (b'{"a": 1, "a": "\\u003a\\u003A"}', "duplicate-key", "'a'"),
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
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "json", "nested too deeply"),
        (b'{"a":' * 3000 + b"1" + b"}" * 3000, "json", "nested too deeply"),
    ],
)
def test_strict_json_refuses_and_says_where(raw, code, said):
    with pytest.raises(RowFault) as caught:
        parse(raw, 100)
    assert caught.value.code == code and said in caught.value.message


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a": ":smile:", "b": " : "}',
        b'{"a": "{\\"k\\": 1}", "b" : "x"}',
        b'{"a": 123456789012345678901234567890}',
        b'{"a": {"b": [123456789012345678901234567890, -1.5e3]}}',
        b'{"messages": [{"role": "user", "arguments": {"n": 123456789012345678901234567890}}]}',
        b'{"a": "\\ud83d\\ude00 \\u003a", "a\\u003a": "\\u003A"}',
        b'{"": {"": {"": ""}}}',
        b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
        b' \t\r\n{"a": "\\\\u0000"} ',
        '{"é à": "\u2028 ü: \U0001f600"}'.encode(),
    ],
)
def test_the_short_cut_gives_what_the_strict_decoder_gives(raw):
    assert parse(raw) == strict(raw)
    assert json.dumps(parse(raw)) == json.dumps(strict(raw))


def test_the_short_cut_agrees_on_thousands_of_mutations():
    random_ = random.Random(7)
    seeds = [
        b'{"a": "x: y", "b": [1, 2.5, {"c": null}], "a:": "\\u003a\\"\\\\"}',
        b'{"messages": [{"role": "user", "content": "\\ud83d\\ude00"}], "n": 12345678901234567890}',
    ]
    bits = [b'"a"', b":", b'"a": 1, ', b"\\u003a", b'\\"', b" ", b"\\", b"9" * 20, b"{", b"}", b","]
    for _ in range(20_000):
        raw = bytearray(random_.choice(seeds))
        for _ in range(random_.randint(1, 3)):
            at = random_.randrange(len(raw))
            if random_.random() < 0.5:
                raw[at : at + random_.randint(0, 2)] = random_.choice(bits)
            else:
                raw[at] = random_.randrange(256)
        outcomes = []
        for way in (parse, strict):
            try:
                outcomes.append(json.dumps(way(bytes(raw))))
            except RowFault as fault:
                outcomes.append(fault.code)
        assert outcomes[0] == outcomes[1], bytes(raw)
        vouched = vouch(bytes(raw))
        assert not vouched or outcomes[1] == json.dumps(orjson.loads(raw)), bytes(raw)


def vouch(raw):
    """Whether the check of whole blocks finds nothing wrong with the text among others."""
    good = b'{"a": "b: c", "n": 1}'
    try:
        return are_exact(b"\n".join([good, raw, good]), [*map(orjson.loads, [good, raw, good])])
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        return False


def test_blocks_of_good_rows_are_vouched_for_and_of_bad_ones_are_not():
    long = b"1" * 18
    for raw in (b'{"a": "x", "b": [1.5, "\\n\\u00e9 : "]}', b'{"id": ' + long + b"}"):
        assert vouch(raw), raw
    for raw in (
        b'{"a": 1, "a": 2}',
        b'{"a": 1, "a": 2, "b": "\\u003a"}',
        b'{"a": "\\u0000"}',
        b'{"id": ' + long + b"00}",
        b'{"a": [{"b": [-' + long + b"00]}]}",
    ):
        assert not vouch(raw), raw
    for shift in range(16):
        assert not vouch(b'{"' + b"k" * shift + b'": 18446744073709551616}')
