"""A model that says what a test wants it to, behind the server's own answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masks.agreement import chat_tokenizer
from masks.families import FAMILIES

import mlx_itune.model  # noqa: F401  (loads the BLAS before mlx.core)
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.inference.answer_forms import form_of
from mlx_itune.inference.openai_request import Desk, Served
from mlx_itune.model.serving.engine import Order, Token

ADD = {
    "type": "function",
    "name": "add",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
}


@dataclass
class Scripted:
    """An engine whose every answer is `text`; error: what ends it instead."""

    chat: ChatTokenizer
    text: str
    ends: bool = True
    error: Exception | None = None

    def submit(self, order: Order) -> None:
        """Answer at once."""
        ids = self.chat.encode_ids(self.text)
        for n, token in enumerate(ids, 1):
            is_last = n == len(ids) and not self.ends
            order.deliver(Token(token, "length" if is_last else None, -0.5))
        if self.error:
            order.deliver(self.error)
        elif self.ends:
            order.deliver(Token(min(order.eos_ids), "stop"))


def desk_of(family: str, folder: Path) -> tuple[Desk, ChatTokenizer]:
    """A desk for one model, `m`, of a family of templates."""
    chat = chat_tokenizer("starter", FAMILIES[family])
    chat.hf.save_pretrained(folder)
    served: Any = Served(None, chat, form_of(folder, chat))
    return Desk({"m": served}, {}, {}, len(chat.hf)), chat
