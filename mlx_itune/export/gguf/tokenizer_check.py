"""A GGUF file's tokenizer, run as llama.cpp runs it, against the one that was trained with.

Keys are read from the file, and the algorithms are llama.cpp's (src/llama-vocab.cpp), written for
shortness and not for speed.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import regex
from gguf.vocab import bytes_to_unicode

from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.export.gguf.tokenizer import probe_prompts, tokenizer_limits
from mlx_itune.export.gguf.tokenizer_algorithm import (
    APPROXIMATE,
    CONTROL_TEXTS,
    EXPRESSIONS,
    WHOLE_WORDS,
)
from mlx_itune.kit.errors import ModelError

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4

_TEXTS = (
    "The patient takes metformin 500 mg twice daily, and zolpidem 5mg at night.",
    " I'm sure it's DON'T we'LL\tx  y   z\n\n\n  end \r\n",
    "12345 3.14 x1y22z333 (1,234,567.89) ½ ٣٤٥",
    "été e\u0301te\u0301 Straße ﬁ İı 世界 こんにちは 한국어 مرحبا שלום नमस्ते สวัสดี Привет",
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪 ❤️ \u200b\u00a0\u3000\ufeff 𝔘𐍈",
    "def f(x): return {'a': [1, 2]}  # <b>&amp;</b> https://x.org/?a=b&c=%20\n\t\tif (a&&b||!c){}",
    "-----=====......!!!!???? ___ *** ``` ~~~ <| |> [] {} \\ \"\"\" '''",
)


@dataclass(frozen=True)
class TokenizerCheck:
    """How many texts, and tokens, the file's tokenizer made the same of; ``prompts`` of them are
    conversations as the chat template writes them.
    """

    reader: str
    texts: int
    prompts: int
    tokens: int


def check_tokenizer(
    keys: Mapping[str, Any], tokenizer: ChatTokenizer, texts: Sequence[str] = ()
) -> TokenizerCheck:
    """Tokenize prompts, ``texts`` and some hard ones with a file's keys; all have to be equal.

    Left out are texts that llama.cpp is known to read otherwise (docs/shipping.md). Raises
    ModelError for one that differs, or a chat template that is not the trained one.
    """
    read = _Vocabulary(keys)
    if not read.template.endswith(tokenizer.template_text) and not read.named_templates:
        raise ModelError("holds another chat template than the trained one")
    prompts = probe_prompts(tokenizer)
    ids = {*tokenizer.eos_ids} - {*read.ends}
    if ids - read.ends_by_name():
        raise ModelError(f"does not end a reply at token {min(ids)}")
    plain = [t for t in (*_TEXTS, *texts) if read.takes(t, tokenizer)]
    compared = [*prompts, *plain]
    if tokenizer.hf.backend_tokenizer.normalizer is not None and read.kind == "gpt2":
        compared = [unicodedata.normalize("NFC", text) for text in compared]
    # A space before the first word alone is beyond llama.cpp: one question has to be right, what
    # follows a control token is told to the user (tokenizer_limits).
    spaced = read.kind == "llama" and bool(tokenizer_limits(tokenizer))
    count = otherwise = 0
    for number, text in enumerate(compared):
        wanted = tokenizer.hf.backend_tokenizer.encode(text, add_special_tokens=False).ids
        if read.encode(text) != wanted:
            if spaced and 0 < number < len(prompts):
                otherwise += 1
                continue
            raise ModelError(f"llama.cpp would read {text[:40]!r} otherwise")
        count += len(wanted)
    same, asked = len(compared) - otherwise, len(prompts) - otherwise
    return TokenizerCheck("llama.cpp's algorithm", same, asked, count)


class _Vocabulary:
    """The `tokenizer.*` keys of a file, and llama.cpp's way to use them."""

    def __init__(self, keys: Mapping[str, Any]) -> None:
        def value(key: str, default: Any = None) -> Any:
            return keys.get(f"tokenizer.{key}", default)

        self.kind: str = value("ggml.model")
        self._name: str = value("ggml.pre", "default")
        tokens: list[str] = value("ggml.tokens")
        self._ids = {token: number for number, token in enumerate(tokens)}
        self._scores: list[float] = value("ggml.scores", [])
        pairs = [tuple(merge.split(" ")) for merge in value("ggml.merges", [])]
        self._ranks = {pair: rank for rank, pair in reversed(list(enumerate(pairs)))}
        self._prefix = bool(value("ggml.add_space_prefix", True))
        added = [
            token
            for token, kind in zip(tokens, value("ggml.token_type"), strict=True)
            if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
        ]
        self._added = sorted(added, key=lambda token: -len(token.encode()))
        self.template: str = value("chat_template", "")
        self.named_templates = bool(value("chat_templates"))
        ends = (value(f"ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
        self.ends = {number for number in ends if number is not None}

    def ends_by_name(self) -> set[int]:
        """Tokens that llama.cpp takes for ends of a reply by their text alone."""
        return {self._ids[text] for text in CONTROL_TEXTS & self._ids.keys()}

    def takes(self, text: str, tokenizer: ChatTokenizer) -> bool:
        """Whether llama.cpp is meant to read this text as the tokenizer does."""
        if self.kind == "gpt2":
            return self._name not in APPROXIMATE or text.isascii()
        space = "▁" if self._prefix else ""
        alone = tokenizer.encode_ids("a") == [self._ids.get(f"{space}a", -1)]
        # A space in front is where Metaspace and a prefix differ.
        return alone and not text.startswith((" ", "▁"))

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``; control strings are tokens (llama.cpp's parse_special)."""
        out: list[int] = []
        after_token = True
        for piece in self._partition([text] if text else []):
            if isinstance(piece, int):
                out.append(piece)
            elif self.kind == "llama":
                space = " " if self._prefix and after_token else ""
                out += self._by_score((space + piece).replace(" ", "▁"))
            else:
                out += self._by_rank(piece)
            after_token = isinstance(piece, int)
        return out

    def _partition(self, pieces: list[str | int]) -> list[str | int]:
        for token in self._added:
            if not any(isinstance(p, str) and token in p for p in pieces):
                continue
            cut: list[str | int] = []
            for piece in pieces:
                if isinstance(piece, int):
                    cut.append(piece)
                    continue
                for number, part in enumerate(piece.split(token)):
                    cut += [self._ids[token]] if number else []
                    cut += [part] if part else []
            pieces = cut
        return pieces

    def _by_score(self, text: str) -> list[int]:
        parts = list(text)
        while True:
            found = [
                (-self._scores[self._ids[a + b]], at)
                for at, (a, b) in enumerate(pairwise(parts))
                if a + b in self._ids
            ]
            if not found:
                break
            at = min(found)[1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        out: list[int] = []
        for part in parts:
            if part in self._ids:
                out.append(self._ids[part])
            else:
                out += [self._ids[f"<0x{byte:02X}>"] for byte in part.encode()]
        return out

    def _by_rank(self, text: str) -> list[int]:
        out: list[int] = []
        for word in self._words(text):
            parts = [_BYTES[byte] for byte in word.encode()]
            if self._name in WHOLE_WORDS and "".join(parts) in self._ids:
                parts = ["".join(parts)]
            while len(parts) > 1:
                ranks = [self._ranks.get(pair, -1) for pair in pairwise(parts)]
                best = min((rank for rank in ranks if rank >= 0), default=-1)
                if best < 0:
                    break
                at = ranks.index(best)
                parts[at : at + 2] = [parts[at] + parts[at + 1]]
            out += [self._ids[part] for part in parts if part in self._ids]
        return out

    def _words(self, text: str) -> list[str]:
        words = [text]
        for expression in EXPRESSIONS[self._name]:
            words = [piece for word in words for piece in _cut(word, expression)]
        return words


def _cut(text: str, expression: str) -> Iterator[str]:
    """Matches, and what lies between them."""
    at = 0
    for match in regex.finditer(expression, text):
        if match.start() > at:
            yield text[at : match.start()]
        if match.group():
            yield match.group()
        at = match.end()
    if at < len(text):
        yield text[at:]


# GPT-2's printable character for each byte.
_BYTES = bytes_to_unicode()
