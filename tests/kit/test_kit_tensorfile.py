"""Safetensors: at least as strict as the reference implementation, and readable by it."""

import json
import struct

import pytest
import safetensors

from mlx_itune.kit.errors import ModelError, StorageError
from mlx_itune.kit.tensorfile import read_header, write_tensors


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def write_raw(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def reference_accepts(path):
    try:
        with safetensors.safe_open(path, "np") as file:
            list(file.keys())
    except (safetensors.SafetensorError, OSError):
        return False
    return True


HOSTILE = {
    "empty file": None,
    "empty header": (b"", b""),
    "not JSON": (b"{nope", b""),
    "not an object": (b"[]", b""),
    "not UTF-8": (b'{"\xff": 1}', b""),
    "unknown dtype": ({"a": entry("F128")}, b"1234"),
    "bytes disagree with the shape": ({"a": entry(shape=(2,))}, b"1234"),
    "end before start": ({"a": entry(offsets=(4, 0))}, b"1234"),
    "gap": ({"a": entry(), "b": entry(offsets=(8, 12))}, b"x" * 12),
    "overlap": ({"a": entry(), "b": entry(offsets=(2, 6))}, b"x" * 6),
    "shared bytes": ({"a": entry(), "b": entry()}, b"x" * 4),
    "truncated data": ({"a": entry()}, b"123"),
    "overflowing shape": ({"a": entry(shape=(2**33, 2**33), offsets=(0, 0))}, b""),
    "negative size": ({"a": entry(shape=(-1,), offsets=(0, 0))}, b""),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b""),
    "deep nesting": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b""),
    "longer than allowed": (b"{}", b"", 100_000_001),
    "longer than the file": (b"{}", b"", 500),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_are_refused_here_and_by_the_reference(tmp_path, case):
    path = tmp_path / "a.safetensors"
    if HOSTILE[case] is None:
        path.write_bytes(b"")
    else:
        write_raw(path, *HOSTILE[case])
    with pytest.raises(ModelError, match=r"a\.safetensors: not a valid safetensors file"):
        read_header(path)
    assert not reference_accepts(path)


ENTRY = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


@pytest.mark.parametrize(
    "header",
    [
        b"{%s,%s}" % (ENTRY, ENTRY.replace(b"F", b"I")),
        b"{%s}" % ENTRY.replace(b"a", rb"\ud800", 1),
        b" {%s}" % ENTRY,
    ],
)
def test_what_the_format_forbids_is_refused_where_the_reference_is_lenient(tmp_path, header):
    with pytest.raises(ModelError):
        read_header(write_raw(tmp_path / "a.safetensors", header, b"1234"))


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({}, b""),
        ({"__metadata__": {"format": "mlx"}}, b""),
        ({"__metadata__": None}, b""),
        ({"a": entry(shape=(), offsets=(0, 4))}, b"1234"),
        ({"a": entry(shape=(0, 5), offsets=(0, 0))}, b""),
        ({"b": entry("U8", (3,), (0, 3)), "a": entry("BF16", (1,), (3, 5))}, b"12345"),
        (json.dumps({"a": entry()}).encode() + b"     ", b"1234"),
    ],
)
def test_unusual_but_valid_files_are_read_as_the_reference_reads_them(tmp_path, header, data):
    path = write_raw(tmp_path / "a.safetensors", header, data)
    assert reference_accepts(path)
    found = read_header(path)
    with safetensors.safe_open(path, "np") as file:
        assert set(found) == set(file.keys())
    raw = path.read_bytes()
    assert sum(info.end - info.start for info in found.values()) == len(data)
    assert b"".join(raw[info.start : info.end] for info in found.values()) == data


def test_the_reference_reads_what_is_written_in_one_order(tmp_path):
    two, three = (tmp_path / f"{n}.safetensors" for n in (2, 3))
    tensors = {"z": ("F32", (2,), struct.pack("<2f", 1, 2)), "a": ("U8", (3,), b"\x01\x02\x03")}
    write_tensors(two, tensors, {"k": "v"})
    write_tensors(three, dict(reversed(tensors.items())), {"k": "v"})
    assert two.read_bytes() == three.read_bytes()
    with safetensors.safe_open(two, "np") as file:
        assert file.metadata() == {"k": "v"}
        assert file.get_tensor("z").tolist() == [1.0, 2.0]
        assert file.get_tensor("a").tolist() == [1, 2, 3]


def test_what_does_not_fit_or_is_missing_is_told(tmp_path):
    for bad in (("F32", (2,), b"1234"), ("F99", (1,), b"1234")):
        with pytest.raises(ValueError, match="F"):
            write_tensors(tmp_path / "a.safetensors", {"a": bad})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError, match="No such file"):
        read_header(tmp_path / "a.safetensors")
