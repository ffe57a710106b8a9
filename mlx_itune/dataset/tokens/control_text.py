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

from mlx_itune.kit.errors import DataError

# Plane 16 is for private use and, unlike plane 15, holds no icon font in wide use.
_IN_CONTENT = 0x100000
_IN_TEMPLATE = 0x108000
_RESERVED = re.compile("[\U00100000-\U0010fffd]")
_HIDDEN = re.compile("[\U00100000-\U00107fff]+")
_PLACES = 0x8000


class ControlText:
    """Control strings of one tokenizer: finds, hides and restores them.

    `special` maps the text of special tokens to ids. `markup` does so for the other added tokens
    that the template writes, such as `<tool_call>` or `<think>`: a reply may well contain those,
    what a user or a tool says may not.
    """

    def __init__(self, special: Mapping[str, int], markup: Mapping[str, int]) -> None:
        self.special = dict(special)
        self.tokens = {**markup, **special}
        self._names = sorted(self.tokens)[:_PLACES]
        self._hide = {n: chr(_IN_CONTENT + i) * len(n) for i, n in enumerate(self._names)}
        self._shadow = {n: chr(_IN_TEMPLATE + i) * len(n) for i, n in enumerate(self._names)}
        self._first = {name[0] for name in self.tokens if name}
        self._special = _any_of(self.special)
        self._any = _any_of(self.tokens)

    def spelled_in(self, text: str, *, in_reply: bool = False) -> bool:
        """Whether `text` spells out a control string (in an assistant's turn: a special token)."""
        return (self._special if in_reply else self._any).search(text) is not None

    def spans(self, text: str) -> list[tuple[int, int, int]]:
        """Each special token spelled out in `text` as (start, end, id)."""
        return [(m.start(), m.end(), self.special[m.group()]) for m in self._special.finditer(text)]

    def first(self, text: str) -> str:
        """The first control string in `text`, or nothing."""
        return next((m.group() for m in self._any.finditer(text)), "")

    def hide(self, value: Any, *, in_reply: bool = False) -> Any:
        """`value` (text, or JSON of texts) with its control strings hidden.

        Raises DataError for a text that uses the private characters itself.
        """
        if isinstance(value, str):
            if not value.isascii() and _RESERVED.search(value):
                raise _reserved()
            spelled = self._special if in_reply else self._any
            return spelled.sub(lambda found: self._hide[found.group()], value)
        if isinstance(value, Mapping):
            return {
                self.hide(k, in_reply=in_reply): self.hide(v, in_reply=in_reply)
                for k, v in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self.hide(item, in_reply=in_reply) for item in value]
        return value

    def could_join(self, messages: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a content holds what control strings begin with: a cut could complete one."""
        return any(self._first & set(str(message.get("content"))) for message in messages)

    def joined(
        self, text: str, messages: Sequence[Mapping[str, Any]], render: Callable[[Any], str]
    ) -> bool:
        """Whether `text`, rendered from `messages`, spells more than what the template writes.

        A reply may write markup, as a whole or in parts that the template joins.
        """
        if len(self.spans(text)) > len(self.spans(render(self._apart(messages)))):
            return True
        others = [m for m in messages if m["role"] != "assistant"]
        if not self.could_join(others):
            return False
        return self._count(text) > self._count(render(self._apart(messages, replies=False)))

    def _count(self, text: str) -> int:
        return sum(1 for _ in self._any.finditer(text))

    def _apart(
        self, messages: Sequence[Mapping[str, Any]], *, replies: bool = True
    ) -> list[dict[str, Any]]:
        """`messages` whose contents hold no character that begins a control string."""
        away = str.maketrans(dict.fromkeys(self._first, chr(_IN_CONTENT + _PLACES - 1)))
        return [
            {k: v.translate(away) if k == "content" else v for k, v in message.items()}
            if replies or message["role"] != "assistant"
            else dict(message)
            for message in messages
        ]

    def is_hidden_in(self, text: str) -> bool:
        """Whether a rendered text holds hidden control strings."""
        return not text.isascii() and _HIDDEN.search(text) is not None

    def restore(self, text: str) -> str:
        """`text` with the content's control strings back in place. Raises DataError."""

        def names(hidden: re.Match[str]) -> str:
            run, found = hidden.group(), []
            while run:
                index = ord(run[0]) - _IN_CONTENT
                if index >= len(self._names):
                    raise _reserved()
                found.append(self._names[index])
                run = run[len(found[-1]) :]
            return "".join(found)

        return _HIDDEN.sub(names, text)

    def shadow_text(self, text: str) -> tuple[str, int]:
        """A rendered text as the shadow tokenizer reads it, and the number of special tokens."""
        specials = len(self.spans(text))
        return self.restore(self._any.sub(lambda m: self._shadow[m.group()], text)), specials

    def shadow_tokenizer(self, backend: Any) -> Any:
        """A copy of the tokenizer `backend` that knows control tokens by private names only.

        Ids stay as they are. Raises DataError where the library numbers them anew.
        """
        from tokenizers import Tokenizer

        state = json.loads(backend.to_str())
        for token in state["added_tokens"]:
            token["content"] = self._shadow.get(token["content"], token["content"])
        self._rename(state["model"])
        shadow = Tokenizer.from_str(json.dumps(state))
        if any(shadow.token_to_id(self._shadow[n]) != self.tokens[n] for n in self._names):
            raise DataError("this tokenizer cannot read control strings as plain text")
        return shadow

    def _rename(self, model: dict[str, Any]) -> None:
        """The model's vocabulary may spell control tokens too, and could merge its way there."""
        vocab = model.get("vocab")
        if isinstance(vocab, dict):
            model["vocab"] = {self._shadow.get(text, text): i for text, i in vocab.items()}
        elif isinstance(vocab, list):
            model["vocab"] = [[self._shadow.get(text, text), score] for text, score in vocab]
        if "merges" in model:
            pairs = [m if isinstance(m, list) else m.split(" ", 1) for m in model["merges"]]
            model["merges"] = [
                pair
                for pair in pairs
                if not any(text in self._shadow for text in ("".join(pair), *pair))
            ]
        unknown = model.get("unk_token")
        if unknown in self._shadow:
            model["unk_token"] = self._shadow[unknown]


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    # Longest first, so that a token never hides behind a shorter one it starts with.
    listed = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, listed)) or "(?!)")


def _reserved() -> DataError:
    return DataError(
        "the text uses private characters of plane 16 (U+100000 and up)",
        hint="remove them; no font or language gives them a meaning",
    )
