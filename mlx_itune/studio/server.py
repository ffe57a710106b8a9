"""The studio behind uvicorn: on this machine alone, and for whoever has its token."""

from __future__ import annotations

import hmac
import secrets
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import parse_qs

import click
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_itune.inference.http import Gate, hosts_of, listening, server_of, stopping
from mlx_itune.kit.errors import StorageError
from mlx_itune.studio.forms import Commands
from mlx_itune.studio.jobs import Jobs
from mlx_itune.studio.pages import Studio

HOST = "127.0.0.1"
# Everything inline is named by its hash in a policy of the page; this holds for all of them.
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
_ENTER = '<!DOCTYPE html><meta http-equiv="refresh" content="0;url=/"><a href="/">studio</a>'


@dataclass(frozen=True)
class Opened:
    """Where a studio is once it answers; url: with the token, for its user alone."""

    url: str
    folder: str


def studio(
    folder: Path,
    port: int,
    find: Callable[[str], click.Command | None],
    announce: Callable[[Opened], None],
) -> int:
    """Answer requests until a signal; its number. find: of a name, the command. What it has started
    goes on without it, but for the servers of the page Try. Raises UsageError, StorageError."""
    if not folder.is_dir():
        raise StorageError("is no folder", where=str(folder))
    token = secrets.token_urlsafe(24)
    with listening(HOST, port) as door:
        taken = door.getsockname()[1]
        app = application(folder, find, token=token, hosts=hosts_of(HOST, taken))
        server = server_of(app)
        with stopping(server) as signals:
            http = threading.Thread(target=server.run, kwargs={"sockets": [door]}, name="http")
            http.start()
            announce(Opened(f"http://{HOST}:{taken}/?token={token}", str(folder)))
            while http.is_alive():
                http.join(0.5)
    jobs = Jobs(folder.resolve())
    for job in jobs.all():
        if job.running and job.name == "serve":
            jobs.stop(job.id)
    if not signals:
        raise RuntimeError("the server ended by itself")
    return signals[0]


def application(
    folder: Path,
    find: Callable[[str], click.Command | None],
    *,
    token: str,
    hosts: Collection[str] | None,
) -> ASGIApp:
    """The pages of a folder, for who names one of `hosts` and has the token."""
    made = Studio(Commands(find, folder), Jobs(folder.resolve()))
    return made.application(
        [Middleware(Gate, hosts=hosts, remedy=""), Middleware(Door, token=token)]
    )


class Door:
    """Lets in who has the token: in the address once, then as a cookie that no other site's page
    can send. What changes something must come from a page of the studio."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        # Cookies of one machine are sent to all its ports.
        name = f"studio-{headers[b'host'].rpartition(':')[2]}"
        asked = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])
        app = self._app
        if scope["path"] == "/" and self._is(asked[0]):
            # No redirect: after a click on another site its request would count as theirs.
            app = HTMLResponse(_ENTER)
            app.set_cookie(name, self._token, httponly=True, samesite="strict")
        elif not self._is(_cookie(headers.get(b"cookie", ""), name)):
            told = (
                "403: open the address that `mlx-itune studio` printed; its token is missing here\n"
            )
            app = PlainTextResponse(told, 403)
        elif scope["method"] not in ("GET", "HEAD") and b"origin" not in headers:
            app = PlainTextResponse("403: only the studio's own pages may do this\n", 403)

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        await app(scope, receive, sent)

    def _is(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())


def _cookie(header: str, name: str) -> str:
    try:
        found = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return found.value if found else ""
