"""The same questions to a base, and to the base with what was learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mlx_itune.dataset.conversation import Conversation
from mlx_itune.inference.evaluate import Observe, answer_questions
from mlx_itune.inference.opening import Opening, open_tokenizer
from mlx_itune.model.adapters import adapter as adapters
from mlx_itune.model.loading.base import load


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
    loaded.model.eval()
    before = answer_questions(loaded, tokenizer, rows, observe=tell("before:"), schema=schema)
    if opening.adapter is not None:
        adapters.apply(loaded, adapters.load(opening.adapter))
        loaded.model.eval()
    after = answer_questions(loaded, tokenizer, rows, observe=tell("after:"), schema=schema)
    return [
        Compared(row, old, new, reference)
        for (row, old, reference), (_, new, _) in zip(before, after, strict=True)
    ]
