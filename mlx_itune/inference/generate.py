"""Answers of one model: many at once, and one, greedy or drawn, as a stream."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.inference.text_stream import TextStream
from mlx_itune.kit.errors import DataError
from mlx_itune.model.loading.base import LoadedModel
from mlx_itune.model.serving.drawing import Drawing
from mlx_itune.model.serving.engine import Engine, Order, Token

GREEDY = Drawing()


class Answer(Iterator[str]):
    """One answer, and an iterator over its pieces, which computes them.

    `finish_reason`: "stop" or "length", None before its end. `completion_tokens` counts its tokens,
    the one that ends it not among them; `cached_tokens` those of the prompt that were computed
    already.
    """

    def __init__(
        self, engine: Engine, text: TextStream, order: Order, on_end: Callable[[], None]
    ) -> None:
        self._engine, self._stream, self._order, self._on_end = engine, text, order, on_end
        self._fresh = ""
        self._is_submitted = False
        self.text = ""
        self.completion_tokens = 0
        self.finish_reason: str | None = None
        order.deliver = self._take

    @property
    def cached_tokens(self) -> int:
        """Of the prompt."""
        return self._order.cached_tokens

    def submit(self) -> None:
        """Have it computed with whatever else the engine has."""
        if not self._is_submitted:
            self._is_submitted = True
            self._engine.submit(self._order)

    def close(self) -> None:
        """Break it off; what there is stays."""
        self._order.is_cancelled = True

    def __next__(self) -> str:
        self.submit()
        while not self._fresh and self.finish_reason is None and not self._order.is_cancelled:
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
    """Text generation with one loaded model and its tokenizer.

    stops: texts that end an answer, besides the tokenizer's own ends; batch_size: answers computed
    at once, which are those that each prompt would get alone; cached_prompts: texts whose past is
    not computed again.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        tokenizer: ChatTokenizer,
        stops: Sequence[str] = (),
        *,
        batch_size: int = 32,
        cached_prompts: int = 0,
    ) -> None:
        self.tokenizer = tokenizer
        self._stops = (*tokenizer.stop_strings, *stops)
        self._engine = Engine(loaded.model, concurrency=batch_size, cached_prompts=cached_prompts)

    def stream(
        self, prompt_ids: Sequence[int], *, max_tokens: int = 512, drawing: Drawing = GREEDY
    ) -> Answer:
        """The answer piece by piece; a function of the prompt, ``drawing`` and its seed.

        Raises DataError for an empty prompt.
        """
        return self._answer(prompt_ids, max_tokens, drawing, is_alone=True)

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int | Sequence[int] = 512,
        drawings: Sequence[Drawing] | None = None,
        observe: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """The answer to each prompt, in the order given; greedy ones unless `drawings` says how.

        One that is drawn with a seed is computed by itself. ``observe`` is told the number of
        finished prompts. Raises DataError for an empty prompt.
        """
        most = [max_tokens] * len(prompts) if isinstance(max_tokens, int) else max_tokens
        done = itertools.count(1)

        def ended() -> None:
            if observe:
                observe(next(done))

        found = [
            self._answer(ids, tokens, drawing, ended, is_alone=drawing.has_own_dice)
            for ids, tokens, drawing in zip(
                prompts, most, drawings or [GREEDY] * len(prompts), strict=True
            )
        ]
        # Prompts of like length pad each other least.
        for n in sorted(range(len(found)), key=lambda n: -len(prompts[n])):
            found[n].submit()
        while self._engine.step():
            pass
        return found

    def batch(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int = 512,
        observe: Callable[[int], None] | None = None,
    ) -> list[str]:
        """The text of the greedy answer to each prompt, in the order given."""
        return [answer.text for answer in self.answers(prompts, max_tokens, observe=observe)]

    def _answer(
        self,
        ids: Sequence[int],
        max_tokens: int,
        drawing: Drawing,
        on_end: Callable[[], None] = lambda: None,
        *,
        is_alone: bool,
    ) -> Answer:
        if not len(ids):
            raise DataError("the prompt is empty")
        text = TextStream(self.tokenizer.decode, self._stops)
        ends = frozenset(self.tokenizer.eos_ids)
        order = Order(list(ids), max_tokens, ends, drawing, lambda token: None, is_alone)
        return Answer(self._engine, text, order, on_end)
