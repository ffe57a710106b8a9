"""The answer to one request in OpenAI's form: whole, or as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from mlx_itune.inference.openai_request import Asked, Refusal
from mlx_itune.inference.text_stream import TextStream
from mlx_itune.kit.wording import brief
from mlx_itune.model.serving.engine import Engine, Order, Token
from mlx_itune.model.serving.reply import Reply

_LEAST_LOGPROB = -9999.0


class OpenAIAnswer:
    """The answer to one request, in OpenAI's form."""

    def __init__(self, asked: Asked, engine: Engine) -> None:
        self._asked, self._engine, self._loop = asked, engine, asyncio.get_running_loop()
        self._arrived: asyncio.Queue[Token | Exception] = asyncio.Queue()
        self._tokens = 0
        self._id = f"{'chatcmpl' if asked.is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._order = Order(
            asked.prompt_ids,
            asked.max_tokens,
            asked.served.tokenizer.eos_ids,
            asked.request,
            self._deliver,
            is_alone=asked.request.has_own_dice,
            logprobs=asked.request.told_logprobs,
            adapter=asked.served.adapter,
        )

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self._order.is_cancelled = True

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        whole: dict[str, Any] = {"content": "", "reasoning": "", "tool_calls": []}
        tokens, finish = [], None
        async for said, token, ends in self._pieces():
            finish = ends
            tokens.append(token)
            for key, value in said.items():
                whole[key] += value
        choice: dict[str, Any] = {"text": whole["content"]}
        if self._asked.is_chat:
            for call in whole["tool_calls"]:
                del call["index"]
            more = {key: whole[key] for key in ("reasoning", "tool_calls") if whole[key]}
            choice = {"message": {"role": "assistant", "content": whole["content"] or None, **more}}
        choice |= {"finish_reason": finish, "logprobs": self._logprobs(tokens)}
        return {**self._around([choice]), "usage": self._usage()}

    async def events(self) -> AsyncIterator[str]:
        """The answer as server-sent events, whose end is `[DONE]`."""
        role = {"role": "assistant"}
        try:
            async for said, token, finish in self._pieces():
                if not (said or finish or self._order.logprobs is not None):
                    continue
                choice: dict[str, Any] = {"text": said.get("content", "")}
                if self._asked.is_chat:
                    choice, role = {"delta": {**role, **said}}, {}
                choice |= {"finish_reason": finish, "logprobs": self._logprobs([token])}
                yield _event(self._around([choice]))
            if self._asked.request.stream_options.include_usage:
                yield _event({**self._around([]), "usage": self._usage()})
        except Exception as error:
            yield _event(refusal_of(error).body)
        yield "data: [DONE]\n\n"

    async def _pieces(self) -> AsyncIterator[tuple[dict[str, Any], Token, str | None]]:
        """(what it says, the token behind it, how it ends)."""
        served, request = self._asked.served, self._asked.request
        text = TextStream(self._decode, self._asked.stops)
        reply = Reply(served.family, self._asked.prompt_ids, request.tools)
        self._engine.submit(self._order)
        finish = None
        try:
            while finish is None:
                token = await self._arrived.get()
                if isinstance(token, Exception):
                    raise token
                self._tokens += 1
                piece, finish = text.take(token.id, token.finish)
                said = {"content": piece} if piece else {}
                if self._asked.is_chat:
                    said = reply.push(piece, is_last=finish is not None)
                    finish = "tool_calls" if finish == "stop" and reply.calls else finish
                yield said, token, finish
        finally:
            self.cancel()

    def _deliver(self, event: Token | Exception) -> None:
        # The loop has ended where the server has.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._arrived.put_nowait, event)

    def _decode(self, ids: Sequence[int]) -> str:
        try:
            return self._asked.served.tokenizer.decode(ids)
        # A panic of Rust's, which is no Exception, is this answer's only.
        except BaseException as error:
            raise RuntimeError(f"the tokenizer gave up: {brief(error)}") from error

    def _around(self, choices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        request, is_chat = self._asked.request, self._asked.is_chat
        kind = "chat.completion" + ".chunk" * request.stream if is_chat else "text_completion"
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": request.model,
            "system_fingerprint": "mlx-itune",
            "choices": [{"index": 0, **choice} for choice in choices],
        }

    def _usage(self) -> dict[str, Any]:
        prompt = len(self._asked.prompt_ids)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._tokens,
            "total_tokens": prompt + self._tokens,
            "prompt_tokens_details": {"cached_tokens": self._order.cached_tokens},
        }

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        """The log-probabilities of tokens, but for one that ends the answer."""
        if self._order.logprobs is None:
            return None
        scored = [
            {
                **self._scored(token.id, token.logprob),
                "top_logprobs": [self._scored(*pair) for pair in token.top],
            }
            for token in tokens
            if token.finish != "stop"
        ]
        if self._asked.is_chat:
            return {"content": scored}
        tops = [{top["token"]: top["logprob"] for top in one["top_logprobs"]} for one in scored]
        return {
            "tokens": [one["token"] for one in scored],
            "token_logprobs": [one["logprob"] for one in scored],
            "top_logprobs": tops,
        }

    def _scored(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._decode([token])
        # A part of a character has bytes that its text does not tell.
        known = None if "\ufffd" in text else list(text.encode())
        logprob = max(logprob, _LEAST_LOGPROB)
        return {"id": token, "token": text, "bytes": known, "logprob": logprob}


def refusal_of(error: Exception) -> Refusal:
    """An error on the way as what a client is told; one that nobody foresaw is printed, too."""
    if isinstance(error, Refusal):
        return error
    told = f"the answer failed: {type(error).__name__}: {brief(error)}"
    print(f"error: {told}", file=sys.stderr)
    return Refusal(500, told)


def _event(body: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
