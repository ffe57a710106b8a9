"""What listens on this machine and whom it lets in: a socket, uvicorn, and a gate that is closed to
other pages and to other names of this machine."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from mlx_itune.inference.openai_request import Refusal
from mlx_itune.kit.errors import UsageError, one_line

# How long answers under way may take once the server is told to stop.
_GRACE_S = 10
_CONNECTIONS_WAITING = 1024
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOCAL = ("localhost", "127.0.0.1", "[::1]")
# Refused pages that are named on stderr, once each.
_PAGES_TOLD = 8


def server_of(app: ASGIApp) -> uvicorn.Server:
    """uvicorn for an application, saying nothing."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=_Http,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            timeout_graceful_shutdown=_GRACE_S,
        )
    )


@contextmanager
def stopping(server: uvicorn.Server) -> Iterator[list[int]]:
    """Signals end the server; those that came."""
    came: list[int] = []

    def stop(signum: int, frame: Any) -> None:
        came.append(signum)
        server.should_exit, server.force_exit = True, len(came) > 1

    wanted = [n for n in _SIGNALS if signal.getsignal(n) != signal.SIG_IGN]
    before = {each: signal.signal(each, stop) for each in wanted}
    try:
        yield came
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


class Gate:
    """Lets in requests that name this server as it is, and that no foreign page has sent."""

    def __init__(
        self,
        app: ASGIApp,
        hosts: Collection[str] | None,
        origins: Sequence[str] = (),
        remedy: str = "; --allow-origin {} lets them",
    ) -> None:
        self._app, self._hosts, self._origins, self._remedy = app, hosts, origins, remedy
        self._told: set[str] = set()

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
            if origin in self._origins or "*" in self._origins or self._is_own(origin, named[0]):
                continue
            told = f"pages of {origin} may not use this server{self._remedy.format(origin)}"
            refusal = Refusal(403, told)
            # A browser shows its page nothing of an answer that is refused.
            if origin not in self._told and len(self._told) < _PAGES_TOLD:
                self._told.add(origin)
                print(f"refused: {one_line(str(refusal))}", file=sys.stderr)
            return refusal
        return None

    def _is_own(self, origin: str, name: str) -> bool:
        """Whether a page is the one that this server shows; where it goes by any name, only under
        an address, which nobody can point elsewhere."""
        if self._hosts is None and not re.fullmatch(r"[\d.]+(:\d+)?|\[[\da-f:.]+\](:\d+)?", name):
            return False
        return origin.lower() == f"http://{name}"


class _Http(H11Protocol):
    """uvicorn's own, with OpenAI's error for what is no HTTP request."""

    def send_400_response(self, msg: str) -> None:
        body = json.dumps(Refusal(400, msg).body)
        head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close"
        self.transport.write(f"HTTP/1.1 400 Bad Request\r\n{head}\r\n\r\n{body}".encode())
        self.transport.close()


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; who connects waits until the server is ready. Raises UsageError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_CONNECTIONS_WAITING)
    except (OSError, OverflowError) as error:
        what = f"cannot listen on {host} port {port}: {error}"
        raise UsageError(what, hint="choose another --port") from error


def hosts_of(host: str, port: int) -> frozenset[str] | None:
    """What requests may call this server; None where `--host` is every address."""
    if host in ("0.0.0.0", "::"):
        return None
    names = {*_LOCAL, in_url(host).lower()}
    return frozenset(f"{name}:{port}" for name in names) | (names if port == 80 else set())


def in_url(host: str) -> str:
    """An address as a URL has it."""
    return f"[{host}]" if ":" in host else host
