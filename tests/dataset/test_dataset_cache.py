"""Tokenized data: the same from memory, from files and from an earlier run; never a damaged one."""

import json
from pathlib import Path

import chat_templates as t
import numpy as np
import pytest

from mlx_itune.dataset.rendering import prepare as cache
from mlx_itune.dataset.rendering.prepare import prepare, tokenized
from mlx_itune.dataset.sources import load_splits
from mlx_itune.kit.errors import DataError


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLX_ITUNE_CACHE", str(tmp_path / "cache"))
    rows = [
        {"question": f"What is {n}? é", "answer": f"It is {n} " * (n % 5 + 1), "task": f"t{n % 3}"}
        for n in range(60)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert np.array_equal(a.input_ids, b.input_ids) and a.input_ids.dtype == b.input_ids.dtype
        assert np.array_equal(a.weights, b.weights) and a.weights.dtype == b.weights.dtype
        assert (a.origin, dict(a.tags), a.spans) == (b.origin, dict(b.tags), b.spans)


def test_a_second_run_reads_what_the_first_one_made(data, chat, monkeypatch):
    tokenizer = chat("gpt2", t.CHATML)
    splits = load_splits(data)
    first = tokenized(data, tokenizer)
    monkeypatch.setattr(cache, "load_splits", None)  # not asked for any more
    second = tokenized(data, tokenizer)
    assert (first.kept, second.kept) == (False, True)
    assert first.sources == second.sources == splits.sources
    for found in (first, second):
        for part, rows in ((found.train, splits.train), (found.valid, splits.valid)):
            plain = prepare(rows, tokenizer)
            same(part.examples, plain.examples)
            assert part.report == plain.report
    assert len(second.train.examples[2:5]) == 3
    same([second.train.examples[-1]], [first.train.examples[len(first.train.examples) - 1]])
    with pytest.raises(IndexError):
        second.train.examples[10**6]


def test_whatever_tokens_depend_on_makes_them_anew_and_damage_too(data, chat):
    tokenizer = chat("gpt2", t.CHATML)
    whole = [e.input_ids.tolist() for e in tokenized(data, tokenizer).train.examples]
    (ids,) = data.parent.glob("cache/tokenized/*/train/ids.bin")
    for other in (chat("gpt2", t.PHI3), chat("llama3", t.CHATML)):
        assert not tokenized(data, other).kept
    for options in ({"max_length_tokens": 30}, {"learn": "last"}, {"seed": 1}):
        assert not tokenized(data, tokenizer, **options).kept
    assert tokenized(data, tokenizer).kept
    content = bytearray(ids.read_bytes())
    content[9] ^= 1
    ids.write_bytes(content)
    again = tokenized(data, tokenizer)
    assert not again.kept and [e.input_ids.tolist() for e in again.train.examples] == whole
    data.write_text(data.read_text().replace("What", "Who"))
    assert not tokenized(data, tokenizer).kept


@pytest.mark.parametrize("place", ["off", "/proc/no/such/place"])
def test_without_a_place_nothing_is_kept_and_nothing_fails(data, chat, place, monkeypatch):
    monkeypatch.setenv("MLX_ITUNE_CACHE", place)
    tokenizer = chat("gpt2", t.CHATML)
    for _ in range(2):
        found = tokenized(data, tokenizer)
        assert not found.kept and len(found.train.examples) > 50


def test_broken_rows_keep_nothing(data, chat):
    data.write_text(data.read_text() + "{broken\n")
    with pytest.raises(DataError, match="1 of 61 rows"):
        tokenized(data, chat("gpt2", t.CHATML))
    assert not list(data.parent.glob("cache/tokenized/*"))
