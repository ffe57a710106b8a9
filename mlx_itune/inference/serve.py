"""An OpenAI-compatible server: a base and its adapters, loaded once, behind uvicorn. The caller's
thread computes, the one that loaded the model: MLX's streams and compiled functions belong to a
thread, and are taken apart with it. HTTP has a thread of its own."""

from __future__ import annotations

import functools
import ipaddress
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer, load_tokenizer
from mlx_itune.inference.answer_forms import form_of
from mlx_itune.inference.http import hosts_of, in_url, listening, server_of, stopping
from mlx_itune.inference.openai_request import DEFAULT, Desk, Served
from mlx_itune.inference.openai_server import application
from mlx_itune.inference.opening import Opening, as_trained
from mlx_itune.inference.prompts import context_tokens
from mlx_itune.kit.errors import ModelError, UsageError
from mlx_itune.model.adapters import adapter as adapter_files
from mlx_itune.model.adapters.adapter import Adapter, AdapterSet
from mlx_itune.model.loading import base
from mlx_itune.model.serving.engine import Engine

_ROUNDED = "rounded keys and values may change an answer; answers are computed one at a time"


@dataclass(frozen=True)
class ServeSettings:
    """adapters: directories, `DIR` or `NAME=DIR`, the first the default; port 0: any free one."""

    model: str
    adapters: Sequence[str] = ()
    host: str = "127.0.0.1"
    port: int = 8080
    template: str | None = None
    compute: str = "auto"
    concurrency: int = 8
    cached_prompts: int = 10
    kv_bits: int | None = None
    allow_other_base: bool = False
    origins: Sequence[str] = ()
    template_option: tuple[str, ...] = ()
    system: str | None = None


@dataclass(frozen=True)
class Listening:
    """What a server says of itself once it answers: the first of `models` is the default."""

    url: str
    models: tuple[str, ...]
    base: str
    compute: str
    context_tokens: int | None
    is_local: bool
    notes: Mapping[str, tuple[str, ...]]


def serve(settings: ServeSettings, *, announce: Callable[[Listening], None]) -> int:
    """Load everything, answer requests until a signal; the number of that signal. `announce` is
    told when requests are answered. Answers under way at the end have some seconds; a second signal
    takes those away. Raises UsageError, ModelError, StorageError."""
    named = {
        name: adapter_files.load(path, any_base=settings.allow_other_base)
        for name, path in _named(settings.adapters).items()
    }
    with listening(settings.host, settings.port) as door:
        desk, engine, about = _opened(settings, named, door)
        hosts = hosts_of(settings.host, door.getsockname()[1])
        app = application(desk, engine, hosts=hosts, origins=settings.origins)
        server = server_of(app)

        def answer() -> None:
            try:
                server.run(sockets=[door])
            finally:
                engine.stop()

        with stopping(server) as signals:
            http = threading.Thread(target=answer, name="http")
            http.start()
            announce(about)
            try:
                engine.run()
            finally:
                server.should_exit = True
                http.join()
    if not signals:
        raise RuntimeError("the server ended by itself")
    return signals[0]


def _opened(
    settings: ServeSettings, named: Mapping[str, Adapter], door: socket.socket
) -> tuple[Desk, Engine, Listening]:
    path = base.resolve(settings.model)
    base.vet(path)
    tokenizers = _tokenizers(path, named, settings)
    loaded = base.load(settings.model, compute=settings.compute)
    if loaded.id in named:
        raise UsageError(f"an adapter cannot have the base's name, {loaded.id}")
    by_text = {chat.template_text: chat for chat in tokenizers.values()}
    forms = {text: form_of(path, chat) for text, chat in by_text.items()}
    for chat in tokenizers.values():
        chat.notes += tuple(filter(None, [forms[chat.template_text].note]))
    engine = Engine(
        loaded.model,
        concurrency=settings.concurrency,
        cached_prompts=settings.cached_prompts,
        kv_bits=settings.kv_bits,
        switch=AdapterSet(loaded, named).use,
    )
    desk = Desk(
        {
            name or loaded.id: Served(name, chat, forms[chat.template_text])
            for name, chat in tokenizers.items()
        },
        {settings.model: loaded.id} if None in tokenizers else {},
        loaded.config,
        engine.vocabulary,
    )
    about = Listening(
        f"http://{in_url(settings.host)}:{door.getsockname()[1]}/v1",
        tuple(desk.served),
        loaded.id,
        loaded.compute,
        context_tokens(loaded.config),
        _is_loopback(settings.host),
        {
            **({"--kv-bits": (_ROUNDED,)} if settings.kv_bits else {}),
            **{name or loaded.id: chat.notes for name, chat in tokenizers.items() if chat.notes},
        },
    )
    return desk, engine, about


def _named(adapters: Sequence[str]) -> dict[str, Path]:
    """Directories by name; a name that is not given is the directory's."""
    found: dict[str, Path] = {}
    for each in adapters:
        name, separator, folder = each.partition("=")
        if not separator or Path(each).is_dir():
            name, folder = Path(each).resolve().name, each
        if not name or not folder:
            raise UsageError(f"--adapter {each!r} is neither DIR nor NAME=DIR")
        if name in found or name == DEFAULT:
            raise UsageError(f"the name {name!r} is taken", hint="give each --adapter as NAME=DIR")
        found[name] = Path(folder)
    return found


def _tokenizers(
    path: Path, adapters: Mapping[str, Adapter], settings: ServeSettings
) -> dict[str | None, ChatTokenizer]:
    """A tokenizer for each adapter, with the template that it was trained with, and for the base.
    A base without a chat template is not served beside adapters that bring one."""
    opened = functools.cache(lambda chosen: load_tokenizer(path, template=chosen))
    found: dict[str | None, ChatTokenizer] = {}
    asked = Opening(
        settings.model,
        template=settings.template,
        template_option=settings.template_option,
        system=settings.system,
    )

    def load(template: str, options: Mapping[str, Any]) -> ChatTokenizer:
        return opened(template).with_options(options)

    for name, adapter in adapters.items():
        found[name] = as_trained(adapter, asked, load)
    try:
        found[None] = as_trained(None, asked, load)
    except ModelError:
        if not adapters:
            raise
    return found


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
