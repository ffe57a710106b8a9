"""Caches that are not plain keys and values: windows that roll, states that cannot go back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mlx_itune.inference.generate import Generator
from tests.model.architectures import ARCHITECTURES, build


def generator(model: Any, cached_prompts: int = 0) -> Generator:
    """Tokens as text: each is a character."""
    tokenizer: Any = SimpleNamespace(
        eos_ids=frozenset(), stop_strings=(), decode=lambda ids: "".join(map(chr, ids))
    )
    loaded: Any = SimpleNamespace(model=model)
    return Generator(loaded, tokenizer, cached_prompts=cached_prompts)


@pytest.mark.parametrize("name", [*ARCHITECTURES, "mamba2", "granitemoehybrid"])
def test_kept_caches_and_batches_give_the_answers_of_each_alone(name: str) -> None:
    model = build(name)
    model.eval()
    answers, remembering = generator(model), generator(model, 4)
    text = [7 + (31 * n) % 290 for n in range(40)]
    for _ in range(3):
        answer = "".join(remembering.stream(text, max_tokens=9))
        assert answer == "".join(answers.stream(text, max_tokens=9)), name
        # One token of the answer changes, as when a template rewrites it.
        text = [*text, *map(ord, answer[:-2]), 5, 6, 11]
    texts = [text, *([7 + (31 * n * k) % 290 for n in range(12 * k)] for k in (1, 2, 3))]
    alone = ["".join(answers.stream(each, max_tokens=9)) for each in texts]
    assert answers.batch(texts, 9) == alone
    assert "".join(remembering.stream(text, max_tokens=9)) == alone[0]
