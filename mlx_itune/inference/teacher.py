"""A teacher of drafts: a model that is loaded here, asked many things at once, or a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import pairwise
from typing import Any, Protocol

from mlx_itune.dataset.conversation import Turn
from mlx_itune.dataset.drafts.calls import Call
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.inference.generate import Answer, Generator
from mlx_itune.inference.openai_client import AT_ONCE, Server
from mlx_itune.inference.prompts import chat_ids, room_tokens
from mlx_itune.kit.errors import DataError
from mlx_itune.model.loading.base import LoadedModel
from mlx_itune.model.serving.engine import Drawing

# Fewer tokens that prompts begin with together are as fast computed with each.
_FEWEST_SHARED = 16
# Pasts that are kept between calls, as far as memory goes: the second sample has much of the first.
_PASTS = 64
# How a call ended that could not be asked.
TOO_LONG = "does not fit the model"
Answered = Callable[[Call, str, str], None]


class Teacher(Protocol):
    """Whoever drafts."""

    def ask(self, calls: Sequence[Call], answered: Answered) -> None:
        """Tells `answered` of each call its text and how it ended, as soon as it did. Raises
        ModelError."""


class LocalTeacher:
    """A model of ours. Calls are computed `batch_size` at a time; what their prompts begin with
    together is computed once."""

    def __init__(
        self, loaded: LoadedModel, tokenizer: ChatTokenizer, *, batch_size: int = 32
    ) -> None:
        self._config, self._tokenizer = loaded.config, tokenizer
        self._generator = Generator(loaded, tokenizer, batch_size=batch_size, cached_prompts=_PASTS)

    def ask(self, calls: Sequence[Call], answered: Answered) -> None:
        """See `Teacher`. Drawn answers depend on the seed and on what is drawn beside them."""
        if not calls:
            return
        self._generator.roll(int(calls[0].key[:8], 16))
        asked = list[tuple[Call, list[int], int]]()
        for call in calls:
            ids = chat_ids(self._tokenizer, [Turn(role, text) for role, text in call.messages])
            try:
                room = room_tokens(len(ids), self._config, call.max_tokens)
            except DataError:
                answered(call, "", TOO_LONG)
                continue
            asked.append((call, ids, room))
        for wave in _shared([ids for _, ids, _ in asked]):
            for ids in wave:
                self._generator.stream(ids, max_tokens=1, is_alone=False)
            self._finish()
        for call, ids, room in asked:
            self._begin(call, ids, room, answered)
        self._finish()

    def _finish(self) -> None:
        while self._generator.step():
            pass

    def _begin(self, call: Call, ids: list[int], room: int, answered: Answered) -> None:
        made: list[Answer] = []

        def ended() -> None:
            (answer,) = made
            finish = "length" if answer.is_shortened else str(answer.finish_reason)
            answered(call, self._tokenizer.dialect.apart(answer.text)[1], finish)

        drawing = Drawing(call.temperature, call.top_p)
        made.append(
            self._generator.stream(
                ids,
                max_tokens=room,
                drawing=drawing,
                on_end=ended,
                is_alone=False,
                schema=call.schema,
            )
        )


def _shared(prompts: list[list[int]]) -> Iterator[list[list[int]]]:
    """What prompts begin with together, to be computed before them: what all do, then what each has
    with its nearest."""
    if len(prompts) < 2:
        return
    ordered = sorted(prompts)
    both = [_same(one, other) for one, other in pairwise(ordered)]
    whole = _same(ordered[0], ordered[-1])
    if whole >= _FEWEST_SHARED:
        yield [ordered[0][:whole]]
    nearest = [max(pair) for pair in zip([0, *both], [*both, 0], strict=True)]
    far = {tuple(ids[:n]) for ids, n in zip(ordered, nearest, strict=True)}
    yield [list(ids) for ids in sorted(far) if len(ids) >= whole + _FEWEST_SHARED]


def _same(one: list[int], other: list[int]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))


class ServerTeacher:
    """A model behind a server; schemas are asked for as OpenAI's API has them."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def ask(self, calls: Sequence[Call], answered: Answered) -> None:
        """See `Teacher`; what came before a failure was told."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            waiting = {pool.submit(self._chat, call): call for call in calls}
            try:
                for done in as_completed(waiting):
                    answered(waiting[done], *done.result())
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _chat(self, call: Call) -> tuple[str, str]:
        how: dict[str, Any] = {"temperature": call.temperature, "top_p": call.top_p}
        # The same words with another number are another sample.
        how |= {"max_tokens": call.max_tokens, "seed": int(call.key[:7], 16)}
        if call.schema is not None:
            schema = {"name": "answer", "strict": True, "schema": call.schema}
            how["response_format"] = {"type": "json_schema", "json_schema": schema}
        messages = [{"role": role, "content": text} for role, text in call.messages]
        return self._server.chat(messages, **how)
