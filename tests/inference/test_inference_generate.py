"""Batched answers are the answers each prompt would get alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mlx_itune.model  # noqa: F401  (loads the BLAS before mlx.core)

import mlx.core as mx  # isort: skip

from mlx_itune.dataset.conversation import Turn
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer, load_tokenizer
from mlx_itune.inference.generate import Generator
from mlx_itune.kit.errors import DataError
from mlx_itune.model.loading.base import LoadedModel, load
from mlx_itune.model.serving.engine import Drawing


@pytest.fixture(scope="module")
def opened(tiny_quantized_dir: Path) -> tuple[LoadedModel, ChatTokenizer]:
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


def test_batch_equals_one_by_one_and_the_definition(
    opened: tuple[LoadedModel, ChatTokenizer],
) -> None:
    loaded, tokenizer = opened
    generator, asked = Generator(loaded, tokenizer), prompts(tokenizer)
    told: list[int] = []
    batched = Generator(loaded, tokenizer, batch_size=2).batch(asked, 20, told.append)
    assert batched == [generator.batch([ids], 20)[0] for ids in asked]
    assert batched == ["".join(generator.stream(ids, max_tokens=20)) for ids in asked]
    assert batched == [plain_greedy(loaded, tokenizer, ids, 20) for ids in asked]
    assert told[-1] == len(asked)
    assert generator.batch([], 20) == []


def test_ends_of_some_do_not_disturb_the_others(
    opened: tuple[LoadedModel, ChatTokenizer],
) -> None:
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


def test_sampling_is_a_function_of_the_seed(opened: tuple[LoadedModel, ChatTokenizer]) -> None:
    generator = Generator(*opened)
    ids = prompts(opened[1])[0]

    def sampled(seed: int) -> str:
        drawn = Drawing(temperature=1.5, top_p=0.95, seed=seed)
        return "".join(generator.stream(ids, max_tokens=12, drawing=drawn))

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(5)}) > 1
    with pytest.raises(DataError, match="empty"):
        generator.batch([[1], []], 4)
