"""Texts -> token ids with character ranges: the tokenizer's own answer, by the quickest way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlx_itune.dataset.rendering.control_text import Armour
from mlx_itune.dataset.tokens.words import WordEncoder
from mlx_itune.kit.errors import DataError

Int32 = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Encoded:
    """Tokens of a text: ids (T,) int32 and their character ranges starts, ends (T,) int32.

    `cuts` (W,) int32, where it is known: character positions at which the text may be cut in two
    that tokenize as the whole does.
    """

    ids: Int32
    starts: Int32
    ends: Int32
    cuts: Int32 | None = None


class Encoder:
    """One `tokenizers.Tokenizer`, set to add nothing, truncate nothing and pad nothing."""

    def __init__(self, backend: Any, armour: Armour, special_ids: Sequence[int]) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = False
        self._backend, self._armour = backend, armour
        self._words = WordEncoder.of(backend)
        self._special_ids = np.array(sorted(special_ids), dtype=np.int32)

    @cached_property
    def _shadow(self) -> Any:
        return self._armour.shadow(self._backend)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        return [encoded.ids.tolist() for encoded in self.encode(texts)]

    def ids_without_border(self, text: str) -> list[int]:
        """Token ids of a text that goes on where another ended: no border is put before it.

        What follows an added token within it is tokenized as it always is.
        """
        worn = self._armour.worn(text)
        shown = self._armour.for_shadow(text)[0] if worn else text
        usual, bare = (self._shadow, self._bare_shadow) if worn else (self._backend, self._bare)
        encoding = usual.encode(shown, add_special_tokens=False)
        added = usual.get_added_tokens_decoder()
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        cut = next((start for i, (start, _) in pairs if i in added), len(shown))
        ids = bare.encode(shown[:cut], add_special_tokens=False).ids
        return [*ids, *usual.encode(shown[cut:], add_special_tokens=False).ids]

    @cached_property
    def _bare(self) -> Any:
        return _without_border(self._backend)

    @cached_property
    def _bare_shadow(self) -> Any:
        return _without_border(self._shadow)

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Tokens of each text. Raises DataError where content cannot be kept from being control."""
        found: list[Encoded | None] = [None] * len(texts)
        by_words: list[int] = []
        whole: list[int] = []
        for number, text in enumerate(texts):
            if self._armour.worn(text):
                found[number] = self._encode_worn(text)
            elif self._words is not None and self._words.takes(text):
                by_words.append(number)
            else:
                whole.append(number)
        if self._words is not None and by_words:
            encoded = self._words.encode([texts[n] for n in by_words])
            for number, arrays in zip(by_words, encoded, strict=True):
                found[number] = Encoded(*arrays)
        if whole:
            batch = self._backend.encode_batch([texts[n] for n in whole], add_special_tokens=False)
            for number, encoding in zip(whole, batch, strict=True):
                found[number] = _encoded(encoding)
        return [encoded for encoded in found if encoded is not None]

    def _encode_worn(self, text: str) -> Encoded:
        shown, specials = self._armour.for_shadow(text)
        encoded = _encoded(self._shadow.encode(shown, add_special_tokens=False))
        if int(np.isin(encoded.ids, self._special_ids).sum()) != specials:
            raise DataError(
                "the text spells out a control token, and the tokenizer reads it as one",
                hint="remove it, or let `mlx-itune data clean` do so",
            )
        return encoded


def _without_border(backend: Any) -> Any:
    """A copy of a SentencePiece-style tokenizer that puts no word border before a text."""
    state = json.loads(backend.to_str())
    normalizer, splitter = state["normalizer"] or {}, state["pre_tokenizer"] or {}
    steps = normalizer.get("normalizers")
    if steps:
        normalizer["normalizers"] = [step for step in steps if step["type"] != "Prepend"]
    elif normalizer.get("type") == "Prepend":
        state["normalizer"] = None
    for step in splitter.get("pretokenizers") or [splitter]:
        if step.get("type") == "Metaspace":
            step["prepend_scheme"] = "never"
    return type(backend).from_str(json.dumps(state))


def _encoded(encoding: Any) -> Encoded:
    # np.array of a list of pairs takes several times as long.
    ranges = np.fromiter(chain.from_iterable(encoding.offsets), dtype=np.int32).reshape(-1, 2)
    return Encoded(np.array(encoding.ids, dtype=np.int32), ranges[:, 0], ranges[:, 1])
