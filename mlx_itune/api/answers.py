"""Answers: a model that is loaded once, one answer of a model, and many."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mlx_itune.dataset.conversation import Turn
from mlx_itune.dataset.schema import read_schema
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.inference.generate import Answer, ChatSession, Generator, answer_all
from mlx_itune.inference.opening import Opening, open_model
from mlx_itune.inference.prompts import Asked, Prompt, room_tokens, turns_and_tools
from mlx_itune.kit.errors import UsageError
from mlx_itune.kit.settings import records
from mlx_itune.model.loading.base import LoadedModel
from mlx_itune.model.serving.engine import Drawing
from mlx_itune.training.run.naming import adapter_at, base_of

if TYPE_CHECKING:
    from mlx_itune.inference.serve import Listening

PathLike = str | Path
# Words of a user, or messages as OpenAI's API takes them.
Asking = str | Sequence[Mapping[str, Any]]
Schema = Mapping[str, Any] | PathLike | None
_DRAWING = "temperature top_p top_k min_p repetition_penalty seed"


@dataclass(frozen=True)
class Generated:
    """An answer. `finish_reason`: "stop", or "length" where it was cut at `max_tokens`; shortened:
    whether it was ended as its schema allows, because they ran short."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str | None
    wall_s: float
    shortened: bool


class Model:
    """A model, an adapter on it where one was given, and the tokenizer, loaded once by `load`. It
    belongs to the thread that loaded it. `notes`: what is not as it was in training."""

    def __init__(self, loaded: LoadedModel, tokenizer: ChatTokenizer) -> None:
        self._loaded, self._tokenizer = loaded, tokenizer
        self.id, self.notes = loaded.id, tokenizer.notes

    def __repr__(self) -> str:
        return f"<Model {self.id}>"

    def generate(self, prompt: Asking, **how: Any) -> Generated:
        """The answer to what a user says, or to messages ({"role", "content"}). `how`: max_tokens
        (512), stops, raw (no chat template), schema (a JSON Schema or its file, which the answer is
        held to), temperature (0: greedy), top_p, top_k, min_p, repetition_penalty, seed. Raises
        DataError for a prompt that does not fit and a schema that cannot be kept, UsageError."""
        began, pieces = time.monotonic(), self.stream(prompt, **how)
        for _ in pieces:
            pass
        return pieces.whole(began)

    def stream(
        self,
        prompt: Asking | Prompt,
        *,
        max_tokens: int = 512,
        stops: Sequence[str] = (),
        raw: bool = False,
        schema: Schema = None,
        **drawing: Any,
    ) -> Pieces:
        """The same, piece by piece while it is computed; leave it whenever it is enough."""
        how = _drawing(drawing)
        ids = _prompt(prompt, raw).ids(self._tokenizer)
        room = room_tokens(len(ids), self._loaded.config, max_tokens)
        generator = Generator(self._loaded, self._tokenizer, stops, schema=_schema(schema))
        return Pieces(generator.stream(ids, max_tokens=room, drawing=how), len(ids))

    def answers(
        self,
        prompts: PathLike | Sequence[Asking | Prompt],
        *,
        max_tokens: int = 512,
        stops: Sequence[str] = (),
        batch_size: int = 32,
        schema: Schema = None,
        observe: Callable[[int], None] | None = None,
        **how: Any,
    ) -> list[dict[str, Any]]:
        """The answers to many prompts, or to those of a file (.jsonl with "prompt" or "messages",
        else one a line), in order, `batch_size` at a time, each the same as alone: index, id,
        prompt, reference, text, prompt_tokens, completion_tokens, finish_reason. `observe` is told
        how many are done. Raises DataError, naming the row, before anything is computed."""
        raw = bool(how.pop("raw", False))
        drawing = _drawing(how)
        if isinstance(prompts, str | Path):
            asked = Asked(file=Path(prompts), raw=raw).prompts(str)
        else:
            asked = [_prompt(each, raw) for each in prompts]
        return answer_all(
            self._loaded,
            self._tokenizer,
            asked,
            max_tokens=max_tokens,
            drawing=drawing,
            stops=stops,
            batch_size=batch_size,
            schema=_schema(schema),
            observe=observe,
        )

    def chat(
        self,
        *,
        system: str | None = None,
        max_tokens: int = 512,
        stops: Sequence[str] = (),
        schema: Schema = None,
        **drawing: Any,
    ) -> ChatSession:
        """A conversation: `"".join(session.say("Hello"))`; what turns share is computed once."""
        how = _drawing(drawing)
        return ChatSession(
            self._loaded,
            self._tokenizer,
            stops,
            system=system,
            max_tokens=max_tokens,
            drawing=how,
            schema=_schema(schema),
        )


class Pieces(Iterator[str]):
    """The pieces of an answer, computed as they are asked for."""

    def __init__(self, answer: Answer, prompt_tokens: int) -> None:
        self._answer, self._prompt_tokens = answer, prompt_tokens

    def __next__(self) -> str:
        return next(self._answer)

    def close(self) -> None:
        """Break it off; what there is stays."""
        self._answer.close()

    def whole(self, began: float) -> Generated:
        """What there is by now, of an answer that began so (time.monotonic())."""
        answer, wall_s = self._answer, time.monotonic() - began
        counts = self._prompt_tokens, answer.completion_tokens
        return Generated(answer.text, *counts, answer.finish_reason, wall_s, answer.is_shortened)


def load(model: str | None = None, *, adapter: PathLike | None = None, **how: Any) -> Model:
    """Load a base, adapted or fused model: 'starter', a directory or a Hub id; where there is an
    adapter (its folder, or the run that made it: "last"), its base unless named. `how`: template,
    template_option, system, compute, allow_other_base. Raises ModelError, StorageError."""
    return Model(*open_model(opening_of(model, adapter, how)))


def opening_of(
    model: str | None, adapter: PathLike | None, how: Mapping[str, Any], runs: PathLike = "runs"
) -> Opening:
    """A model and an adapter as they are named, where they are. Raises ModelError, UsageError."""
    (opening,) = records({**how, **placed(model, adapter, runs)}, Opening)
    return cast("Opening", opening)


def placed(model: str | None, adapter: PathLike | None, runs: PathLike = "runs") -> dict[str, Any]:
    """The same as fields of an `Opening`."""
    place = adapter_at(str(adapter), Path(runs)) if adapter is not None else None
    if model is None and place is None:
        raise UsageError("there is no model", hint="name it, or an adapter that knows its base")
    named = base_of(place, Path(runs)) if model is None and place else str(model)
    return {"model": named, "adapter": place}


def generate(
    model: str | None, prompt: Asking, *, adapter: PathLike | None = None, **how: Any
) -> Generated:
    """One answer of a model: `load`, then `Model.generate`, with the settings of both."""
    opening = {name: how.pop(name) for name in Opening.__annotations__ if name in how}
    return load(model, adapter=adapter, **opening).generate(prompt, **how)


def serve(
    model: str | None = None,
    *,
    adapters: Sequence[PathLike] = (),
    announce: Callable[[Listening], None] = lambda about: None,
    **settings: Any,
) -> int:
    """Answer requests over OpenAI's API on this machine, in the main thread, until a signal; its
    number. `adapters`: folders, runs or NAME=folder; a request chooses by name. `announce` is told
    the address once requests are answered. `settings`: host, port (0: any free one), concurrency,
    cached_prompts, origins, template, system, compute. Raises UsageError, ModelError."""
    from mlx_itune.inference import serve as server

    named = tuple(map(str, adapters))
    if model is None:
        model = opening_of(None, named[0].rpartition("=")[-1] if named else None, {}).model
    (asked,) = records({**settings, "model": str(model), "adapters": named}, server.ServeSettings)
    return server.serve(asked, announce=announce)


def _drawing(given: Mapping[str, Any]) -> Drawing:
    if isinstance(whole := given.get("drawing"), Drawing):
        return whole
    (drawing,) = records(given, (Drawing, _DRAWING))
    return cast("Drawing", drawing)


def _schema(schema: Schema) -> Mapping[str, Any] | None:
    return read_schema(Path(schema)) if isinstance(schema, str | Path) else schema


def _prompt(asked: Asking | Prompt, raw: bool) -> Prompt:
    if isinstance(asked, Prompt):
        return asked
    if not isinstance(asked, str):
        turns, tools = turns_and_tools({"messages": [*asked]})
        return Prompt(turns, tools)
    if not asked.strip():
        raise UsageError("the prompt is empty", hint="give it some words")
    return Prompt(text=asked) if raw else Prompt((Turn("user", asked),))
