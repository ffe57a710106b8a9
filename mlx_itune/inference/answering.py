"""Answers to all prompts of a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.inference.generate import GREEDY, Generator
from mlx_itune.inference.prompts import Prompt, room_tokens
from mlx_itune.kit.errors import DataError
from mlx_itune.model.loading.base import LoadedModel
from mlx_itune.model.serving.drawing import Drawing


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
    finish_reason: str | None


def answer_all(
    loaded: LoadedModel,
    tokenizer: ChatTokenizer,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int = 512,
    drawing: Drawing = GREEDY,
    stops: Sequence[str] = (),
    batch_size: int = 32,
    observe: Callable[[int], None] | None = None,
) -> list[Answered]:
    """The answer to each prompt, in order, as each would get it alone.

    Greedy answers are computed `batch_size` at a time; drawn ones one by one, prompt number n with
    the seed + n. Raises DataError, naming the row, for a prompt that does not fit the model, before
    anything is computed.
    """
    ids, rooms = [], []
    for prompt in prompts:
        try:
            ids.append(prompt.ids(tokenizer))
            rooms.append(room_tokens(len(ids[-1]), loaded.config, max_tokens))
        except DataError as error:
            raise DataError(error.message, where=prompt.origin, hint=error.hint) from error
    first = drawing.seed or 0
    drawings = [dataclasses.replace(drawing, seed=first + n) for n in range(len(prompts))]
    generator = Generator(loaded, tokenizer, stops, batch_size=batch_size)
    answers = generator.answers(ids, rooms, drawings, observe)
    return [
        Answered(
            *(n, prompt.id, prompt.words(), prompt.reference),
            *(answer.text, len(ids[n]), answer.completion_tokens, answer.finish_reason),
        )
        for n, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]
