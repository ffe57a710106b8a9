"""The same questions to a base, and to the base with what was learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mlx_itune.dataset.conversation import Conversation
from mlx_itune.inference.evaluate import EvalSettings, Observe, answer_questions, question
from mlx_itune.inference.opening import Opening, open_tokenizer
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.loading.base import load

_MOST_TOKENS = 512


class Compared(NamedTuple):
    """A row with its known answer, and what both models say."""

    row: Conversation
    before: str
    after: str
    reference: str


def before_and_after(
    opening: Opening,
    rows: Sequence[Conversation],
    tell: Callable[[str], Observe],
    schema: Mapping[str, Any] | None = None,
) -> list[Compared]:
    """Greedy answers to the rows that ask something, without and with `opening.adapter`. tell: what
    is told of progress, by "before:" or "after:"; schema: what answers are held to. Raises
    ModelError, StorageError."""
    tokenizer = open_tokenizer(opening)
    loaded = load(opening.model, compute=opening.compute)
    known = [pair[1] for row in rows if (pair := question(row, tokenizer))]
    longest = max((len(tokenizer.encode_ids(text)) for text in known), default=0)
    # A base model writes on until it is stopped: no longer than an answer could need.
    limits = EvalSettings(max_new_tokens=min(_MOST_TOKENS, longest + longest // 2 + 16))
    loaded.model.eval()
    before = answer_questions(loaded, tokenizer, rows, limits, tell("before:"), schema)
    if opening.adapter is not None:
        adapters.apply(loaded, adapters.load(opening.adapter))
        loaded.model.eval()
    after = answer_questions(loaded, tokenizer, rows, limits, tell("after:"), schema)
    return [
        Compared(row, old, new, reference)
        for (row, old, reference), (_, new, _) in zip(before, after, strict=True)
    ]
