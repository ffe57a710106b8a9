"""What a request in OpenAI's form asks for; what of it cannot be served is refused."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, MaxLen

from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.inference.held import Holder
from mlx_itune.inference.prompts import (
    chat_ids,
    context_tokens,
    room_tokens,
    text_ids,
    turns_and_tools,
)
from mlx_itune.kit.errors import DataError, ItuneError, UsageError
from mlx_itune.kit.json_files import parse_object, to_record
from mlx_itune.kit.wording import brief
from mlx_itune.model.serving.engine import Drawing
from mlx_itune.model.serving.grammar import ANY_OBJECT, Guide
from mlx_itune.model.serving.reply import Form

# What mlx-lm's clients say when they do not choose.
DEFAULT = "default_model"
# Fields that change the answer and that this server has nothing for; what is listed changes none.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "suffix": ("",), "tool_choice": ("auto", "none"),
    "modalities": (["text"],), "functions": ([],),
    "function_call": ("auto", "none"), "draft_model": (DEFAULT,), "num_draft_tokens": (0,),
    "role_mapping": ({},), "xtc_probability": (0,),
}  # fmt: skip
NOT_DONE, _TOO_LONG = "unsupported_value", "context_length_exceeded"
_SEEDS = 1 << 63
# A longer prompt is refused unread; a token of ordinary text has three to six characters.
_CHARACTERS_A_TOKEN = 16

TopTokens = Annotated[int, Ge(0), Le(20)]
AnswerTokens = Annotated[int, Ge(1), Le((1 << 31) - 1)]
Shape = Callable[[dict[str, Any]], dict[str, Any]]


class Refusal(Exception):
    """A request that is not served: an HTTP status and OpenAI's error object."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True)
class JsonSchema:
    """A schema as OpenAI's clients send it; its name, description and strictness change nothing:
    what is asked for is kept to."""

    schema: dict[str, Any]


@dataclass(frozen=True)
class ResponseFormat:
    """What an answer is to be."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None


@dataclass(frozen=True)
class StreamOptions:
    """What a stream tells besides the answer."""

    include_usage: bool = False


@dataclass(frozen=True)
class Request(Drawing):
    """The body of a chat request (`messages`, `tools`) or of a completion (`prompt`)."""

    model: str = DEFAULT
    adapters: str | None = None
    messages: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    chat_template_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    prompt: tuple[str, ...] = ()
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: AnswerTokens = 512
    max_completion_tokens: AnswerTokens | None = None
    stop: Annotated[tuple[str, ...], MaxLen(64)] = ()
    response_format: ResponseFormat = ResponseFormat()
    logprobs: bool | TopTokens = False
    top_logprobs: TopTokens = 0

    @property
    def told_logprobs(self) -> int | None:
        """How many likeliest tokens to tell of each; None tells no log-probability at all."""
        if self.logprobs is False:
            return None
        return max(self.top_logprobs, 0 if self.logprobs is True else self.logprobs)


@dataclass(frozen=True)
class Served:
    """A name of the API: the adapter that is on for it (None: the base), how it reads, and how its
    answers are read."""

    adapter: str | None
    tokenizer: ChatTokenizer
    form: Form


@dataclass(frozen=True)
class Asked:
    """A request that is served; max_tokens is what fits the model's context. body: as it came;
    guide: what holds the answer to a schema."""

    request: Request
    body: Mapping[str, Any]
    is_chat: bool
    served: Served
    prompt_ids: Sequence[int]
    max_tokens: int
    stops: Sequence[str]
    guide: Guide | None = None


class Desk:
    """Reads requests. served: by name, the default first; aliases: other names for them."""

    def __init__(
        self,
        served: Mapping[str, Served],
        aliases: Mapping[str, str],
        config: Mapping[str, Any],
        vocabulary: int,
    ) -> None:
        self.served, self._vocabulary = dict(served), vocabulary
        self._names = {**aliases, DEFAULT: next(iter(served)), **{name: name for name in served}}
        self._config = config
        self._holder = Holder(vocabulary)

    def read(self, data: bytes, is_chat: bool, shaped: Shape = dict) -> Asked:
        """What a request asks for, tokenized as in training. shaped: what makes the body of another
        API one of this. Raises Refusal."""
        try:
            body = _body(data)
            return self._asked(_request(shaped(body)), body, is_chat)
        except Refusal:
            raise
        # Libraries in Rust panic past Exception; other requests are none of this one's business.
        except BaseException as error:
            raise Refusal(500, f"the request cannot be read: {brief(error)}") from error

    def _asked(self, request: Request, body: Mapping[str, Any], is_chat: bool) -> Asked:
        name = DEFAULT
        # `model`, or mlx-lm's `adapters` on top of it.
        for field, wanted in (("model", request.model), ("adapters", request.adapters)):
            if wanted is None:
                continue
            if wanted not in self._names:
                raise unknown_model(wanted, field)
            name = self._names[wanted]
        served = self.served[name]
        if any(not 0 <= token < self._vocabulary for token in request.logit_bias):
            raise Refusal(400, "logit_bias names no token of this model", param="logit_bias")
        param = "messages" if is_chat else "prompt"
        context = context_tokens(self._config)
        size = _characters((request.messages, request.tools, request.prompt))
        if context and size > context * _CHARACTERS_A_TOKEN:
            told = f"{size:,} characters, and the model's context is {context:,} tokens"
            raise Refusal(400, f"the prompt has {told}", param=param, code=_TOO_LONG)
        code = None
        try:
            ids = _chat(served, request) if is_chat else _text(served, request.prompt)
            code = _TOO_LONG
            most = request.max_completion_tokens or request.max_tokens
            room = room_tokens(len(ids), self._config, most)
        except DataError as error:
            raise Refusal(400, str(error), param=param, code=code) from error
        guide = self._guide(served, request, ids, room)
        # What is held to a schema ends where it is whole.
        ends = () if guide else served.tokenizer.stop_strings
        stops = (*ends, *filter(None, request.stop))
        return Asked(request, body, is_chat, served, ids, room, stops, guide)

    def _guide(
        self, served: Served, request: Request, ids: Sequence[int], room: int
    ) -> Guide | None:
        form = request.response_format
        if form.type == "text":
            return None
        if request.tools:
            told = f"response_format {form.type} beside tools is not supported"
            raise Refusal(400, told, param="response_format", code=NOT_DONE)
        schema: Mapping[str, Any] = ANY_OBJECT
        if form.type == "json_schema":
            if form.json_schema is None:
                told = "response_format has no json_schema"
                raise Refusal(400, told, param="response_format")
            schema = form.json_schema.schema
        try:
            return self._holder.guide(served.tokenizer, schema, ids, room)
        except ItuneError as error:
            told = f"response_format: {error}"
            raise Refusal(400, told, param="response_format", code=NOT_DONE) from error


def unknown_model(name: str, param: str = "model") -> Refusal:
    """The refusal of a model that is not served."""
    what = f"The model {name[:100]!r} does not exist"
    return Refusal(404, what, param=param, code="model_not_found")


def _body(data: bytes) -> dict[str, Any]:
    """A request's body; null is what is left out."""
    try:
        body = parse_object(data, where=None, error=DataError)
    except DataError as error:
        raise Refusal(400, f"the request {error.message}") from error
    return {key: value for key, value in body.items() if value is not None}


def _request(body: dict[str, Any]) -> Request:
    for key, neutral in _NEUTRAL.items():
        if key in body and body[key] not in neutral:
            shown = f"{key}={body[key]!r}"[:100]
            raise Refusal(400, f"{shown} is not supported", param=key, code=NOT_DONE)
    if body.get("tool_choice") == "none":
        body.pop("tools", None)
    body |= {key: [body[key]] for key in ("stop", "prompt") if isinstance(body.get(key), str)}
    try:
        request = to_record(body, Request, where=None, error=DataError)
    except DataError as error:
        field = re.split(r"\W", error.message, maxsplit=1)[0]
        raise Refusal(400, brief(error.message), param=field if field in body else None) from error
    if request.top_logprobs and request.logprobs is False:
        raise Refusal(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    return dataclasses.replace(request, seed=request.seed and request.seed % _SEEDS)


def _chat(served: Served, request: Request) -> list[int]:
    if not request.messages:
        raise DataError("messages is not a list of messages")
    tokenizer = served.tokenizer
    if told := request.chat_template_kwargs:
        try:
            tokenizer = _told(tokenizer, json.dumps(told, sort_keys=True))
        except UsageError as error:
            raise Refusal(400, error.message, param="chat_template_kwargs") from error
    if request.tools and not tokenizer.dialect.shows_tools:
        raise Refusal(
            400, "this model's chat template has no place for tools", param="tools", code=NOT_DONE
        )
    row = {"messages": list(request.messages), "tools": list(request.tools)}
    return chat_ids(tokenizer, *turns_and_tools(row))


@functools.lru_cache(32)
def _told(tokenizer: ChatTokenizer, options: str) -> ChatTokenizer:
    return tokenizer.with_options({**tokenizer.options, **json.loads(options)})


def _text(served: Served, prompt: Sequence[str]) -> list[int]:
    if len(prompt) != 1 or not prompt[0]:
        raise DataError("prompt is not one text")
    return text_ids(served.tokenizer, prompt[0])


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(len(key) + _characters(item) for key, item in value.items())
    return sum(map(_characters, value)) if isinstance(value, (list, tuple)) else 0
