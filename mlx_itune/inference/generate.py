"""Answers: greedy ones for many prompts at once, and one, greedy or sampled, as a stream.

The batch is exact: each row sees its own prompt at its own positions, padding is masked out of
every attention, so the text is the one the row would get alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import mlx.core as mx

from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.inference.sampling import Sampling, next_token, penalized
from mlx_itune.inference.text_stream import TextStream
from mlx_itune.kit.errors import DataError
from mlx_itune.model.engine.caches import batch_cache, can_batch
from mlx_itune.model.engine.prefix_cache import PrefixCache
from mlx_itune.model.loading.base import LoadedModel

# Attention over a prompt is quadratic; where exp() is slow (CPU) short chunks skip most of the
# masked half. A GPU prefers long ones.
_CPU_CHUNK_TOKENS, _GPU_CHUNK_TOKENS = 64, 2048
# MLX runs elementwise work of one CPU stream on one core, so two batches run side by side.
_CPU_LANES = 2
# Copying a cache to drop rows pays only once this share of the rows is done.
_DROP_SHARE = 0.25
GREEDY = Sampling()

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Answer:
    """One answer; `completion_tokens` counts its tokens, the one that ends it not among them."""

    text: str
    completion_tokens: int
    finish_reason: Finish


@dataclass
class _Rows:
    """One batch on one stream: prompts prefilled, answers growing together."""

    stream: Any
    cache: list[Any]
    live: list[int]
    tokens: Any
    answers: dict[int, list[int]] = field(default_factory=dict)
    done: dict[int, Finish] = field(default_factory=dict)


class AnswerStream(Iterator[str]):
    """The pieces of one answer as they come; the counts are whole once it has ended.

    `cached_tokens`: how many of the prompt's tokens were in the cache already.
    """

    def __init__(self, run: Callable[[AnswerStream], Iterator[str]]) -> None:
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.finish_reason: Finish = "length"
        self._pieces = run(self)

    def __next__(self) -> str:
        return next(self._pieces)

    def answer(self) -> Answer:
        """The whole of it."""
        text = "".join(self)
        return Answer(text, self.completion_tokens, self.finish_reason)


class Generator:
    """Text generation with one loaded model and its tokenizer.

    stops: texts that end an answer, besides the tokenizer's own ends.
    """

    def __init__(
        self, loaded: LoadedModel, tokenizer: ChatTokenizer, stops: Sequence[str] = ()
    ) -> None:
        self.model = loaded.model
        self.tokenizer = tokenizer
        self.stops = tuple(stop for stop in (*tokenizer.stop_strings, *stops) if stop)
        self._on_cpu = mx.default_device().type == mx.DeviceType.cpu
        self._chunk_tokens = _CPU_CHUNK_TOKENS if self._on_cpu else _GPU_CHUNK_TOKENS

    def stream(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int = 512,
        sampling: Sampling = GREEDY,
        memory: PrefixCache | None = None,
    ) -> AnswerStream:
        """The answer piece by piece; a function of the prompt, ``sampling`` and its seed.

        memory: a cache whose tokens are not computed again, and which then holds this answer too.
        Raises DataError for an empty prompt, at the first piece.
        """
        memory = memory or PrefixCache(self.model)
        ids = list(prompt_ids)

        def run(answer: AnswerStream) -> Iterator[str]:
            return self._pieces(ids, max_tokens, sampling, memory, answer)

        return AnswerStream(run)

    def _pieces(
        self,
        ids: list[int],
        max_tokens: int,
        sampling: Sampling,
        memory: PrefixCache,
        answer: AnswerStream,
    ) -> Iterator[str]:
        _require_tokens([ids])
        cache, answer.cached_tokens = memory.take(ids)
        self._prefill(mx.array([ids[answer.cached_tokens : -1]], dtype=mx.int32), cache)
        text, held = TextStream(self.tokenizer.decode, self.stops), list(ids)
        for token, is_fed in self._tokens(ids, cache, max_tokens, sampling):
            if is_fed:
                held.append(token)
            if token in self.tokenizer.eos_ids:
                answer.finish_reason = "stop"
                break
            answer.completion_tokens += 1
            if piece := text.push(token):
                yield piece
            if text.ended:
                answer.finish_reason = "stop"
                break
        memory.keep(cache, held)
        if piece := text.finish():
            yield piece

    def _tokens(
        self, ids: list[int], cache: list[Any], max_tokens: int, sampling: Sampling
    ) -> Iterator[tuple[int, bool]]:
        """(token, whether it is in the cache); each is launched before the one before is read."""
        key = mx.random.key(sampling.seed)
        recent = mx.array(ids[-sampling.repetition_context :], dtype=mx.int32)
        token = mx.array(ids[-1:], dtype=mx.int32)
        for number in range(max_tokens + 1):
            before = token
            if number < max_tokens:
                logits = self.model(before[None], cache=cache)[0, -1]
                logits = penalized(logits, recent, sampling.repetition_penalty)
                key, now = mx.random.split(key)
                token = next_token(logits, sampling, now)[None].astype(mx.int32)
                recent = mx.concatenate([recent, token])[-sampling.repetition_context :]
                mx.async_eval(token)  # type: ignore[no-untyped-call]
            if number:
                read: Any = before.item()
                yield int(read), number < max_tokens

    def batch(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int = 512,
        batch_size: int = 32,
        observe: Callable[[int], None] | None = None,
    ) -> list[str]:
        """The text of the greedy answer to each prompt, in the order given; see `answers`."""
        return [a.text for a in self.answers(prompts, max_tokens, batch_size, observe)]

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int = 512,
        batch_size: int = 32,
        observe: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """The greedy answer to each prompt, in the order given.

        ``observe`` is told the number of finished prompts. An architecture that mlx-lm
        cannot batch answers one by one. Raises DataError for an empty prompt.
        """
        _require_tokens(prompts)
        if not can_batch(self.model):
            return self._one_by_one(prompts, max_tokens, observe)
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        waiting = [order[i : i + batch_size] for i in range(0, len(order), batch_size)][::-1]
        device = mx.default_device()
        streams = [mx.default_stream(device)]
        if self._on_cpu:
            streams += [mx.new_stream(device) for _ in range(_CPU_LANES - 1)]
        answers: dict[int, Answer] = {}
        running: list[_Rows] = []
        while waiting or running:
            while waiting and streams:
                running.append(self._start(prompts, waiting.pop(), streams.pop()))
            for rows in list(running):
                if self._advance(rows, max_tokens):
                    running.remove(rows)
                    streams.append(rows.stream)
                    for row, ids in rows.answers.items():
                        answers[row] = Answer(self._cut(ids)[0], len(ids), rows.done[row])
                    if observe:
                        observe(len(answers))
        return [answers[i] for i in range(len(prompts))]

    def _one_by_one(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        observe: Callable[[int], None] | None,
    ) -> list[Answer]:
        answers = []
        for ids in prompts:
            answers.append(self.stream(ids, max_tokens=max_tokens).answer())
            if observe:
                observe(len(answers))
        return answers

    def _start(self, prompts: Sequence[Sequence[int]], rows: list[int], stream: Any) -> _Rows:
        """Prefill all but the last token of each prompt; the first step is under way on return."""
        heads = [list(prompts[i][:-1]) for i in rows]
        lengths = [len(head) for head in heads]
        padding = [max(lengths) - length for length in lengths]
        with mx.stream(stream):
            cache = batch_cache(self.model, len(rows))
            if any(padding):
                for layer in cache:
                    layer.prepare(lengths=lengths, right_padding=padding)
            padded = [head + [0] * pad for head, pad in zip(heads, padding, strict=True)]
            self._prefill(mx.array(padded, dtype=mx.int32), cache)
            if any(padding):
                for layer in cache:
                    layer.finalize()
            last = mx.array([prompts[i][-1] for i in rows])
            started = _Rows(stream, cache, rows, last, {i: [] for i in rows})
            self._launch(started)
        return started

    def _prefill(self, ids: Any, cache: list[Any]) -> None:
        """Run ``ids`` (B, T) into the cache; the unused logits are never computed."""
        for start in range(0, ids.shape[1], self._chunk_tokens):
            self.model(ids[:, start : start + self._chunk_tokens], cache=cache)
            mx.async_eval([layer.state for layer in cache])  # type: ignore[no-untyped-call]

    def _launch(self, rows: _Rows) -> None:
        logits = self.model(rows.tokens[:, None], cache=rows.cache)
        rows.tokens = mx.argmax(logits[:, -1], axis=-1)
        mx.async_eval(rows.tokens)  # type: ignore[no-untyped-call]

    def _advance(self, rows: _Rows, max_tokens: int) -> bool:
        """Take the tokens under way and launch the next step; True when every row is done."""
        for row, token in zip(rows.live, rows.tokens.tolist(), strict=True):
            if row in rows.done:
                continue
            answer = rows.answers[row]
            if token not in self.tokenizer.eos_ids:
                answer.append(token)
            if token in self.tokenizer.eos_ids or (self.stops and self._cut(answer)[1]):
                rows.done[row] = "stop"
            elif len(answer) >= max_tokens:
                rows.done[row] = "length"
        keep = [k for k, row in enumerate(rows.live) if row not in rows.done]
        if not keep:
            return True
        with mx.stream(rows.stream):
            if len(rows.live) - len(keep) >= _DROP_SHARE * len(rows.live):
                kept = mx.array(keep)
                rows.live = [rows.live[k] for k in keep]
                rows.tokens = rows.tokens[kept]
                for layer in rows.cache:
                    layer.filter(kept)
            self._launch(rows)
        return False

    def _cut(self, ids: list[int]) -> tuple[str, bool]:
        """The text before the first stop string, and whether there was one."""
        text = self.tokenizer.decode(ids)
        at = [found for stop in self.stops if (found := text.find(stop)) >= 0]
        return (text[: min(at)], True) if at else (text, False)


def _require_tokens(prompts: Sequence[Sequence[int]]) -> None:
    for number, prompt in enumerate(prompts, 1):
        if not len(prompt):
            raise DataError(f"prompt {number} of {len(prompts)} is empty")
