"""The door: what is no file, no JSON or not as declared is one line, and costs nothing."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.json_files import (
    canonical,
    parse_object,
    plain,
    read_bytes,
    read_object,
    read_record,
    to_record,
    write_object,
)


@dataclass(frozen=True)
class Parameters:
    rank: int
    scale: float
    keys: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Config:
    num_layers: int
    lora_parameters: Parameters
    kind: Literal["lora", "dora"] = "lora"
    rest: dict[str, Any] = field(default_factory=dict)


GOOD = {"num_layers": 2, "lora_parameters": {"rank": 8, "scale": 2}, "other": 1}


def told(data: Any, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        to_record(data, Config, where="config.json", error=ModelError, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_a_record_is_what_was_declared(tmp_path: Path) -> None:
    write_object(tmp_path / "config.json", GOOD | {"kind": "dora"})
    read = read_record(tmp_path / "config.json", Config, error=ModelError)
    assert read == Config(2, Parameters(8, 2.0), "dora")
    assert to_record(plain(read), Config, where=None, error=ModelError) == read


def test_every_fault_is_named_by_its_path_in_one_line() -> None:
    parameters = {"rank": "8", "scale": True, "keys": ["a", 3], "rnak": 1}
    line = told({"kind": "x", "lora_parameters": parameters, "oter": 1}, unknown="refuse")
    for part in (
        "config.json: num_layers: is missing",
        'lora_parameters.rank: a whole number is needed, not "8"',
        "lora_parameters.scale: a number is needed, not true",
        "lora_parameters.keys[1]: a text is needed, not 3",
        "lora_parameters.rnak: unknown key (did you mean rank?)",
        "kind: 'lora' or 'dora' is needed, not \"x\"",
        "oter: unknown key",
    ):
        assert part in line
    parameters = {"rank": 1, "scale": 1, "keys": list(range(5000))}
    line = told({"num_layers": 1, "lora_parameters": parameters})
    assert len(line) < 700 and line.endswith("and 4992 more")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"[1]", "is not a JSON object"),
        (b"null", "is not a JSON object"),
        (b'{"a":', "is not valid JSON"),
        (b"\xff{}", "is not UTF-8 text"),
        (b'{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": 1e999}', "too large a number"),
        (b'{"a": ' + b"9" * 400 + b"}", "too large a number"),
        (b'{"a": "\\ud800"}', "is not UTF-8 text"),
        (b'{"a": ' * 150 + b"1" + b"}" * 150, "more than 100 levels deep"),
        (b"[" * 200_000, "more than 100 levels deep"),
    ],
)
def test_what_is_no_json_object_is_refused(text: bytes, says: str) -> None:
    with pytest.raises(ModelError, match=r"x\.json: ") as caught:
        parse_object(text, where="x.json", error=ModelError)
    assert says in str(caught.value)


def test_numbers_that_libraries_write_pass() -> None:
    text = b'{"model_max_length": 1000000000000000019884624838656}'
    assert parse_object(text, where=None, error=ModelError)["model_max_length"] == int(1e30)
    text = b'{"time_step_limit": [0.0, Infinity]}'
    assert parse_object(text, where=None, error=ModelError, non_finite=True)
    assert plain({"a": float("inf"), "b": (1, Path("x"))}) == {"a": None, "b": [1, "x"]}
    assert canonical({"b": 1, "a": "ü"}) == '{"a":"ü","b":1}'.encode()


def test_only_regular_files_are_read_and_no_time_is_lost(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        started = time.monotonic()
        for path in (tmp_path / "fifo", tmp_path / "socket", Path("/dev/zero"), tmp_path):
            with pytest.raises(Exception, match=r"not a file|is a directory|No such device"):
                read_object(path, error=ModelError)
        assert time.monotonic() - started < 5
    (tmp_path / "big").write_bytes(b" " * 2000)
    with pytest.raises(ModelError, match="larger than 1,000 bytes"):
        read_bytes(tmp_path / "big", error=ModelError, limit_bytes=1000)
