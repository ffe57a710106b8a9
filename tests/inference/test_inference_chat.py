"""A conversation: what is in the cache is not computed again, and the answers stay the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer, load_tokenizer
from mlx_itune.inference.generate import ChatSession, Generator
from mlx_itune.kit.errors import DataError
from mlx_itune.model.loading.base import LoadedModel, load
from mlx_itune.model.serving.engine import Drawing

SAID = ("Hi, who are you?", "The patient takes metformin.", "And zolpidem?", "yes")


@pytest.fixture(scope="module")
def opened(tiny_model_dir: Path) -> tuple[LoadedModel, ChatTokenizer]:
    return load(str(tiny_model_dir)), load_tokenizer(tiny_model_dir)


def session(opened: tuple[LoadedModel, ChatTokenizer], **options: object) -> ChatSession:
    return ChatSession(*opened, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("drawing", [Drawing(), Drawing(0.9, top_k=20, repetition_penalty=1.2)])
def test_turns_are_those_of_a_fresh_start(
    opened: tuple[LoadedModel, ChatTokenizer], drawing: Drawing
) -> None:
    loaded, tokenizer = opened
    chat = session(opened, system="Be brief.", max_tokens=12, drawing=drawing)
    before = 0
    for n, text in enumerate(SAID):
        answer = "".join(chat.say(text))
        asked = chat.turns[:-1] if answer.strip() else chat.turns
        seed = Drawing(**{**vars(drawing), "seed": len(asked)})
        prompt = tokenizer.prompt_ids(asked)
        alone = Generator(loaded, tokenizer).stream(prompt, max_tokens=12, drawing=seed)
        assert "".join(alone) == answer
        assert chat.last is not None
        if n:
            # All of the last prompt, and more, was there already.
            assert chat.last.cached_tokens >= before
        before = len(prompt) - 1


def test_an_answer_broken_off_leaves_the_next_one_right(
    opened: tuple[LoadedModel, ChatTokenizer],
) -> None:
    chat = session(opened, max_tokens=30)
    "".join(chat.say(SAID[0]))
    pieces = chat.say(SAID[1])
    kept = next(pieces) + next(pieces)
    pieces.close()
    assert chat.turns[-1].content == kept
    answer = "".join(chat.say(SAID[2]))
    prompt = opened[1].prompt_ids(chat.turns[:-1])
    assert answer == "".join(Generator(*opened).stream(prompt, max_tokens=30))


def test_reset_and_system(opened: tuple[LoadedModel, ChatTokenizer]) -> None:
    chat = session(opened, system="One.", max_tokens=4)
    "".join(chat.say("Hi"))
    chat.reset()
    assert [turn.content for turn in chat.turns] == ["One."]
    chat.reset("Two.")
    assert [turn.content for turn in chat.turns] == ["Two."]
    chat.reset("")
    assert chat.turns == []


def test_a_conversation_that_is_too_long_says_so_and_stays(
    opened: tuple[LoadedModel, ChatTokenizer],
) -> None:
    chat = session(opened, max_tokens=4)
    "".join(chat.say("Hi"))
    turns = list(chat.turns)
    with pytest.raises(DataError, match="context is 2,048"):
        "".join(chat.say("word " * 3000))
    assert chat.turns == turns
    # An answer ends where the context does.
    long = session(opened, max_tokens=10**6)
    room = 2048 - len(opened[1].prompt_ids([])) - 30
    "".join(long.say("a" * (room // 2)))
    assert long.last is not None
    assert long.last.completion_tokens <= 2048
