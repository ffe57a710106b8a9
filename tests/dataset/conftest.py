"""Chat tokenizers of every kind, each built once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from chat_templates import CHATML
from small_tokenizers import fast

from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer


@pytest.fixture(scope="session")
def chat() -> Callable[..., ChatTokenizer]:
    """`chat(kind, template)`: a ChatTokenizer over a tiny tokenizer."""

    @cache
    def build(kind: str, template: str = CHATML) -> ChatTokenizer:
        return ChatTokenizer(fast(kind), template)

    return build
