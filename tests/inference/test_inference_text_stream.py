"""Pieces of a stream are whole characters, stop before a stop string, and add up to the text."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer, load_tokenizer
from mlx_itune.model.serving.reply import TextStream

TEXTS = (
    "Plain words.",
    "  two spaces, 用药 🙂🙂 e\u0301 👩‍⚕️ Ärzte\n\n\ttab ",
    "🙂" * 200,
    "a\ufffdb" * 90,
    "word " * 300,
)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> ChatTokenizer:
    return load_tokenizer(tiny_model_dir)


def pieces(tokenizer: ChatTokenizer, ids: list[int], stops: tuple[str, ...] = ()) -> list[str]:
    stream, found = TextStream(tokenizer.decode, stops), []
    for token in ids:
        found.append(stream.push(token))
        if stream.ended:
            return found
    return [*found, stream.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_whole_characters_and_add_up(tokenizer: ChatTokenizer, text: str) -> None:
    got = pieces(tokenizer, tokenizer.encode_ids(text))
    assert "".join(got) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in got)


def test_random_tokens_read_as_the_whole_does(tokenizer: ChatTokenizer) -> None:
    draw = random.Random(0)
    for _ in range(20):
        ids = [draw.randrange(len(tokenizer.hf)) for _ in range(400)]
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_stop_string_is_found_at_any_place(tokenizer: ChatTokenizer) -> None:
    text = TEXTS[1] + TEXTS[0]
    ids = tokenizer.encode_ids(text)
    for start in range(len(text) - 2):
        stop = text[start : start + 2]
        wanted = text[: text.index(stop)]
        assert "".join(pieces(tokenizer, ids, (stop, "never"))) == wanted
    # The earliest of several ends the text; one that never comes whole cuts nothing.
    assert "".join(pieces(tokenizer, ids, ("words", "lain"))) == TEXTS[1] + "P"
    assert "".join(pieces(tokenizer, ids, ("words.!",))) == text
