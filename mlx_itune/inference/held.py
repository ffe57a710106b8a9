"""Answers held to a JSON Schema: what the model's tokens are, and where in an answer it begins."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from mlx_itune.dataset.tokens.dialect import MARKS
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.model.serving.grammar import Grammar, Guide, Tokens

_SCHEMAS = 64
# More than the mark that opens a thought has.
_MARK_TOKENS = 16


class Holder:
    """Holds answers of one model to schemas. width: of its logits."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._tokens: dict[frozenset[int], Tokens] = {}
        self._grammar = lru_cache(_SCHEMAS)(self._compiled)

    def guide(
        self,
        tokenizer: ChatTokenizer,
        schema: Mapping[str, Any],
        prompt_ids: Sequence[int],
        max_tokens: int,
    ) -> Guide:
        """For the answer to a prompt; a thought that the prompt opens comes before it. Raises
        DataError for a schema that cannot be kept to, with the path of the keyword."""
        grammar = self._grammar(tokenizer, json.dumps(schema))
        end = tokenizer.decode(prompt_ids[-_MARK_TOKENS:])
        opened = tokenizer.dialect.opened(end).rstrip()
        after = tokenizer.encode_ids(dict(MARKS)[opened]) if opened else ()
        return Guide(grammar, max_tokens, after)

    def _compiled(self, tokenizer: ChatTokenizer, schema: str) -> Grammar:
        # Adapters differ in templates; their tokens are the same.
        ends = tokenizer.eos_ids
        if ends not in self._tokens:
            self._tokens[ends] = Tokens(tokenizer.hf.backend_tokenizer, self._width, ends)
        return Grammar(self._tokens[ends], json.loads(schema))
