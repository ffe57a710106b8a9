"""An OpenAI-compatible server: a base and its adapters, loaded once, on mlx-lm's own server."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer, load_tokenizer
from mlx_itune.inference import openai_request
from mlx_itune.inference.prompts import (
    chat_ids,
    context_tokens,
    room_tokens,
    text_ids,
    turns_and_tools,
)
from mlx_itune.inference.text_stream import TextStream
from mlx_itune.kit.errors import DataError, ModelError, UsageError
from mlx_itune.model.adapters import adapter as adapter_files
from mlx_itune.model.adapters.adapter import Adapter
from mlx_itune.model.adapters.adapter_set import AdapterSet
from mlx_itune.model.loading import base
from mlx_itune.model.serving import answers as serving
from mlx_itune.model.serving.answers import Order, Refusal
from mlx_itune.model.serving.http import Server, unknown_model

# What mlx-lm's clients say when they do not choose.
DEFAULT = "default_model"
# How long answers under way may take once the server is told to stop.
_GRACE_S = 10.0


@dataclass(frozen=True)
class Listening:
    """What a server says of itself once it answers: the first of `models` is the default."""

    url: str
    models: tuple[str, ...]
    base: str
    compute: str
    context_tokens: int | None
    is_local: bool


class FrontDesk:
    """Reads requests: which model, which prompt, which stops.

    tokenizers: by served name, the default first. aliases: other names for them.
    """

    def __init__(
        self,
        tokenizers: Mapping[str, ChatTokenizer],
        aliases: Mapping[str, str],
        config: Mapping[str, Any],
        vocabulary: int,
    ) -> None:
        self._tokenizers = dict(tokenizers)
        default = next(iter(self._tokenizers))
        self._names = {**aliases, DEFAULT: default, **{name: name for name in self._tokenizers}}
        self._config, self._vocabulary = config, vocabulary
        self._lock = threading.Lock()

    def models(self) -> Sequence[str]:
        """Every name that is served."""
        return list(self._tokenizers)

    def checked(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """A body that mlx-lm's handler can read. Raises Refusal."""
        kept = openai_request.checked(body, self._vocabulary)
        name = self._name(kept)
        kept.setdefault("model", name)
        if _is_chat(path):
            if not isinstance(kept.get("messages"), list) or not kept["messages"]:
                raise Refusal(400, "messages is not a list of messages", param="messages")
        else:
            kept["prompt"] = openai_request.text_prompt(kept)
        return kept

    def order(self, path: str, body: Mapping[str, Any], max_tokens: int) -> Order:
        """The prompt of a checked body, tokenized as in training. Raises Refusal."""
        name = self._name(body)
        tokenizer = self._tokenizers[name]
        what = "messages" if _is_chat(path) else "prompt"
        try:
            with self._lock:
                if _is_chat(path):
                    prompt = chat_ids(tokenizer, *turns_and_tools(body))
                else:
                    prompt = text_ids(tokenizer, body["prompt"])
        except DataError as error:
            raise Refusal(400, str(error), param=what) from error
        try:
            room = room_tokens(len(prompt), self._config, max_tokens)
        except DataError as error:
            raise Refusal(400, str(error), param=what, code="context_length_exceeded") from error
        stops = (*tokenizer.stop_strings, *body["stop"])
        return Order(name, prompt, room, lambda: TextStream(tokenizer.decode, stops))

    def _name(self, body: Mapping[str, Any]) -> str:
        """The served name that `model`, or mlx-lm's `adapters`, asks for."""
        found = self._names[DEFAULT]
        # An adapter that is asked for by mlx-lm's field comes on top of the model.
        for field in ("model", "adapters"):
            asked = body.get(field, found)
            if not isinstance(asked, str):
                raise Refusal(400, f"{field} is not a name", param=field)
            if asked not in self._names:
                raise unknown_model(asked, field)
            found = self._names[asked]
        return found


def serve(
    model: str,
    adapters: Sequence[str] = (),
    *,
    announce: Callable[[Listening], None],
    host: str = "127.0.0.1",
    port: int = 8080,
    template: str | None = None,
    compute: str = "auto",
    concurrency: int = 8,
    cached_prompts: int = 10,
    origins: Sequence[str] = (),
    offline: bool = False,
) -> None:
    """Load everything, then answer requests until an exception (Ctrl-C, SIGTERM) ends it.

    adapters: directories, each `DIR` or `NAME=DIR`; the first is the default. `announce` is told
    when requests are answered. Answers under way at the end have some seconds to finish.
    Raises UsageError, ModelError, StorageError.
    """
    named = {name: adapter_files.load(path) for name, path in _named(adapters).items()}
    server = Server(host, port)
    try:
        path = base.resolve(model, offline=offline)
        tokenizers = _tokenizers(path, named, template)
        loaded = base.load(model, compute=compute, offline=offline)
        if loaded.id in named:
            raise UsageError(f"an adapter cannot have the base's name, {loaded.id}")
        switch = AdapterSet(loaded, named)
        theirs = {
            chat: serving.server_tokenizer(path, chat.template_text, sorted(chat.eos_ids))
            for chat in set(tokenizers.values())
        }
        served = [
            serving.Served(name or loaded.id, name, theirs[chat])
            for name, chat in tokenizers.items()
        ]
        desk = FrontDesk(
            {name or loaded.id: chat for name, chat in tokenizers.items()},
            {model: loaded.id} if None in tokenizers else {},
            loaded.config,
            switch.vocabulary(),
        )
        options = serving.settings(
            concurrency=concurrency, cached_prompts=cached_prompts, origins=origins
        )
        engine = serving.engine(serving.Provider(switch, served, options))
    except BaseException:
        server.server_close()
        raise
    try:
        server.ready(desk, engine)
        address = f"[{host}]" if ":" in host else host
        announce(
            Listening(
                f"http://{address}:{server.server_address[1]}/v1",
                tuple(desk.models()),
                loaded.id,
                loaded.compute,
                context_tokens(loaded.config),
                server.is_local,
            )
        )
        server.serve_forever(poll_interval=0.1)
    finally:
        try:
            server.drain(_GRACE_S)
        finally:
            engine.stop_and_join()


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
    path: Path, adapters: Mapping[str, Adapter], template: str | None
) -> dict[str | None, ChatTokenizer]:
    """A tokenizer for each adapter, with the template that it was trained with, and for the base.

    Those with one template share it. A base without a chat template is not served beside adapters
    that bring one.
    """
    opened = functools.cache(lambda chosen: load_tokenizer(path, template=chosen))
    found: dict[str | None, ChatTokenizer] = {}
    for name, adapter in adapters.items():
        found[name] = opened(template or adapter.origin.tokenizer.template or "auto")
        adapter.require_template(found[name].name, found[name].template_sha256)
    try:
        found[None] = opened(template or "auto")
    except ModelError:
        if not adapters:
            raise
    return found


def _is_chat(path: str) -> bool:
    return path.endswith("/chat/completions")
