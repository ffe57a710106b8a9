"""Greedy answers for many prompts at once, and one sampled answer as a stream.

The batch is exact: each row sees its own prompt at its own positions, padding is masked out of
every attention, so the text is the one the row would get alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from mlx_itune.dataset.tokenizer import ChatTokenizer
from mlx_itune.inference.sampling import next_token
from mlx_itune.kit.errors import DataError
from mlx_itune.model.base import LoadedModel
from mlx_itune.model.caches import batch_cache, single_cache

# Attention over a prompt is quadratic; where exp() is slow (CPU) short chunks skip most of the
# masked half. A GPU prefers long ones.
_CPU_CHUNK_TOKENS, _GPU_CHUNK_TOKENS = 64, 2048
# MLX runs elementwise work of one CPU stream on one core, so two batches run side by side.
_CPU_LANES = 2
# Copying a cache to drop rows pays only once this share of the rows is done.
_DROP_SHARE = 0.25


@dataclass
class _Rows:
    """One batch on one stream: prompts prefilled, answers growing together."""

    stream: Any
    cache: list[Any]
    live: list[int]
    tokens: Any
    answers: dict[int, list[int]] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)


class Generator:
    """Text generation with one loaded model and its tokenizer."""

    def __init__(self, loaded: LoadedModel, tokenizer: ChatTokenizer) -> None:
        self.model = loaded.model
        self.tokenizer = tokenizer
        self._on_cpu = mx.default_device().type == mx.DeviceType.cpu
        self._chunk_tokens = _CPU_CHUNK_TOKENS if self._on_cpu else _GPU_CHUNK_TOKENS

    def stream(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """Yield the answer piece by piece; ``temperature`` 0 is greedy.

        Raises DataError for an empty prompt.
        """
        _require_tokens([prompt_ids])
        cache = single_cache(self.model)
        self._prefill(mx.array([list(prompt_ids[:-1])], dtype=mx.int32), cache)
        key = mx.random.key(seed)
        token, ids, shown = int(prompt_ids[-1]), list[int](), ""
        for _ in range(max_tokens):
            logits = self.model(mx.array([[token]]), cache=cache)[0, -1]
            key, now = mx.random.split(key)
            token = int(next_token(logits, temperature, top_p, now).item())
            if token in self.tokenizer.eos_ids:
                break
            ids.append(token)
            text, ended = self._cut(self.tokenizer.decode(ids))
            # A trailing replacement character is a multi-byte character still on its way, and
            # the start of a stop string may yet become one.
            ready = text if ended else text[: len(text) - self._held_back(text)]
            if len(ready) > len(shown):
                yield ready[len(shown) :]
                shown = ready
            if ended:
                return
        text, _ = self._cut(self.tokenizer.decode(ids))
        if len(text) > len(shown):
            yield text[len(shown) :]

    def batch(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int = 512,
        batch_size: int = 32,
        observe: Callable[[int], None] | None = None,
    ) -> list[str]:
        """The greedy answer to each prompt, in the order given.

        ``observe`` is told the number of finished prompts. Raises DataError for an empty prompt.
        """
        _require_tokens(prompts)
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        waiting = [order[i : i + batch_size] for i in range(0, len(order), batch_size)][::-1]
        device = mx.default_device()
        streams = [mx.default_stream(device)]
        if self._on_cpu:
            streams += [mx.new_stream(device) for _ in range(_CPU_LANES - 1)]
        answers: dict[int, list[int]] = {}
        running: list[_Rows] = []
        while waiting or running:
            while waiting and streams:
                running.append(self._start(prompts, waiting.pop(), streams.pop()))
            for rows in list(running):
                if self._advance(rows, max_tokens):
                    running.remove(rows)
                    streams.append(rows.stream)
                    answers |= rows.answers
                    if observe:
                        observe(len(answers))
        return [self._cut(self.tokenizer.decode(answers[i]))[0] for i in range(len(prompts))]

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
            if token in self.tokenizer.eos_ids or len(answer) >= max_tokens or self._ended(answer):
                rows.done.add(row)
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

    def _ended(self, answer: list[int]) -> bool:
        return bool(self.tokenizer.stop_strings) and self._cut(self.tokenizer.decode(answer))[1]

    def _cut(self, text: str) -> tuple[str, bool]:
        """The text before the first stop string, and whether there was one."""
        at = [text.find(stop) for stop in self.tokenizer.stop_strings if stop in text]
        return (text[: min(at)], True) if at else (text, False)

    def _held_back(self, text: str) -> int:
        """How many trailing characters of ``text`` may still change or be cut."""
        if text.endswith("�"):
            return 1
        stops = self.tokenizer.stop_strings
        longest = max((len(stop) for stop in stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in stops):
                return length
        return 0


def _require_tokens(prompts: Sequence[Sequence[int]]) -> None:
    for number, prompt in enumerate(prompts, 1):
        if not len(prompt):
            raise DataError(f"prompt {number} of {len(prompts)} is empty")
