"""OpenAI's API as an ASGI application, closed to other pages and to other names of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mlx_itune.inference.openai_request import Asked, Desk, Refusal, unknown_model
from mlx_itune.kit.wording import brief, size
from mlx_itune.model.serving.engine import Engine, Order, Token
from mlx_itune.model.serving.reply import Reply, TextStream

_BODY_BYTES = 16_000_000
# How long a client may take to send one.
_BODY_S = 60.0
_LEAST_LOGPROB = -9999.0
_ALL: Any = {"allow_methods": ["*"], "allow_headers": ["*"], "allow_private_network": True}


def application(
    desk: Desk, engine: Engine, *, hosts: Collection[str] | None, origins: Sequence[str]
) -> ASGIApp:
    """/v1/chat/completions, /v1/completions, /v1/models, /health. hosts: what a request may call
    this server (None: anything); origins: of pages that may use it."""
    about = {"object": "model", "created": int(time.time()), "owned_by": "mlx-itune"}
    models = {name: {"id": name, **about} for name in desk.served}
    reader = ThreadPoolExecutor(1, thread_name_prefix="reader")

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def every_model(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": list(models.values())})

    async def one_model(request: Request) -> Response:
        name = unquote(request.path_params["name"])
        if name not in models:
            raise unknown_model(name)
        return JSONResponse(models[name])

    async def complete(request: Request) -> Response:
        data = await asyncio.wait_for(_body(request), _BODY_S)
        is_chat = request.url.path.endswith("/chat/completions")
        loop = asyncio.get_running_loop()
        asked = await loop.run_in_executor(reader, desk.read, data, is_chat)
        answer = OpenAIAnswer(asked, engine)
        if not asked.request.stream:
            return JSONResponse(await _unless_gone(request, answer.whole()))
        return StreamingResponse(
            answer.events(),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache"},
            background=BackgroundTask(answer.cancel),
        )

    posts = ("/v1/chat/completions", "/chat/completions", "/v1/completions")
    return Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/models", every_model),
            Route("/v1/models/{name:path}", one_model),
            *(Route(path, complete, methods=["POST"]) for path in posts),
        ],
        middleware=[
            Middleware(Gate, hosts=hosts, origins=origins),
            Middleware(CORSMiddleware, allow_origins=origins, **_ALL),
        ],
        exception_handlers=dict.fromkeys((HTTPException, Refusal, Exception), _refused),
    )


class Gate:
    """Lets in requests that name this server as it is, and that no foreign page has sent."""

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None, origins: Sequence[str]) -> None:
        self._app, self._hosts, self._origins = app, hosts, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and (refusal := self._refusal(scope["headers"])) is not None:
            app = JSONResponse(refusal.body, refusal.status)
        await app(scope, receive, send)

    def _refusal(self, headers: Sequence[tuple[bytes, bytes]]) -> Refusal | None:
        named = [value.decode("latin-1").lower() for name, value in headers if name == b"host"]
        if len(named) != 1 or (self._hosts is not None and named[0] not in self._hosts):
            # A page that points its own name at this machine (DNS rebinding) gets nothing.
            return Refusal(403, f"this server does not answer to {', '.join(named) or 'no name'}")
        for origin in (value.decode("latin-1") for name, value in headers if name == b"origin"):
            if origin not in self._origins and "*" not in self._origins:
                told = f"may not use this server; --allow-origin {origin} lets them"
                return Refusal(403, f"pages of {origin} {told}")
        return None


async def _body(request: Request) -> bytes:
    told = request.headers.get("content-length", "0")
    data = bytearray()
    if int(told) <= _BODY_BYTES:
        async for chunk in request.stream():
            data += chunk
            if len(data) > _BODY_BYTES:
                break
        else:
            return bytes(data)
    raise Refusal(413, f"the request is larger than {size(_BODY_BYTES)}")


async def _unless_gone(request: Request, answer: Awaitable[Any]) -> Any:
    """What `answer` gives; a client that leaves cancels it."""
    waiting = asyncio.current_task()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        if waiting is not None:
            waiting.cancel()

    watcher = asyncio.create_task(watch())
    try:
        return await answer
    finally:
        watcher.cancel()


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        what = f"{request.method} {request.url.path}: {error.detail.lower()}"
        return JSONResponse(Refusal(error.status_code, what).body, error.status_code, error.headers)
    if isinstance(error, (ClientDisconnect, asyncio.TimeoutError)):
        error = Refusal(408, "the request did not arrive")
    refusal = refusal_of(error)
    return JSONResponse(refusal.body, refusal.status)


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
