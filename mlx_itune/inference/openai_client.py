"""A chat with a model behind an OpenAI-compatible server: on this machine, unless one allows
another."""

from __future__ import annotations

import ipaddress
import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from mlx_itune.kit.errors import ModelError, UsageError
from mlx_itune.kit.network import offline
from mlx_itune.kit.wording import brief

AT_ONCE = 4
_TIMEOUT_S, _LIMIT_BYTES = 120, 1 << 20


@dataclass(frozen=True)
class Server:
    """url: up to and with /v1; flag: what named it. Raises UsageError for one that is elsewhere,
    unless `is_remote_fine`."""

    url: str
    model: str = "default_model"
    is_remote_fine: bool = False
    flag: str = "--server"

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            hint = "for example http://127.0.0.1:8080/v1"
            raise UsageError(f"{self.flag}: {self.url!r} is no address of a server", hint=hint)
        if not _is_here(parts.hostname) and (offline() or not self.is_remote_fine):
            hint = "with --allow-remote prompts and answers are sent there"
            said = f"{self.flag}: {parts.hostname} is another machine"
            raise UsageError(said, hint="--offline opens no way there" if offline() else hint)

    def chat(self, messages: Sequence[Mapping[str, str]], **how: Any) -> tuple[str, str]:
        """(what it answers, "stop" or why it ended); `how`: temperature, max_tokens and others of
        the API. Raises ModelError for what is no answer."""
        body = {
            "model": self.model,
            "messages": [*messages],
            "chat_template_kwargs": {"enable_thinking": False},
            **how,
        }
        request = urllib.request.Request(
            self.url.rstrip("/") + "/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": "Bearer none"},
        )
        # Straight there: a proxy of the environment would be another machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())
        try:
            with opener.open(request, timeout=_TIMEOUT_S) as response:
                choice = json.loads(response.read(_LIMIT_BYTES))["choices"][0]
            text = choice["message"]["content"]
            if not isinstance(text, str):
                raise TypeError("it answers without text")
        except urllib.error.HTTPError as error:
            said = brief(error.read(2000).decode("utf-8", "replace"))
            raise ModelError(f"answers {error.code}: {said}", where=self.url) from error
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise ModelError(f"gives no answer: {brief(error)}", where=self.url) from error
        return text, str(choice.get("finish_reason") or "stop")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A server here does not send what it is asked elsewhere."""

    def redirect_request(self, *args: object, **named: object) -> None:
        return None


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
