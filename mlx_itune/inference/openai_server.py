"""OpenAI's API as an ASGI application, closed to other pages and to other names of this machine."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from mlx_itune import __version__
from mlx_itune.inference import openai_responses
from mlx_itune.inference.chat_page import chat_page
from mlx_itune.inference.http import Gate
from mlx_itune.inference.openai_answer import Completion, refusal_of
from mlx_itune.inference.openai_request import Desk, Refusal, unknown_model
from mlx_itune.inference.openai_responses import ResponseAnswer
from mlx_itune.kit.wording import size
from mlx_itune.model.serving.engine import Engine

_BODY_BYTES = 16_000_000
# How long a client may take to send one.
_BODY_S = 60.0
# No page may show this one within itself, which its own policy cannot say.
_PAGE_HEADERS = {"Content-Security-Policy": "frame-ancestors 'none'", "Cache-Control": "no-store"}
_ALL: Any = {"allow_methods": ["*"], "allow_headers": ["*"], "allow_private_network": True}


def application(
    desk: Desk, engine: Engine, *, hosts: Collection[str] | None, origins: Sequence[str]
) -> ASGIApp:
    """/v1/chat/completions, /v1/completions, /v1/responses, /v1/models, /health, and a page
    at /. hosts: what a request may call this server (None: anything); origins: of pages that may
    use it."""
    about = {"object": "model", "created": int(time.time()), "owned_by": "mlx-itune"}
    models = {name: {"id": name, **about} for name in desk.served}
    reader = ThreadPoolExecutor(1, thread_name_prefix="reader")

    base = next((name for name, each in desk.served.items() if each.adapter is None), None)
    shown = HTMLResponse(chat_page(list(desk.served), base), headers=_PAGE_HEADERS)

    async def front(request: Request) -> Response:
        return shown

    async def health(request: Request) -> Response:
        about = {"models": list(models), "version": __version__}
        return JSONResponse({"status": "ok", **about})

    async def every_model(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": list(models.values())})

    async def one_model(request: Request) -> Response:
        name = unquote(request.path_params["name"])
        if name not in models:
            raise unknown_model(name)
        return JSONResponse(models[name])

    async def complete(request: Request) -> Response:
        data = await asyncio.wait_for(_body(request), _BODY_S)
        path = request.url.path
        reading = functools.partial(desk.read, data, path.endswith("/chat/completions"))
        made: type[Completion] | type[ResponseAnswer] = Completion
        if path == "/v1/responses":
            reading, made = functools.partial(openai_responses.read, desk, data), ResponseAnswer
        asked = await asyncio.get_running_loop().run_in_executor(reader, reading)
        answer = made(asked, engine)
        if not asked.request.stream:
            return JSONResponse(await _unless_gone(request, answer.whole()))
        return StreamingResponse(
            answer.events(),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache"},
            background=BackgroundTask(answer.cancel),
        )

    posts = ("/v1/chat/completions", "/chat/completions", "/v1/completions", "/v1/responses")
    return Starlette(
        routes=[
            Route("/", front),
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
