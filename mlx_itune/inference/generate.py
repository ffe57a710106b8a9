"""Answers of one model: many at once, and one, greedy or drawn, as a stream."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Generator as GeneratorOf
from typing import Any

from mlx_itune.dataset.conversation import Turn
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.inference.held import Holder
from mlx_itune.inference.prompts import Prompt, chat_ids, room_tokens
from mlx_itune.kit.errors import DataError, located
from mlx_itune.model.loading.base import LoadedModel
from mlx_itune.model.serving.engine import Drawing, Engine, Order, Token
from mlx_itune.model.serving.text_stream import TextStream

GREEDY = Drawing()
# Whose computed past is kept: this one, and the one before a reset.
_CONVERSATIONS = 2


class Answer(Iterator[str]):
    """One answer, and an iterator over its pieces, which computes them. `finish_reason`: "stop" or
    "length", None before its end. `completion_tokens`: without the one that ends it."""

    def __init__(
        self, engine: Engine, text: TextStream, order: Order, on_end: Callable[[], None]
    ) -> None:
        self._engine, self._stream, self.order, self._on_end = engine, text, order, on_end
        self._fresh = ""
        self.text = ""
        self.completion_tokens = 0
        self.finish_reason: str | None = None
        order.deliver = self._take
        engine.submit(order)

    @property
    def is_shortened(self) -> bool:
        """Whether tokens ran short, and it was brought to an end that its schema allows."""
        return bool(self.order.guide and self.order.guide.is_shortened)

    def close(self) -> None:
        """Break it off; what there is stays."""
        self.order.is_cancelled = True

    def __next__(self) -> str:
        while not self._fresh and self.finish_reason is None and not self.order.is_cancelled:
            self._engine.step()
        piece, self._fresh = self._fresh, ""
        if not piece:
            raise StopIteration
        return piece

    def _take(self, token: Token | Exception) -> None:
        if isinstance(token, Exception):
            raise token
        self.completion_tokens += token.finish != "stop"
        piece, self.finish_reason = self._stream.take(token.id, token.finish)
        self.text += piece
        self._fresh += piece
        if self.finish_reason:
            self.close()
            self._on_end()


class Generator:
    """Text generation with one loaded model and its tokenizer. stops: texts that end an answer,
    too; batch_size: answers computed at once, the same as alone; cached_prompts: texts whose past
    is not computed again; schema: what every answer is held to."""

    def __init__(
        self,
        loaded: LoadedModel,
        tokenizer: ChatTokenizer,
        stops: Sequence[str] = (),
        *,
        batch_size: int = 32,
        cached_prompts: int = 0,
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self._stops = stops
        self._engine = Engine(loaded.model, concurrency=batch_size, cached_prompts=cached_prompts)
        self._schema, self._holder = schema, Holder(self._engine.vocabulary)

    def stream(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int = 512,
        drawing: Drawing = GREEDY,
        on_end: Callable[[], None] = lambda: None,
        is_alone: bool = True,
        schema: Mapping[str, Any] | None = None,
    ) -> Answer:
        """The answer piece by piece; a function of the prompt, ``drawing`` and its seed. schema: of
        this answer alone. Raises DataError for an empty prompt, and for a schema that cannot be
        kept to."""
        if not prompt_ids:
            raise DataError("the prompt is empty")
        schema = self._schema if schema is None else schema
        # What is held to a schema ends where it is whole.
        stops = (*(self.tokenizer.stop_strings if schema is None else ()), *self._stops)
        text = TextStream(self.tokenizer.decode, stops)
        ends = frozenset(self.tokenizer.eos_ids)
        guide = None
        if schema is not None:
            guide = self._holder.guide(self.tokenizer, schema, prompt_ids, max_tokens)
        order = Order(
            list(prompt_ids), max_tokens, ends, drawing, lambda token: None, is_alone, guide=guide
        )
        return Answer(self._engine, text, order, on_end)

    def roll(self, seed: int) -> None:
        """Begin the dice anew, of answers that are drawn beside each other."""
        self._engine.roll(seed)

    def step(self) -> bool:
        """Compute one more token of every answer that was begun; False where there is none."""
        return self._engine.step()

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: Sequence[int],
        drawings: Iterable[Drawing] = itertools.repeat(GREEDY),
        observe: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """The answer to each prompt, in the order given. One that is drawn with a seed is computed
        by itself. ``observe`` is told the number of finished prompts. Raises DataError for an empty
        prompt."""
        done = itertools.count(1)

        def ended() -> None:
            if observe:
                observe(next(done))

        asked = list(zip(range(len(prompts)), prompts, max_tokens, drawings, strict=False))
        found = {}
        # Those of like length pad each other least; an empty one is refused before the others run.
        for number, ids, most, drawing in sorted(asked, key=lambda each: -len(each[1])):
            found[number] = self.stream(
                ids, max_tokens=most, drawing=drawing, on_end=ended, is_alone=drawing.has_own_dice
            )
        while self._engine.step():
            pass
        return [found[number] for number in sorted(found)]

    def batch(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int = 512,
        observe: Callable[[int], None] | None = None,
    ) -> list[str]:
        """The text of the greedy answer to each prompt, in the order given."""
        answers = self.answers(prompts, [max_tokens] * len(prompts), observe=observe)
        return [answer.text for answer in answers]


def answer_all(
    loaded: LoadedModel,
    tokenizer: ChatTokenizer,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int = 512,
    drawing: Drawing = GREEDY,
    stops: Sequence[str] = (),
    batch_size: int = 32,
    schema: Mapping[str, Any] | None = None,
    observe: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """The answer to each prompt of a file, in order, as a line of `generate --file`. Greedy answers
    are computed `batch_size` at a time; drawn ones one by one, prompt number n with the seed + n.
    Raises DataError, naming the row, for a prompt that does not fit the model, before anything is
    computed."""
    ids, rooms = [], []
    for prompt in prompts:
        with located(prompt.origin):
            ids.append(prompt.ids(tokenizer))
            rooms.append(room_tokens(len(ids[-1]), loaded.config, max_tokens))
    first = drawing.seed or 0
    drawings = (dataclasses.replace(drawing, seed=first + n) for n in range(len(prompts)))
    generator = Generator(loaded, tokenizer, stops, batch_size=batch_size, schema=schema)
    answers = generator.answers(ids, rooms, drawings, observe)
    return [
        {
            "index": n,
            "id": prompt.id,
            **prompt.asked(),
            "reference": prompt.reference,
            "text": answer.text,
            "prompt_tokens": len(ids[n]),
            "completion_tokens": answer.completion_tokens,
            "finish_reason": answer.finish_reason,
            **({} if schema is None else {"shortened": answer.is_shortened}),
        }
        for n, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]


class ChatSession:
    """Turns with one model. What a turn shares with the last one comes from the cache. Every turn
    renders the whole conversation through the template, so that a template that drops or rewrites
    earlier turns is followed; only what is the same, token by token, is kept."""

    def __init__(
        self,
        loaded: LoadedModel,
        tokenizer: ChatTokenizer,
        stops: Sequence[str] = (),
        *,
        system: str | None = None,
        max_tokens: int = 512,
        drawing: Drawing = GREEDY,
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        self._config, self._tokenizer = loaded.config, tokenizer
        self._generator = Generator(
            loaded, tokenizer, stops, cached_prompts=_CONVERSATIONS, schema=schema
        )
        self._max_tokens, self._drawing = max_tokens, drawing
        self.system = tokenizer.system if system is None else system
        self.last: Answer | None = None
        self.reset()

    def reset(self, system: str | None = None) -> None:
        """Begin again, with another system prompt if one is given."""
        self.system = system if system is not None else self.system
        self.turns = [Turn("system", self.system)] if self.system else list[Turn]()

    def say(self, text: str) -> GeneratorOf[str, None, None]:
        """The pieces of the answer to `text`; both become turns once something was answered. An
        answer that is broken off (close the iterator, or raise into it) stays as far as it got.
        Raises DataError, with the conversation as it was, when it no longer fits the model."""
        asked = [*self.turns, Turn("user", text)]
        prompt = chat_ids(self._tokenizer, asked)
        try:
            room = room_tokens(len(prompt), self._config, self._max_tokens)
        except DataError as error:
            error.hint = "/reset starts a new conversation"
            raise
        # Another seed for each turn, or the same question would get the same dice.
        seed = (self._drawing.seed or 0) + len(asked)
        drawing = dataclasses.replace(self._drawing, seed=seed)
        self.last = answer = self._generator.stream(prompt, max_tokens=room, drawing=drawing)
        try:
            yield from answer
        finally:
            answer.close()
            if answer.text.strip():
                thought, words = self._tokenizer.dialect.apart(answer.text)
                self.turns = [*asked, Turn("assistant", words, reasoning=thought)]
