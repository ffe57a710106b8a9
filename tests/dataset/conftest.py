"""Chat tokenizers of every kind, each built once; files read as rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from chat_templates import CHATML
from small_tokenizers import fast

from mlx_itune.dataset.conversation import Fault
from mlx_itune.dataset.how import Reading
from mlx_itune.dataset.reading import Record, read_records
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from tests.cli.conftest import cli, run  # noqa: F401


@pytest.fixture(scope="session")
def chat() -> Callable[..., ChatTokenizer]:
    """`chat(kind, template)`: a ChatTokenizer over a tiny tokenizer."""

    @cache
    def build(kind: str, template: str = CHATML) -> ChatTokenizer:
        return ChatTokenizer(fast(kind), template)

    return build


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[Record | Fault]]:
    """`read(name, data, **options)`: the rows and faults of a file that holds `data`."""

    def write_and_read(name: str, data: bytes | str, **options: Any) -> list[Record | Fault]:
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        own = {key: options.pop(key) for key in ("header", "on_bytes") if key in options}
        return list(read_records(path, Reading(**options), **own))

    return write_and_read
