"""A conversation whose past is not computed again at every turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator as GeneratorOf
from collections.abc import Sequence

from mlx_itune.dataset.conversation import Turn
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.inference.generate import GREEDY, Answer, Generator
from mlx_itune.inference.prompts import chat_ids, room_tokens
from mlx_itune.kit.errors import DataError
from mlx_itune.model.loading.base import LoadedModel
from mlx_itune.model.serving.drawing import Drawing

# Whose computed past is kept: this one, and the one before a reset.
_CONVERSATIONS = 2


class ChatSession:
    """Turns with one model. What a turn shares with the last one comes from the cache.

    Every turn renders the whole conversation through the template, so that a template that drops
    or rewrites earlier turns is followed; only what is the same, token by token, is kept.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        tokenizer: ChatTokenizer,
        stops: Sequence[str] = (),
        *,
        system: str | None = None,
        max_tokens: int = 512,
        drawing: Drawing = GREEDY,
    ) -> None:
        self._config, self._tokenizer = loaded.config, tokenizer
        self._generator = Generator(loaded, tokenizer, stops, cached_prompts=_CONVERSATIONS)
        self._max_tokens, self._drawing = max_tokens, drawing
        self.system = system
        self.turns: list[Turn] = []
        self.last: Answer | None = None
        self.reset()

    def reset(self, system: str | None = None) -> None:
        """Begin again, with another system prompt if one is given."""
        self.system = system if system is not None else self.system
        self.turns = [Turn("system", self.system)] if self.system else []

    def say(self, text: str) -> GeneratorOf[str, None, None]:
        """The pieces of the answer to `text`; both become turns once something was answered.

        An answer that is broken off (close the iterator, or raise into it) stays as far as it got.
        Raises DataError, with the conversation as it was, when it no longer fits the model.
        """
        asked = [*self.turns, Turn("user", text)]
        prompt = chat_ids(self._tokenizer, asked)
        try:
            room = room_tokens(len(prompt), self._config, self._max_tokens)
        except DataError as error:
            raise DataError(error.message, hint="/reset starts a new conversation") from error
        # Another seed for each turn, or the same question would get the same dice.
        seed = (self._drawing.seed or 0) + len(asked)
        drawing = dataclasses.replace(self._drawing, seed=seed)
        self.last = self._generator.stream(prompt, max_tokens=room, drawing=drawing)
        try:
            yield from self.last
        finally:
            self.last.close()
            if self.last.text.strip():
                self.turns = [*asked, Turn("assistant", self.last.text)]
