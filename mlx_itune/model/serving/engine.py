"""Answers to many at once: mlx-lm's batches over one base and its adapters.

One adapter is on at a time. Orders for it are computed together; an order for another waits until
those are done. The adapter of the order that has waited longest is the next.
"""

from __future__ import annotations

import functools
import queue
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import mlx.core as mx
from annotated_types import Ge, Le
from mlx_lm.generate import BatchGenerator, StopSequences, generate_step
from mlx_lm.models.cache import (
    LRUPromptCache,
    can_trim_prompt_cache,
    make_prompt_cache,
    trim_prompt_cache,
)
from mlx_lm.sample_utils import make_logits_processors, make_sampler
from mlx_lm.utils import maybe_set_recommended_wired_limit

from mlx_itune.model.adapters.adapter_set import AdapterSet
from mlx_itune.model.engine.caches import can_batch

_PROMPTS_AT_ONCE = 8

Penalty = Annotated[float, Ge(-100), Le(100)]
Tokens = Annotated[int, Ge(0), Le(1 << 20)]


@dataclass(frozen=True)
class Drawing:
    """How tokens are drawn, by mlx-lm's sample_utils; the default is greedy.

    Penalties look at the last `..._context_size` tokens. An answer with a seed is a function of it.
    """

    temperature: Annotated[float, Ge(0), Le(100)] = 0.0
    top_p: Annotated[float, Ge(0), Le(1)] = 1.0
    top_k: Annotated[int, Ge(0)] = 0
    min_p: Annotated[float, Ge(0), Le(1)] = 0.0
    repetition_penalty: Annotated[float, Ge(0), Le(100)] = 0.0
    repetition_context_size: Tokens = 20
    presence_penalty: Penalty = 0.0
    presence_context_size: Tokens = 20
    frequency_penalty: Penalty = 0.0
    frequency_context_size: Tokens = 20
    # Beyond float32 log-probabilities are infinite.
    logit_bias: Mapping[int, Annotated[float, Ge(-1e9), Le(1e9)]] = field(default_factory=dict)
    seed: int | None = None


@dataclass(frozen=True)
class Token:
    """One token of an answer; `finish` is "stop" at one that ends it, "length" at the last.

    logprob and top, the likeliest tokens with theirs: where they were asked for.
    """

    id: int
    finish: str | None
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class Order:
    """One answer that is wanted. `deliver` gets its tokens, or the error that ended it.

    logprobs: how many likeliest tokens to tell of each token; None tells nothing. Whoever sets
    `is_cancelled`, from any thread, gets nothing more. cached_tokens: of the prompt, once it began.
    """

    adapter: str | None
    prompt_ids: Sequence[int]
    max_tokens: int
    eos_ids: frozenset[int]
    drawing: Drawing
    logprobs: int | None
    deliver: Callable[[Token | Exception], None]
    cached_tokens: int = 0
    is_cancelled: bool = False


class Engine:
    """Computes orders in the thread that calls `run`, which has to be the one that loaded them.

    concurrency: answers computed at once; cached_prompts: texts whose past stays in memory.
    """

    def __init__(self, adapters: AdapterSet, *, concurrency: int, cached_prompts: int) -> None:
        self._adapters, self._model = adapters, adapters.loaded.model
        self.vocabulary = adapters.vocabulary()
        self._can_batch = concurrency > 1 and can_batch(self._model)
        self._stream = mx.default_stream(mx.default_device())
        self._new_batch = functools.partial(
            BatchGenerator,
            self._model,
            completion_batch_size=concurrency,
            prefill_batch_size=min(_PROMPTS_AT_ONCE, concurrency),
            stream=self._stream,
        )
        self._batch = self._new_batch()
        self._live: dict[int, Order] = {}
        self._past = LRUPromptCache(cached_prompts)
        self._arrived: queue.SimpleQueue[Order | None] = queue.SimpleQueue()

    def submit(self, order: Order) -> None:
        """Have an order computed; from any thread."""
        self._arrived.put(order)

    def stop(self) -> None:
        """End `run`, leaving what is under way; from any thread."""
        self._arrived.put(None)

    def run(self) -> None:
        """Answer orders until `stop`. An error ends the answers it struck, and nothing else."""
        # As mlx-lm's server does: on an Apple GPU the weights then stay resident.
        maybe_set_recommended_wired_limit()
        waiting: deque[Order] = deque()
        while self._receive(waiting):
            self._admit(waiting)
            if self._live:
                self._step()

    def _receive(self, waiting: deque[Order]) -> bool:
        """Take what has arrived, and wait for it where there is nothing to do; False at the end."""
        wait = not waiting and not self._live
        try:
            while (order := self._arrived.get(block=wait)) is not None:
                waiting.append(order)
                wait = False
        except queue.Empty:
            return True
        return False

    def _admit(self, waiting: deque[Order]) -> None:
        if waiting and not self._live:
            # All that wait for the adapter whose turn it is; who comes later is behind the others.
            turn = waiting[0].adapter
            ordered = sorted(waiting, key=lambda order: order.adapter != turn)
            waiting.clear()
            waiting.extend(ordered)
        while waiting:
            order = waiting[0]
            alone = not self._can_batch or order.drawing.seed is not None
            if self._live and (alone or order.adapter != self._adapters.current):
                return
            waiting.popleft()
            if order.is_cancelled:
                continue
            try:
                self._adapters.use(order.adapter)
                self._answer(order) if alone else self._join(order)
            except Exception as error:
                order.deliver(error)

    def _join(self, order: Order) -> None:
        """Let an order into the batch."""
        cache, rest = self._remembered(order)
        (uid,) = self._batch.insert(
            [rest],
            [order.max_tokens],
            caches=[cache],
            all_tokens=[list(order.prompt_ids[: order.cached_tokens])],
            samplers=[self._sampler(order)],
            logits_processors=[_processors(order.drawing)],
            stop_sequences=[StopSequences([(token,) for token in order.eos_ids])],
        )
        self._live[uid] = order

    def _step(self) -> None:
        """One more token of every answer in the batch."""
        gone = [uid for uid, order in self._live.items() if order.is_cancelled]
        try:
            if gone:
                for uid, (cache, ids) in self._batch.remove(gone, True).items():
                    self._remember(self._live.pop(uid), ids, cache)
            made = self._batch.next()[1]
        except Exception as error:
            for order in self._live.values():
                order.deliver(error)
            self._live.clear()
            self._batch = self._new_batch()
            return
        for each in made:
            order = self._live[each.uid]
            if each.finish_reason:
                self._remember(self._live.pop(each.uid), each.all_tokens, each.prompt_cache)
            order.deliver(_token(each.token, each.finish_reason, each.logprobs, order))

    def _answer(self, order: Order) -> None:
        """Compute one order by itself."""
        cache, rest = self._remembered(order)
        cache = cache or make_prompt_cache(self._model)
        ids = list(order.prompt_ids)
        if order.drawing.seed is not None:
            mx.random.seed(order.drawing.seed)
        for token, logprobs in generate_step(
            mx.array(rest),
            self._model,
            self._stream,
            max_tokens=order.max_tokens,
            sampler=self._sampler(order),
            logits_processors=_processors(order.drawing),
            prompt_cache=cache,
        ):
            ids.append(int(token))
            is_last = len(ids) - len(order.prompt_ids) == order.max_tokens
            finish = "stop" if token in order.eos_ids else "length" if is_last else None
            order.deliver(_token(ids[-1], finish, logprobs, order))
            if finish or order.is_cancelled:
                break
        self._remember(order, ids, cache)

    def _remembered(self, order: Order) -> tuple[list[Any] | None, list[int]]:
        """(cache, the tokens that are not in it); one at least, for logits come from it."""
        ids = list(order.prompt_ids)
        cache, rest = self._past.fetch_nearest_cache(order.adapter, ids)
        if cache is not None and not rest:
            can_trim = can_trim_prompt_cache(cache) and trim_prompt_cache(cache, 1) == 1
            cache, rest = (cache, ids[-1:]) if can_trim else (None, ids)
        order.cached_tokens = len(ids) - len(rest)
        return cache, rest

    def _remember(self, order: Order, ids: Sequence[int], cache: list[Any]) -> None:
        if ids:
            self._past.insert_cache(order.adapter, list(ids), cache)

    def _sampler(self, order: Order) -> Callable[[Any], Any]:
        how = order.drawing
        top_k = how.top_k if how.top_k < self.vocabulary else 0
        # mlx-lm's own greedy sampler is one for all: a batch of them is drawn in one call.
        sampler: Callable[[Any], Any] = make_sampler(
            how.temperature, how.top_p, how.min_p, 1, top_k
        )
        return sampler


def _processors(how: Drawing) -> list[Callable[[Any, Any], Any]]:
    made: list[Callable[[Any, Any], Any]] = make_logits_processors(
        dict(how.logit_bias),
        how.repetition_penalty,
        how.repetition_context_size,
        how.presence_penalty,
        how.presence_context_size,
        how.frequency_penalty,
        how.frequency_context_size,
    )
    return made


def _token(token: int, finish: str | None, logprobs: Any, order: Order) -> Token:
    """logprobs (V,): of every token at this place."""
    if order.logprobs is None:
        return Token(token, finish)
    likeliest: Any = mx.argsort(-logprobs)[: order.logprobs].tolist()
    values: Any = logprobs[mx.array([token, *likeliest])].tolist()
    return Token(token, finish, values[0], tuple(zip(likeliest, values[1:], strict=True)))
