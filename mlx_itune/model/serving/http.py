"""The HTTP side of mlx-lm's server: OpenAI's errors, and nothing that reaches beyond the models."""

from __future__ import annotations

import contextlib
import io
import ipaddress
import json
import math
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from mlx_lm.server import APIHandler

from mlx_itune.kit.errors import UsageError
from mlx_itune.model.serving.answers import Desk, Engine, Ordered, Refusal

_BODY_BYTES, _LENGTH_DIGITS = 32 << 20, 20
_POSTS = ("/v1/completions", "/v1/chat/completions", "/chat/completions")
_OWN_NAMES = (".localhost", ".local", ".internal")


class Handler(APIHandler):  # type: ignore[misc]
    """mlx-lm's handler; requests are checked before it sees them."""

    # A client that stops sending does not keep its thread for ever.
    timeout = 120
    server: Server
    path: str
    rfile: Any
    body: dict[str, Any]

    def do_GET(self) -> None:
        """/health, /v1/models, /v1/models/NAME."""
        self._serve(self._get)

    def do_POST(self) -> None:
        """/v1/chat/completions, /v1/completions."""
        with self.server.working():
            self._serve(self._post)

    def do_OPTIONS(self) -> None:
        """What a browser asks before it sends a request from another page."""
        self._serve(super().do_OPTIONS)

    def handle_completion(self, request: Any, stop_words: list[str]) -> None:
        """Answer one request; an error on the way is told in the answer's own form."""
        if not self.response_generator.is_healthy:
            raise Refusal(503, "the server's generation thread has stopped; restart it")
        order = self.server.desk.order(self.path, self.body, self.max_tokens)
        ordered = Ordered(**vars(request), order=order)
        try:
            super().handle_completion(ordered, stop_words)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        except Exception as error:
            refusal = Refusal(500, f"the answer failed: {type(error).__name__}: {error}")
            if not self.stream:
                raise refusal from error
            self.wfile.write(f"data: {json.dumps(refusal.body)}\n\n".encode())

    def handle_chat_completions(self) -> Any:
        """mlx-lm's request without its messages: it would fetch whatever image they link to."""
        body, self.body = self.body, {**self.body, "messages": []}
        try:
            return super().handle_chat_completions()
        finally:
            self.body = body

    def validate_model_parameters(self) -> None:
        """As mlx-lm has it, but for the form of the refusal."""
        try:
            super().validate_model_parameters()
        except ValueError as error:
            raise Refusal(400, str(error)) from error

    def completion_usage_response(self, *counts: Any) -> dict[str, Any]:
        """The last chunk of a stream that asked for the usage."""
        return {**super().completion_usage_response(*counts), "object": self.object_type}

    def _serve(self, respond: Any) -> None:
        try:
            self._require_own_host()
            respond()
        except Refusal as refusal:
            self._refuse(refusal)
        except OSError:
            # The client went away, or sends nothing more.
            self.close_connection = True
        except Exception as error:
            self.log_error("%s: %s", type(error).__name__, error)
            self._refuse(Refusal(500, f"{type(error).__name__}: {error}"))

    def _refuse(self, refusal: Refusal) -> None:
        # Headers of an answer that did not come about.
        self._headers_buffer: list[bytes] = []
        with contextlib.suppress(OSError):
            self._send(refusal.status, refusal.body)

    def _get(self) -> None:
        path = urlsplit(self.path).path.rstrip("/")
        if path == "/health":
            self.path = path
            self.handle_health_check()
            return
        if path != "/v1/models" and not path.startswith("/v1/models/"):
            raise Refusal(404, f"no such path: {path}")
        listed = [
            {"id": name, "object": "model", "created": self.created, "owned_by": "mlx-itune"}
            for name in self.server.desk.models()
        ]
        if path == "/v1/models":
            self._send(200, {"object": "list", "data": listed})
            return
        name = unquote(path.removeprefix("/v1/models/"))
        for model in listed:
            if model["id"] == name:
                self._send(200, model)
                return
        raise unknown_model(name)

    def _post(self) -> None:
        self.path = urlsplit(self.path).path
        if self.path not in _POSTS:
            raise Refusal(404, f"no such path: {self.path}")
        body = json.dumps(self.server.desk.checked(self.path, self._body())).encode()
        # mlx-lm's handler reads the body itself: it gets the checked one.
        del self.headers["Content-Length"]
        self.headers["Content-Length"] = str(len(body))
        sent, self.rfile = self.rfile, io.BytesIO(body)
        try:
            super().do_POST()
        finally:
            self.rfile = sent

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise Refusal(411 if not length else 400, "a Content-Length header is required")
        # int() refuses thousands of digits.
        if len(length) > _LENGTH_DIGITS or int(length) > _BODY_BYTES:
            raise Refusal(413, f"the request is larger than {_BODY_BYTES >> 20} MB")
        try:
            body = json.loads(
                self.rfile.read(int(length)),
                parse_constant=_refuse_constant,
                parse_float=_float,
                parse_int=_int,
            )
        except (ValueError, RecursionError) as error:
            raise Refusal(400, f"the request is not JSON: {error}") from error
        if not isinstance(body, dict):
            raise Refusal(400, "the request is not a JSON object")
        return body

    def _send(self, status: int, value: Mapping[str, Any]) -> None:
        body = json.dumps(value).encode()
        self._set_completion_headers(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _require_own_host(self) -> None:
        """A page that points its own name at this machine (DNS rebinding) gets nothing."""
        if not self.server.is_local:
            return
        named = self.headers.get("Host", "localhost")
        try:
            host = urlsplit(f"//{named}").hostname or ""
        except ValueError:
            host = named
        if host != "localhost" and not host.endswith(_OWN_NAMES) and not _is_address(host):
            raise Refusal(403, f"this server answers to localhost, not to {host!r}")


class Server(ThreadingHTTPServer):
    """A listening socket; what arrives waits until the server is `ready` and `serve_forever` runs.

    Raises UsageError when it cannot listen there.
    """

    desk: Desk
    engine: Engine

    daemon_threads = True
    # More clients than five may connect at once.
    request_queue_size = 128

    def __init__(self, host: str, port: int) -> None:
        self._lock = threading.Lock()
        self._at_work = 0
        self.is_local = is_loopback(host)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            self.address_family, address = found[0][0], found[0][4]
            super().__init__(address, Handler)  # type: ignore[arg-type]
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"cannot listen on {host} port {port}: {error}", hint="choose another --port"
            ) from error

    def ready(self, desk: Desk, engine: Engine) -> None:
        """Say who answers."""
        self.desk, self.engine = desk, engine

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer one connection."""
        Handler(self.engine, request, client_address, self, system_fingerprint="mlx-itune")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is no news; anything else is told as the base class does."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """A request is being answered."""
        with self._lock:
            self._at_work += 1
        try:
            yield
        finally:
            with self._lock:
                self._at_work -= 1

    def drain(self, grace_s: float) -> bool:
        """Close the door and wait for the answers under way; False if some were still not done."""
        self.server_close()
        until = time.monotonic() + grace_s
        while self._at_work and time.monotonic() < until:
            time.sleep(0.02)
        return not self._at_work


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def unknown_model(name: str, param: str = "model") -> Refusal:
    """The refusal of a model that is not served."""
    return Refusal(404, f"The model {name!r} does not exist", param=param, code="model_not_found")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


def _float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse_constant(text)


def _int(text: str) -> int:
    # Larger ones are no float either, and would end the thread that draws with them.
    value = int(text)
    return value if abs(value) < 1 << 64 else _refuse_constant(text[:20])
