"""Answers to all prompts of a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.inference.generate import Answer, Generator
from mlx_itune.inference.prompts import Prompt, room_tokens
from mlx_itune.inference.sampling import Sampling
from mlx_itune.kit.errors import DataError
from mlx_itune.model.loading.base import LoadedModel


@dataclass(frozen=True)
class Answered:
    """The answer to one prompt; `index` counts from 0 in the file's order, `id` is the row's.

    prompt: what was asked, in words; reference: the answer that the row holds, if it holds one.
    """

    index: int
    id: Any
    prompt: str
    reference: str | None
    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str


def answer_all(
    loaded: LoadedModel,
    tokenizer: ChatTokenizer,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int = 512,
    sampling: Sampling,
    stops: Sequence[str] = (),
    batch_size: int = 32,
    observe: Callable[[int], None] | None = None,
) -> list[Answered]:
    """The answer to each prompt, in order, as each would get it alone.

    Plain greedy answers are computed `batch_size` at a time; others one by one, prompt number n
    with the seed + n. Raises DataError, naming the row, for a prompt that does not fit the model,
    before anything is computed.
    """
    ids, rooms = [], []
    for prompt in prompts:
        try:
            ids.append(prompt.ids(tokenizer))
            rooms.append(room_tokens(len(ids[-1]), loaded.config, max_tokens))
        except DataError as error:
            raise DataError(error.message, where=prompt.origin, hint=error.hint) from error
    generator = Generator(loaded, tokenizer, stops)
    answers: list[Answer] = []
    if sampling.is_plain and batch_size > 1 and min(rooms) == max_tokens:
        answers = generator.answers(ids, max_tokens, batch_size, observe)
    else:
        for n, (each, room) in enumerate(zip(ids, rooms, strict=True)):
            drawn = dataclasses.replace(sampling, seed=sampling.seed + n)
            answers.append(generator.stream(each, max_tokens=room, sampling=drawn).answer())
            if observe:
                observe(n + 1)
    return [
        Answered(
            *(n, p.id, p.words(), p.reference),
            *(a.text, len(i), a.completion_tokens, a.finish_reason),
        )
        for n, (p, a, i) in enumerate(zip(prompts, answers, ids, strict=True))
    ]
