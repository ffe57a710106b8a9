"""Batched answers are those of each prompt alone; a conversation's those of a fresh start."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mlx_itune.model  # noqa: F401  (loads the BLAS before mlx.core)

import mlx.core as mx  # isort: skip

from mlx_itune.dataset.conversation import Turn
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer, load_tokenizer
from mlx_itune.inference.generate import ChatSession, Generator
from mlx_itune.kit.errors import DataError, ModelError
from mlx_itune.model.loading.base import LoadedModel, load
from mlx_itune.model.serving.engine import Drawing, Engine
from tests.model.architectures import ARCHITECTURES, build

SAID = ("Hi, who are you?", "The patient takes metformin.", "And zolpidem?", "yes")
Opened = tuple[LoadedModel, ChatTokenizer]


@pytest.fixture(scope="module")
def opened(tiny_quantized_dir: Path) -> Opened:
    return load(str(tiny_quantized_dir)), load_tokenizer(tiny_quantized_dir)


def prompts(tokenizer: ChatTokenizer) -> list[list[int]]:
    texts = ["Hi", "Extract the drugs. " * 9, "yes?", "x" * 150, "The patient takes metformin."]
    return [tokenizer.prompt_ids([Turn("user", text)]) for text in texts]


def plain_greedy(loaded: LoadedModel, tokenizer: ChatTokenizer, ids: list[int], n: int) -> str:
    """The definition: the whole text through the model for every token, no cache."""
    ids, start = list(ids), len(ids)
    for _ in range(n):
        token = int(mx.argmax(loaded.model(mx.array([ids]))[0, -1]).item())
        if token in tokenizer.eos_ids:
            break
        ids.append(token)
    return tokenizer.decode(ids[start:])


def test_batch_equals_one_by_one_and_the_definition(opened: Opened) -> None:
    loaded, tokenizer = opened
    generator, asked = Generator(loaded, tokenizer), prompts(tokenizer)
    told: list[int] = []
    batched = Generator(loaded, tokenizer, batch_size=2).batch(asked, 20, told.append)
    assert batched == [generator.batch([ids], 20)[0] for ids in asked]
    assert batched == ["".join(generator.stream(ids, max_tokens=20)) for ids in asked]
    assert batched == [plain_greedy(loaded, tokenizer, ids, 20) for ids in asked]
    assert told[-1] == len(asked)
    assert generator.batch([], 20) == []
    with pytest.raises(DataError, match="empty"):
        generator.batch([[1], []], 4)


def test_ends_of_some_do_not_disturb_the_others(opened: Opened) -> None:
    loaded, tokenizer = opened
    full = Generator(loaded, tokenizer).batch(prompts(tokenizer), 12)
    # Any token of the first answer, declared an end, and any text of the second one.
    first, stop = tokenizer.encode_ids(full[0])[2], full[1][4:7]
    early: Any = SimpleNamespace(
        eos_ids=tokenizer.eos_ids | {first}, stop_strings=(stop,), decode=tokenizer.decode
    )
    generator = Generator(loaded, early)
    batched = generator.batch(prompts(tokenizer), 12)
    assert batched == ["".join(generator.stream(ids, max_tokens=12)) for ids in prompts(tokenizer)]
    assert batched[1] == full[1][: full[1].index(stop)]


def session(opened: Opened, **options: object) -> ChatSession:
    return ChatSession(*opened, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("drawing", [Drawing(), Drawing(0.9, top_k=20, repetition_penalty=1.2)])
def test_turns_are_those_of_a_fresh_start(opened: Opened, drawing: Drawing) -> None:
    loaded, tokenizer = opened
    chat = session(opened, max_tokens=12, drawing=drawing)
    chat.reset("Be brief.")
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
            assert chat.last.order.cached_tokens >= before
        before = len(prompt) - 1


def test_an_answer_broken_off_leaves_the_next_one_right(opened: Opened) -> None:
    chat = session(opened, max_tokens=30)
    "".join(chat.say(SAID[0]))
    pieces = chat.say(SAID[1])
    kept = next(pieces) + next(pieces)
    pieces.close()
    assert chat.turns[-1].content == kept
    answer = "".join(chat.say(SAID[2]))
    prompt = opened[1].prompt_ids(chat.turns[:-1])
    assert answer == "".join(Generator(*opened).stream(prompt, max_tokens=30))


def test_an_answer_ends_where_the_context_does(opened: Opened) -> None:
    long = session(opened, max_tokens=10**6)
    room = 2048 - len(opened[1].prompt_ids([])) - 30
    "".join(long.say("a" * (room // 2)))
    assert long.last is not None and long.last.completion_tokens <= 2048
    with pytest.raises(DataError, match="context is 2,048"):
        "".join(long.say("word " * 3000))
    assert len(long.turns) == 2


def generator(model: Any, cached_prompts: int = 0) -> Generator:
    """Tokens as text: each is a character."""
    tokenizer: Any = SimpleNamespace(
        eos_ids=frozenset(), stop_strings=(), decode=lambda ids: "".join(map(chr, ids))
    )
    loaded: Any = SimpleNamespace(model=model)
    return Generator(loaded, tokenizer, cached_prompts=cached_prompts)


@pytest.mark.parametrize("name", [*ARCHITECTURES, "mamba2", "granitemoehybrid"])
def test_kept_caches_and_batches_give_the_answers_of_each_alone(name: str) -> None:
    model = build(name)
    model.eval()
    answers, remembering = generator(model), generator(model, 4)
    text = [7 + (31 * n) % 290 for n in range(40)]
    for _ in range(3):
        answer = "".join(remembering.stream(text, max_tokens=9))
        assert answer == "".join(answers.stream(text, max_tokens=9)), name
        # One token of the answer changes, as when a template rewrites it.
        text = [*text, *map(ord, answer[:-2]), 5, 6, 11]
    texts = [text, *([7 + (31 * n * k) % 290 for n in range(12 * k)] for k in (1, 2, 3))]
    alone = ["".join(answers.stream(each, max_tokens=9)) for each in texts]
    assert answers.batch(texts, 9) == alone
    assert "".join(remembering.stream(text, max_tokens=9)) == alone[0]


@pytest.mark.parametrize("name", ["llama3", "granitemoehybrid", "gemma2", "gemma3_text", "mamba2"])
def test_keys_and_values_are_rounded_or_refused(name: str) -> None:
    model = build(name)
    model.eval()
    if name in ("llama3", "granitemoehybrid"):
        assert Engine(model, kv_bits=8).vocabulary
    else:
        with pytest.raises(ModelError, match="cannot be rounded"):
            Engine(model, kv_bits=8)
