"""Control strings in content: told apart from the template's own, and tokenized as plain text.

A user's text may spell `<|im_end|>` or `</s>`. Tokenized as it stands, it would end the turn. So
a control string in content is replaced, before the template sees it, by private-use characters of
the same length; once the text is rendered, what is spelled out is the template's own, and becomes a
private name that a shadow of the tokenizer knows as that token, while the content gets its
characters back, which the shadow does not know as anything but text. Nothing changes length, so
character ranges stay true, and the text is still tokenized once and whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mlx_itune.dataset.conversation import Turn
from mlx_itune.kit.errors import DataError

# Plane 16 is for private use and, unlike plane 15, holds no icon font in wide use.
_IN_CONTENT = 0x100000
_IN_TEMPLATE = 0x108000
_RESERVED = re.compile("[\U00100000-\U0010fffd]")
_HIDDEN = re.compile("[\U00100000-\U00107fff]+")
_PLACES = 0x8000

Message = Mapping[str, Any]


class ControlText:
    """Control strings of one tokenizer: finds, hides and restores them. `special`: the texts of
    special tokens and their ids. `markup`: other added tokens that the template writes, such as
    `<think>`, which a reply may contain, but no user or tool."""

    def __init__(self, special: Mapping[str, int], markup: Mapping[str, int]) -> None:
        self._ids = {**markup, **special}
        self._names = sorted(self._ids)[:_PLACES]
        self._hide = {n: chr(_IN_CONTENT + i) * len(n) for i, n in enumerate(self._names)}
        self._shadow = {n: chr(_IN_TEMPLATE + i) * len(n) for i, n in enumerate(self._names)}
        self._first = {name[0] for name in self._ids if name}
        self._special, self._any = _any_of(special), _any_of(self._ids)

    def spelled_by(self, turn: Turn) -> bool:
        """Whether a turn's text holds a control string (in a reply: a special token)."""
        spelled = self._special if turn.role == "assistant" else self._any
        thought = turn.reasoning or ""
        return bool(spelled.search(turn.content) or self._any.search(thought))

    def spans(self, text: str) -> list[tuple[int, int, int]]:
        """Each special token spelled out in `text` as (start, end, id)."""
        return [(m.start(), m.end(), self._ids[m.group()]) for m in self._special.finditer(text)]

    def first(self, text: str) -> str:
        """The first control string in `text`; its first word if it has none."""
        found = self._any.search(text)
        return found.group() if found else next(iter(text.split()), text)

    def hide(self, value: Any, *, in_reply: bool = False) -> Any:
        """`value` (text, or JSON of texts) with its control strings hidden. Raises DataError for a
        text that uses the private characters itself."""
        if isinstance(value, str):
            if not value.isascii() and _RESERVED.search(value):
                raise _reserved()
            spelled = self._special if in_reply else self._any
            return spelled.sub(lambda found: self._hide[found.group()], value)
        if isinstance(value, Mapping):
            return {self.hide(k): self.hide(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.hide(item) for item in value]
        return value

    def joined(
        self, text: str, messages: Sequence[Message], render: Callable[[Sequence[Message]], str]
    ) -> bool:
        """Whether `text`, rendered from `messages`, spells more than what the template writes. That
        is what it spells where no content holds a character that begins a control string. A reply
        may write markup, as a whole or in parts that the template joins."""
        away = str.maketrans(dict.fromkeys(self._first, chr(_IN_CONTENT + _PLACES - 1)))
        for pattern, in_replies in ((self._special, True), (self._any, False)):
            apart = [
                {**m, "content": str(m["content"]).translate(away)}
                if in_replies or m["role"] != "assistant"
                else m
                for m in messages
            ]
            if apart != list(messages) and _count(pattern, text) > _count(pattern, render(apart)):
                return True
        return False

    def is_hidden_in(self, text: str) -> bool:
        """Whether a rendered text holds hidden control strings."""
        return not text.isascii() and _HIDDEN.search(text) is not None

    def shadow_text(self, text: str) -> str:
        """A rendered text as the shadow tokenizer reads it. Raises DataError."""

        def names(hidden: re.Match[str]) -> str:
            run, found = hidden.group(), []
            while run:
                index = ord(run[0]) - _IN_CONTENT
                if index >= len(self._names):
                    raise _reserved()
                found.append(self._names[index])
                run = run[len(found[-1]) :]
            return "".join(found)

        return _HIDDEN.sub(names, self._any.sub(lambda m: self._shadow[m.group()], text))

    def shadow_tokenizer(self, backend: Any) -> Any:
        """A copy of the tokenizer `backend` that knows control tokens by private names only. Ids
        stay as they are. Raises DataError where the library numbers them anew."""
        from tokenizers import Tokenizer

        def renamed(text: Any) -> Any:
            return self._shadow.get(text, text)

        state = json.loads(backend.to_str())
        for token in state["added_tokens"]:
            token["content"] = renamed(token["content"])
        # The model's vocabulary may spell control tokens too, and could merge its way there.
        model = state["model"]
        if isinstance(vocab := model.get("vocab"), dict):
            model["vocab"] = {renamed(text): i for text, i in vocab.items()}
        elif isinstance(vocab, list):
            model["vocab"] = [[renamed(text), score] for text, score in vocab]
        if "merges" in model:
            pairs = [m if isinstance(m, list) else m.split(" ", 1) for m in model["merges"]]
            model["merges"] = [
                pair for pair in pairs if self._shadow.keys().isdisjoint(("".join(pair), *pair))
            ]
        if "unk_token" in model:
            model["unk_token"] = renamed(model["unk_token"])
        shadow = Tokenizer.from_str(json.dumps(state))
        if any(shadow.token_to_id(self._shadow[n]) != self._ids[n] for n in self._names):
            raise DataError("this tokenizer cannot read control strings as plain text")
        return shadow


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    # Longest first, so that a token never hides behind a shorter one it starts with.
    listed = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, listed)) or "(?!)")


def _count(pattern: re.Pattern[str], text: str) -> int:
    return sum(1 for _ in pattern.finditer(text))


def _reserved() -> DataError:
    what = "the text uses private characters of plane 16 (U+100000 and up)"
    return DataError(what, hint="remove them; no font or language gives them a meaning")
