"""mlx-lm's own server (mlx_lm/server.py) over models that are loaded already.

mlx-lm's classes do the work: batching, prompt caches, sampling, the OpenAI protocol. The
subclasses here change where things come from. Models: from an `AdapterSet`, never by a path or
Hub id that a request names. Prompts: from the desk, which tokenizes as training did. Text: by
`decode` of all the tokens, so that a stop string is found however it is tokenized.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from mlx_lm.models.cache import (
    LRUPromptCache,
    can_trim_prompt_cache,
    trim_prompt_cache,
)
from mlx_lm.server import CompletionRequest, ModelDescription, ModelProvider, ResponseGenerator
from mlx_lm.tokenizer_utils import load as load_tokenizer
from mlx_lm.utils import maybe_set_recommended_wired_limit

from mlx_itune.kit.errors import ModelError
from mlx_itune.model.adapters.adapter_set import AdapterSet
from mlx_itune.model.engine.caches import can_batch


class Refusal(Exception):
    """A request that is not served: an HTTP status and OpenAI's error object."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body = {
            "error": {"message": message, "type": kind, "param": param, "code": code or None}
        }


class Text(Protocol):
    """Token ids in, settled text out (inference/text_stream.py)."""

    ended: bool
    holds: bool

    def push(self, token: int) -> str:
        """The text that a token settles."""

    def finish(self) -> str:
        """What was held back."""


@dataclass(frozen=True)
class Order:
    """A request that is served: `name` of the model, prompt, and the most tokens to answer."""

    name: str
    prompt_ids: Sequence[int]
    max_tokens: int
    text: Callable[[], Text]


class Desk(Protocol):
    """Who reads requests (inference/serve.py)."""

    def models(self) -> Sequence[str]:
        """Every name that a request may ask for, the default first."""

    def checked(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body of a request without what means nothing. Raises Refusal."""

    def order(self, path: str, body: Mapping[str, Any], max_tokens: int) -> Order:
        """What a checked request asks for. Raises Refusal."""


@dataclass(frozen=True)
class Served:
    """A name of the API: the adapter that is on for it (None: the base), and its tokenizer."""

    name: str
    adapter: str | None
    tokenizer: Any


def server_tokenizer(path: Path, template: str, eos_ids: Sequence[int]) -> Any:
    """mlx-lm's tokenizer of a model directory, with the template and ends of turns given.

    Raises ModelError.
    """
    settings = {"trust_remote_code": False, "local_files_only": True, "chat_template": template}
    try:
        return load_tokenizer(path, settings, eos_token_ids=list(eos_ids))
    # transformers and mlx-lm raise whatever they met first.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"mlx-lm cannot load the tokenizer: {reason}", where=str(path)) from error


def settings(*, concurrency: int, cached_prompts: int, origins: Sequence[str]) -> Any:
    """What mlx-lm's server takes from its command line; sampling defaults are greedy."""
    return argparse.Namespace(
        model=None,
        adapter_path=None,
        draft_model=None,
        num_draft_tokens=0,
        trust_remote_code=False,
        chat_template="",
        use_default_chat_template=False,
        chat_template_args={},
        pipeline=False,
        temp=0.0,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        max_tokens=512,
        decode_concurrency=concurrency,
        prompt_concurrency=min(8, concurrency),
        prefill_step_size=2048,
        prompt_cache_size=cached_prompts,
        prompt_cache_bytes=None,
        kv_bits=None,
        kv_group_size=64,
        quantized_kv_start=0,
        allowed_origins=tuple(origins),
    )


class Provider(ModelProvider):  # type: ignore[misc]
    """mlx-lm's model provider over models in memory; a switch puts another adapter on.

    mlx-lm asks for a model only while nothing is being generated, in the thread that generates.
    """

    def __init__(self, adapters: AdapterSet, served: Sequence[Served], options: Any) -> None:
        super().__init__(options)
        self._adapters = adapters
        self._served = {each.name: each for each in served}

    def load_default(self) -> None:
        """Nothing: all models are loaded."""

    def load(
        self, model_path: str, adapter_path: str | None = None, draft_model_path: str | None = None
    ) -> tuple[Any, Any]:
        """(model, tokenizer) of a served name."""
        each = self._served[model_path]
        self._adapters.use(each.adapter)
        self.model_key = (each.name, None, None)
        self.model, self.tokenizer = self._adapters.loaded.model, each.tokenizer
        self.is_batchable = self.cli_args.decode_concurrency > 1 and can_batch(self.model)
        return self.model, self.tokenizer


class PromptCache(LRUPromptCache):  # type: ignore[misc]
    """mlx-lm's cache of prompts. One token, at least, is left to compute: logits come from it."""

    def fetch_nearest_cache(self, model: Any, tokens: list[int]) -> tuple[Any, list[int]]:
        """(cache, tokens that are not in it)."""
        cache, rest = super().fetch_nearest_cache(model, tokens)
        if cache is None or rest:
            return cache, rest
        if can_trim_prompt_cache(cache) and trim_prompt_cache(cache, 1) == 1:
            return cache, tokens[-1:]
        return None, tokens


@dataclass
class Ordered(CompletionRequest):  # type: ignore[misc]
    """mlx-lm's request with what the desk made of it."""

    order: Order


class Engine(ResponseGenerator):  # type: ignore[misc]
    """mlx-lm's generation thread, fed with orders."""

    def generate(
        self,
        request: Ordered,
        generation_args: Any,
        progress_callback: Callable[[int, int], None] | None = None,
    ) -> tuple[Any, Iterator[Any]]:
        """(context, responses), each response with settled text. Raises RuntimeError if stopped."""
        order = request.order
        # Stop strings are ours to find: mlx-lm looks for one way to tokenize them, and goes on
        # after having cut out any other.
        arguments = replace(
            generation_args,
            model=ModelDescription(order.name, None, None),
            stop_words=[],
            max_tokens=order.max_tokens,
        )
        context, responses = super().generate(request, arguments, progress_callback)
        return context, _settled(responses, order.text())

    def _tokenize(
        self, tokenizer: Any, request: Ordered, args: Any
    ) -> tuple[list[int], list[list[int]], list[str], str, None]:
        prompt = list(request.order.prompt_ids)
        state = "normal"
        if request.request_type == "chat" and tokenizer.has_thinking:
            start = tokenizer.rfind_think_start(prompt)
            state = "reasoning" if start > tokenizer.rfind_think_end(prompt) else state
        state = tokenizer.response_initial_state or state
        return prompt, [list(prompt)], ["assistant"], state, None


def engine(provider: Provider) -> Engine:
    """Start the thread that generates."""
    # As mlx-lm's server does: on an Apple GPU the weights then stay resident.
    maybe_set_recommended_wired_limit()
    return Engine(provider, PromptCache(provider.cli_args.prompt_cache_size))


def _settled(responses: Iterator[Any], text: Text) -> Iterator[Any]:
    """One response per token, as they came, with the text that is settled by then.

    A token whose text is still open waits for the next one: mlx-lm's handler counts responses,
    and drops the text of one that says "stop".
    """
    waiting = None
    for response in responses:
        ends = response.finish_reason
        piece = "" if ends == "stop" else text.push(response.token)
        if ends == "length":
            piece += text.finish()
        if waiting is not None:
            if ends == "stop":
                waiting = replace(waiting, text=waiting.text + text.finish())
            yield waiting
            waiting = None
        # Without a reason to finish, mlx-lm's handler takes the end for a "stop".
        response = replace(response, text=piece, finish_reason=None if text.ended else ends)
        if text.ended:
            yield response
            return
        if text.holds:
            waiting = response
        else:
            yield response
    if waiting is not None:
        yield replace(waiting, text=waiting.text + text.finish())
