"""Answers to many at once: mlx-lm's batches over one base and its adapters.

One adapter is on at a time. Orders for it are computed together; an order for another waits until
those are done. The adapter of the order that has waited longest is the next.
"""

from __future__ import annotations

import functools
import queue
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import mlx.core as mx
import mlx.nn as nn
from annotated_types import Ge, Le
from mlx_lm.generate import (
    BatchGenerator,
    StopSequences,
    generate_step,
    maybe_quantize_kv_cache,
)
from mlx_lm.models.cache import (
    LRUPromptCache,
    can_trim_prompt_cache,
    make_prompt_cache,
    trim_prompt_cache,
)
from mlx_lm.sample_utils import make_logits_processors, make_sampler
from mlx_lm.utils import maybe_set_recommended_wired_limit

from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.wording import brief
from mlx_itune.model.engine.memory import machine
from mlx_itune.model.serving.grammar import Guide

_END = object()
# Their attention takes one mask for all rows: their heads come in groups, which a mask of rows is
# then broadcast against.
_ONE_MASK = ("gemma2", "phi3small")

_COLDEST = 1e-4

Penalty = Annotated[float, Ge(-100), Le(100)]
Tokens = Annotated[int, Ge(0), Le(1 << 20)]


@dataclass(frozen=True)
class Drawing:
    """How tokens are drawn, by mlx-lm's sample_utils; the default is greedy.

    Penalties look at the last `..._context_size` tokens, the prompt's included.
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

    @property
    def has_own_dice(self) -> bool:
        """Whether the answer is to be a function of the seed: nothing may draw beside it."""
        return self.seed is not None and self.temperature > 0

    def sampler(self, vocabulary: int) -> Callable[[Any], Any]:
        """Log-probabilities (B, V) to tokens (B,); the greedy one is the same object each time."""
        top_k = self.top_k if self.top_k < vocabulary else 0
        # Divided by less, logits overflow.
        temperature = self.temperature if self.temperature > _COLDEST else 0.0
        made: Callable[[Any], Any] = make_sampler(temperature, self.top_p, self.min_p, 1, top_k)
        return made

    def processors(self, before: Sequence[int] = ()) -> list[Callable[[Any, Any], Any]]:
        """What changes logits (B, V), given the tokens so far (T,).

        before: the first of them, where mlx-lm gives the others only.
        """
        made: list[Callable[[Any, Any], Any]] = make_logits_processors(
            dict(self.logit_bias),
            # 1 changes nothing, and costs a pass over the logits.
            0 if self.repetition_penalty == 1 else self.repetition_penalty,
            self.repetition_context_size,
            self.presence_penalty,
            self.presence_context_size,
            self.frequency_penalty,
            self.frequency_context_size,
        )
        if not before:
            return made
        past = mx.array(list(before))

        def seeing_all(processor: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
            return lambda ids, logits: processor(mx.concatenate([past, ids]), logits)

        return [seeing_all(processor) for processor in made]


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

    is_alone: nothing is computed beside it. logprobs: how many likeliest tokens to tell of each;
    None tells nothing. Whoever sets `is_cancelled`, from any thread, gets nothing more.
    adapter: by name, None is the bare base. cached_tokens: of the prompt, once it began.
    guide: what holds the answer to a grammar, for this order only.
    """

    prompt_ids: Sequence[int]
    max_tokens: int
    eos_ids: frozenset[int]
    drawing: Drawing
    deliver: Callable[[Token | Exception], None]
    is_alone: bool = False
    logprobs: int | None = None
    adapter: str | None = None
    guide: Guide | None = None
    cached_tokens: int = 0
    is_cancelled: bool = False

    def processors(self, before: Sequence[int] = ()) -> list[Callable[[Any, Any], Any]]:
        """What changes logits: the drawing's, and last the guide, which rules tokens out."""
        return [*self.drawing.processors(before), *([self.guide] if self.guide else [])]


class Engine:
    """Computes orders in the thread that loaded the model.

    concurrency: answers computed at once; cached_prompts: texts whose past stays in memory, a
    quarter of what there is at most; kv_bits: what keys and values are rounded to, one answer at a
    time; switch: puts an adapter on. Raises ModelError where they cannot be rounded.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        concurrency: int = 1,
        cached_prompts: int = 0,
        kv_bits: int | None = None,
        switch: Callable[[str | None], None] = lambda adapter: None,
    ) -> None:
        self._model, self._switch = model, switch
        self._can_batch = concurrency > 1 and not kv_bits and can_batch(model)
        self._rounding = _rounding(model, kv_bits) if kv_bits else {}
        # Some are at hand when others are done; more would only take memory.
        self._most = 2 * concurrency
        self._stream = mx.default_stream(mx.default_device())
        self._new_batch = functools.partial(
            BatchGenerator,
            model,
            completion_batch_size=concurrency,
            prefill_batch_size=concurrency,
            stream=self._stream,
        )
        self._batch = self._new_batch()
        self._in_batch: dict[int, Order] = {}
        self._alone: Iterator[None] | None = None
        self._waiting: deque[Order] = deque()
        self._arrived: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._adapter: str | None = None
        self._past = LRUPromptCache(cached_prompts, machine().limit_bytes // 4)
        self.vocabulary = int(model(mx.array([[0]])).shape[-1])
        self.is_busy = False

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
        while self._receive(wait=not self.is_busy):
            self._advance()

    def roll(self, seed: int) -> None:
        """Begin the dice anew, which all answers without a seed of their own draw from."""
        mx.random.seed(seed)

    def step(self) -> bool:
        """Compute one more token of the answers under way; False where there is none."""
        self._receive(wait=False)
        self._advance()
        return self.is_busy

    def _receive(self, *, wait: bool) -> bool:
        """Take what has arrived; False at the end."""
        try:
            while (order := self._arrived.get(block=wait)) is not None:
                self._waiting.append(order)
                wait = False
        except queue.Empty:
            return True
        return False

    def _advance(self) -> None:
        if self._alone is None:
            self._admit()
        if self._alone is not None and next(self._alone, _END) is _END:
            self._alone = None
        elif self._in_batch:
            self._advance_batch()
        self.is_busy = self._alone is not None or bool(self._in_batch or self._waiting)

    def _admit(self) -> None:
        """Let orders in, as far as they can be computed beside those under way."""
        if self._waiting and not self._in_batch:
            # All that wait for the adapter whose turn it is; who comes later is behind the others.
            turn = self._waiting[0].adapter
            ordered = sorted(self._waiting, key=lambda order: order.adapter != turn)
            self._waiting = deque(ordered)
        while self._waiting and self._alone is None:
            order = self._waiting[0]
            alone = order.is_alone or not self._can_batch
            full = len(self._in_batch) >= self._most
            if self._in_batch and (alone or full or order.adapter != self._adapter):
                return
            self._waiting.popleft()
            if order.is_cancelled:
                continue
            try:
                self._switch(order.adapter)
                self._adapter = order.adapter
                if alone:
                    self._alone = self._answer(order)
                else:
                    self._join(order)
            except Exception as error:
                order.deliver(error)

    def _join(self, order: Order) -> None:
        cache, rest = self._remembered(order)
        (uid,) = self._batch.insert(
            [rest],
            [order.max_tokens],
            caches=[cache],
            all_tokens=[list(order.prompt_ids[: order.cached_tokens])],
            samplers=[order.drawing.sampler(self.vocabulary)],
            logits_processors=[order.processors()],
            stop_sequences=[StopSequences([(token,) for token in order.eos_ids])],
        )
        self._in_batch[uid] = order

    def _advance_batch(self) -> None:
        gone = [uid for uid, order in self._in_batch.items() if order.is_cancelled]
        try:
            if gone:
                for uid, (cache, ids) in self._batch.remove(gone, True).items():
                    self._remember(self._in_batch.pop(uid), ids, cache)
            made = self._batch.next()[1]
        except BaseException as error:
            struck, self._in_batch, self._batch = self._in_batch, {}, self._new_batch()
            if not isinstance(error, Exception):
                raise
            for order in struck.values():
                order.deliver(error)
            return
        for each in made:
            order = self._in_batch[each.uid]
            if each.finish_reason:
                self._remember(self._in_batch.pop(each.uid), each.all_tokens, each.prompt_cache)
            _deliver(order, each.token, each.finish_reason, each.logprobs)

    def _answer(self, order: Order) -> Iterator[None]:
        """Compute one order by itself, token by token."""

        def heed(done: int, total: int) -> None:
            if order.is_cancelled:
                raise RuntimeError("cancelled")

        try:
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
                sampler=order.drawing.sampler(self.vocabulary),
                logits_processors=order.processors(ids[: order.cached_tokens]),
                prompt_cache=cache,
                prompt_progress_callback=heed,
                **self._rounding,
            ):
                ids.append(int(token))
                is_last = len(ids) - len(order.prompt_ids) == order.max_tokens
                finish = "stop" if token in order.eos_ids else "length" if is_last else None
                _deliver(order, ids[-1], finish, logprobs)
                if not finish:
                    yield
                if finish or order.is_cancelled:
                    break
            self._remember(order, ids, cache)
        except Exception as error:
            order.deliver(error)

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
        if ids and self._past.max_size:
            self._past.insert_cache(order.adapter, list(ids), cache)


def _rounding(model: nn.Module, bits: int) -> dict[str, int]:
    """How mlx-lm is told to round keys and values from the first token on, in the largest groups
    that fit the heads; tried out. Raises ModelError."""
    told = "its keys and values cannot be rounded"
    for size in (64, 32):
        try:
            cache = make_prompt_cache(model)
            if not any(hasattr(layer, "to_quantized") for layer in cache):
                break
            for _ in range(2):
                mx.eval(model(mx.array([[0]]), cache=cache))
                maybe_quantize_kv_cache(cache, 0, size, bits)
        # Attention of a model's own, heads of odd sizes, windows that slide.
        except Exception as error:
            told = f"its keys and values cannot be rounded: {brief(error)}"
            continue
        return {"kv_bits": bits, "kv_group_size": size, "quantized_kv_start": 0}
    raise ModelError(told, hint="leave --kv-bits out")


def can_batch(model: nn.Module) -> bool:
    """Whether mlx-lm can decode rows of different lengths together."""
    kept = all(hasattr(layer, "merge") for layer in make_prompt_cache(model))
    return kept and getattr(model, "model_type", None) not in _ONE_MASK


def _deliver(order: Order, token: int, finish: str | None, logprobs: Any) -> None:
    """logprobs (V,): of every token at this place."""
    if order.guide and order.guide.fault:
        order.deliver(ModelError(f"the schema cannot be kept to: {order.guide.fault}"))
        order.is_cancelled = True
        return
    if order.logprobs is None:
        order.deliver(Token(token, finish))
        return
    likeliest: Any = mx.argsort(-logprobs)[: order.logprobs].tolist()
    values: Any = logprobs[mx.array([token, *likeliest])].tolist()
    top = tuple(zip(likeliest, values[1:], strict=True))
    order.deliver(Token(token, finish, values[0], top))
