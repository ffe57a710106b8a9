"""What an app can hold a shipped model to: the answer to one prompt, and the schema of answers."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_itune.dataset.conversation import Turn
from mlx_itune.dataset.schema import read_schema
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.export.gbnf import to_gbnf
from mlx_itune.export.request import Request
from mlx_itune.kit.errors import DataError
from mlx_itune.kit.json_files import write_object
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.loading import base
from mlx_itune.model.loading.base import LoadedModel
from mlx_itune.model.serving.engine import Drawing, Engine, Order, Token

VECTOR, SCHEMA, GRAMMAR = "vector.json", "schema.json", "grammar.gbnf"
_ANSWER_TOKENS = 64
_HELLO = (Turn("user", "Hello, who are you?"),)


@dataclass(frozen=True)
class Vector:
    """A prompt in tokens and text, and the greedy answer to it, its end token included. by: which
    model gave it."""

    v: int
    by: str
    messages: list[dict[str, Any]]
    prompt: str
    prompt_ids: list[int]
    answer: str
    answer_ids: list[int]


def write_contract(request: Request, artefact: Path, stage: Path) -> list[str]:
    """The test vector, and the schema with its grammar, into a bundle; what is to be told of it.
    An MLX directory answers for itself, in another format the model that was converted does."""
    own = artefact if request.format == "mlx" else None
    loaded = base.load(str(own or request.model), compute=request.compute)
    if request.adapter is not None and own is None:
        any_base = request.allow_other_base
        adapters.apply(loaded, adapters.load(request.adapter, any_base=any_base))
    by = "this model" if own else "the model before it was converted"
    vector = _vector(loaded, request, by)
    write_object(stage / VECTOR, vars(vector))
    if request.schema is None:
        return []
    schema = read_schema(request.schema)
    shutil.copyfile(request.schema, stage / SCHEMA)
    try:
        (stage / GRAMMAR).write_text(to_gbnf(schema), encoding="utf-8")
    except DataError as error:
        return [f"no {GRAMMAR}: {error.message}"]
    return []


def _vector(loaded: LoadedModel, request: Request, by: str) -> Vector:
    tokenizer: ChatTokenizer = request.tokenizer
    turns: tuple[Turn, ...] = _HELLO
    tools = list[Any]()
    for row in request.rows.questions[:1]:
        last = max(n for n, turn in enumerate(row.turns) if turn.role == "assistant")
        turns, tools = row.turns[:last] or _HELLO, list(row.tools)
    shown = tokenizer.messages(tokenizer.opened(turns))
    hidden = tokenizer.control_text.hide(tools)
    prompt = tokenizer.render_text(shown, tools=hidden, add_generation_prompt=True)
    ids, ends = tokenizer.encode_ids(prompt), tokenizer.eos_ids
    found: list[int] = []

    def take(token: Token | Exception) -> None:
        if isinstance(token, Exception):
            raise token
        found.append(token.id)

    engine = Engine(loaded.model)
    engine.submit(Order(ids, _ANSWER_TOKENS, ends, Drawing(), take, is_alone=True))
    while engine.step():
        pass
    said = found[:-1] if found[-1:] and found[-1] in ends else found
    messages = [turn.message() for turn in tokenizer.opened(turns)]
    answer = tokenizer.decode(said) if said else ""
    return Vector(1, by, json.loads(json.dumps(messages)), prompt, ids, answer, found)
