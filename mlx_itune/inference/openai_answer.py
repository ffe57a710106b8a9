"""The answer to one request, in the form of OpenAI's chat completions and completions."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_itune.inference.answer_forms import reply_to
from mlx_itune.inference.openai_request import Asked, Refusal
from mlx_itune.kit.wording import brief
from mlx_itune.model.serving.engine import Engine, Order, Token
from mlx_itune.model.serving.text_stream import TextStream

_LEAST_LOGPROB = -9999.0
_SHORTENED = "max_tokens ran short: the answer was brought to an end that the schema allows"


@dataclass(frozen=True)
class Part:
    """Some of an answer. said: what it adds, by OpenAI's names; scored: its tokens with their
    log-probabilities, where they are asked for; finish: how the answer ends, if it does here."""

    said: dict[str, Any]
    scored: Sequence[dict[str, Any]]
    finish: str | None


class Answer:
    """What comes of one request, part by part."""

    def __init__(self, asked: Asked, engine: Engine) -> None:
        self.asked, self._engine, self._loop = asked, engine, asyncio.get_running_loop()
        self._arrived: asyncio.Queue[Token | Exception] = asyncio.Queue()
        self.tokens = 0
        self.order = Order(
            asked.prompt_ids,
            asked.max_tokens,
            asked.served.tokenizer.eos_ids,
            asked.request,
            self._deliver,
            is_alone=asked.request.has_own_dice,
            logprobs=asked.request.told_logprobs,
            adapter=asked.served.adapter,
            guide=asked.guide,
        )

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self.order.is_cancelled = True

    @property
    def notes(self) -> dict[str, Any]:
        """What a client is told of an answer beside how long it is."""
        guide = self.asked.guide
        return {"notes": [_SHORTENED]} if guide and guide.is_shortened else {}

    async def parts(self) -> AsyncIterator[Part]:
        """The answer as it comes; the last part has its end."""
        served, request = self.asked.served, self.asked.request
        text = TextStream(self._decode, self.asked.stops)
        reply = reply_to(served.form, served.tokenizer, self.asked.prompt_ids, request.tools)
        guide, scores = self.asked.guide, _Scores(self.asked, self._decode)
        self._engine.submit(self.order)
        finish = None
        try:
            while finish is None:
                token = await self._arrived.get()
                if isinstance(token, Exception):
                    raise token
                self.tokens += 1
                piece, finish = text.take(token.id, token.finish)
                scored = list(scores.told(token, len(piece), finish))
                said = {"content": piece} if piece else {}
                # What is held to a schema is its text, whatever marks that spells.
                if self.asked.is_chat and not (guide and guide.is_whole):
                    said = reply.push(piece, is_last=finish is not None)
                    finish = "tool_calls" if finish == "stop" and reply.calls else finish
                yield Part(said, scored, finish)
        finally:
            self.cancel()

    def _deliver(self, event: Token | Exception) -> None:
        # The loop has ended where the server has.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._arrived.put_nowait, event)

    def _decode(self, ids: Sequence[int]) -> str:
        try:
            return self.asked.served.tokenizer.decode(ids)
        # A panic of Rust's, which is no Exception, is this answer's only.
        except BaseException as error:
            raise RuntimeError(f"the tokenizer gave up: {brief(error)}") from error


class Completion(Answer):
    """A chat completion, or a completion of plain text, whole or as events."""

    def __init__(self, asked: Asked, engine: Engine) -> None:
        super().__init__(asked, engine)
        self._id = f"{'chatcmpl' if asked.is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        whole: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
        scored, finish = list[dict[str, Any]](), None
        async for part in self.parts():
            finish = part.finish
            scored += part.scored
            for key, value in part.said.items():
                whole[key] += value
        choice: dict[str, Any] = {"text": whole["content"]}
        if self.asked.is_chat:
            for call in whole["tool_calls"]:
                del call["index"]
            more = {key: whole[key] for key in ("reasoning_content", "tool_calls") if whole[key]}
            choice = {"message": {"role": "assistant", "content": whole["content"] or None, **more}}
        choice |= {"finish_reason": finish, "logprobs": self._logprobs(scored)}
        return {**self._around([choice]), "usage": self._usage()}

    async def events(self) -> AsyncIterator[str]:
        """The answer as server-sent events, whose end is `[DONE]`."""
        role = {"role": "assistant"}
        try:
            async for part in self.parts():
                if not (part.said or part.finish or part.scored):
                    continue
                choice: dict[str, Any] = {"text": part.said.get("content", "")}
                if self.asked.is_chat:
                    choice, role = {"delta": {**role, **part.said}}, {}
                choice |= {"finish_reason": part.finish, "logprobs": self._logprobs(part.scored)}
                yield event(self._around([choice]))
            if self.asked.request.stream_options.include_usage:
                yield event({**self._around([]), "usage": self._usage()})
        except Exception as error:
            yield event(refusal_of(error).body)
        yield "data: [DONE]\n\n"

    def _around(self, choices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        request, is_chat = self.asked.request, self.asked.is_chat
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
        prompt = len(self.asked.prompt_ids)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.tokens,
            "total_tokens": prompt + self.tokens,
            "prompt_tokens_details": {"cached_tokens": self.order.cached_tokens},
            **self.notes,
        }

    def _logprobs(self, scored: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        if self.order.logprobs is None:
            return None
        if self.asked.is_chat:
            return {"content": [{k: v for k, v in one.items() if k != "at"} for one in scored]}
        return {
            "tokens": [_named(one) for one in scored],
            "token_logprobs": [one["logprob"] for one in scored],
            # The token itself, too, where it is none of the likeliest.
            "top_logprobs": [
                {_named(top): top["logprob"] for top in (*one["top_logprobs"], one)}
                for one in scored
            ],
            "text_offset": [one["at"] for one in scored],
        }


class _Scores:
    """Log-probabilities of tokens, told with the text that they make. `at`: where a token begins in
    the answer, in characters."""

    def __init__(self, asked: Asked, decode: Any) -> None:
        self._asked, self._decode = asked, decode
        self._is_wanted = asked.request.told_logprobs is not None
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._at = self._shown = 0
        self._held: list[dict[str, Any]] = []

    def told(self, token: Token, shown: int, finish: str | None) -> Iterator[dict[str, Any]]:
        """What can be told once a token has come, and `shown` more characters of text with it."""
        if not self._is_wanted:
            return
        if token.finish != "stop":
            scored = self._scored(token.id, token.logprob)
            tops = [self._scored(*pair) for pair in token.top]
            self._held.append({**scored, "top_logprobs": tops, "at": self._at})
            self._at += len(self._characters.decode(bytes(scored["bytes"] or ())))
        self._shown += shown
        is_cut = finish == "stop" and token.finish != "stop"
        while self._held and (self._held[0]["at"] < self._shown or (finish and not is_cut)):
            yield self._held.pop(0)

    def _scored(self, token: int, logprob: float) -> dict[str, Any]:
        raw = self._asked.served.tokenizer.token_bytes(token)
        if raw is None:
            raw = self._decode([token]).encode()
        # SentencePiece's space before the first word of a text is none of the text.
        elif not self._at and raw[:1] == b" " and self._decode([token]).encode() == raw[1:]:
            raw = raw[1:]
        logprob = max(logprob, _LEAST_LOGPROB)
        # A part of a character as OpenAI writes it: \xf0\x9f
        text = raw.decode("utf-8", "backslashreplace")
        return {"id": token, "token": text, "bytes": list(raw), "logprob": logprob}


def _named(scored: Mapping[str, Any]) -> str:
    """A token as completions name it: what is no text is marked."""
    text = str(scored["token"])
    return text if text.encode() == bytes(scored["bytes"]) else f"bytes:{text}"


def refusal_of(error: Exception) -> Refusal:
    """An error on the way as what a client is told; one that nobody foresaw is printed, too."""
    if isinstance(error, Refusal):
        return error
    told = f"the answer failed: {type(error).__name__}: {brief(error)}"
    print(f"error: {told}", file=sys.stderr)
    return Refusal(500, told)


def event(body: Mapping[str, Any], name: str | None = None) -> str:
    """A server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(body, ensure_ascii=False)}\n\n"
