"""The text of an answer: whole characters, up to a stop; words, reasoning and calls told apart."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mlx_itune.model  # noqa: F401  (loads the BLAS before mlx.core)
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer, load_tokenizer
from mlx_itune.inference.openai_request import Desk, Refusal, Served
from mlx_itune.model.serving.reply import Reply, TextStream

CALL = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'


@pytest.fixture
def family() -> Any:
    from mlx_lm.tool_parsers import json_tools

    return SimpleNamespace(
        has_thinking=True,
        think_start="<think>",
        think_end="</think>",
        rfind_think_start=lambda ids: 1 if 7 in ids else -1,
        rfind_think_end=lambda ids: -1,
        has_tool_calling=True,
        tool_call_start="<tool_call>",
        tool_call_end="</tool_call>",
        tool_parser=json_tools.parse_tool_call,
        structural_markers=(),
        response_transitions={},
        response_initial_state=None,
    )


def told(family: Any, text: str, prompt: tuple[int, ...] = (1,)) -> dict[str, Any]:
    """All that a reply says, letter by letter."""
    reply, said = Reply(family, prompt, []), dict[str, Any]()
    for n, letter in enumerate(text, 1):
        for key, value in reply.push(letter, is_last=n == len(text)).items():
            said[key] = said[key] + value if key in said else value
    for n, call in enumerate(said.get("tool_calls", [])):
        assert (call.pop("index"), call.pop("type")) == (n, "function")
        assert call.pop("id")
    return said


def test_words_reasoning_and_calls_are_told_apart(family: Any) -> None:
    call = {"function": {"name": "f", "arguments": '{"x": 1}'}}
    assert told(family, "plain <b>words</b> <") == {"content": "plain <b>words</b> <"}
    assert told(family, f"<think>so</think>Yes{CALL}") == {
        "reasoning_content": "so", "content": "Yes", "tool_calls": [call]
    }  # fmt: skip
    assert told(family, CALL + CALL)["tool_calls"] == [call, call]
    # A prompt that opens the thought.
    assert told(family, "so</think>Yes", (1, 7)) == {"reasoning_content": "so", "content": "Yes"}
    # What only looks like a call is not lost.
    assert told(family, "<tool_call>{no</tool_call>")["content"] == "{no"


def test_a_panic_under_a_request_is_a_500_of_that_request(family: Any) -> None:
    class PanicException(BaseException):
        """As Rust under Python raises it."""

    def encode_ids(text: str) -> list[int]:
        raise PanicException("index out of bounds")

    tokenizer: Any = SimpleNamespace(text_start="", encode_ids=encode_ids, stop_strings=())
    desk = Desk({"a": Served(None, tokenizer, family)}, {}, {}, 10)
    with pytest.raises(Refusal, match="index out of bounds") as refused:
        desk.read(b'{"prompt": "x"}', is_chat=False)
    assert refused.value.status == 500


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
    for n, token in enumerate(ids, 1):
        piece, finish = stream.take(token, "length" if n == len(ids) else None)
        found.append(piece)
        if finish:
            break
    return found


def test_pieces_are_whole_characters_and_add_up(tokenizer: ChatTokenizer) -> None:
    for text in TEXTS:
        got = pieces(tokenizer, tokenizer.encode_ids(text))
        assert "".join(got) == text
        assert "\ufffd" in text or not any("\ufffd" in piece for piece in got)
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
