"""A text's tokens, a word at a time: the tokens of the whole text, looked up.

Byte-pair merges join neighbours only (Sennrich et al. 1508.07909), so a text may be tokenized in
pieces wherever no merge can reach across. Two kinds of tokenizer say plainly where that is:
byte-level BPE, whose pre-tokenizer cuts words by a regular expression, and SentencePiece-style BPE,
if no merge of its vocabulary joins a character to a word border that follows it. Words repeat, so
their tokens come from a table. `WordEncoder.of` refuses a tokenizer of any other kind, and `takes`
a text for which Python's regular expressions and the tokenizer's could differ.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]

_BORDER = "▁"
_WORD = re.compile(r" *[^ ]+| +")
_JOINS_A_BORDER = re.compile(f"[^{_BORDER}]{_BORDER}")
_PREPEND_AND_REPLACE = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": _BORDER},
        {"type": "Replace", "pattern": {"String": " "}, "content": _BORDER},
    ],
}
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ASCII = [*map(chr, range(32, 127)), "\t", "\n", "\r"]
_TRIAL = (
    "Hello  world", " a\n\n b", "x", "", "日本 é🦙  ", "a<> b <>c", "\tif (x):  \n\n  y",
    "I'M we'LL 12345", "  <>  <>", "!?  ...\r\n  - 3.14, $5", "<<48/2=24>>24",
)  # fmt: skip
_MAX_WORDS = 1_000_000
_MAX_CONTROLS = 600
# Stands before a word that the tokenizer starts with a border of its own.
_FIRST = "\x00"


Split = Callable[[str, bool], list[str]]


class WordEncoder:
    """Encodes texts as `backend` does, without adding special tokens.

    `split` cuts a piece between control tokens into words (told whether the text starts with it),
    `bare` tokenizes a word, `plain` matches the texts that may be cut so. `apart`: a text may be
    cut in two at the end of any word.
    """

    def __init__(
        self, controls: dict[str, int], split: Split, bare: Any, plain: re.Pattern[str], apart: bool
    ) -> None:
        self._controls, self._split_piece, self._bare = controls, split, bare
        self._plain, self._apart = plain, apart
        listed = sorted(controls, key=len, reverse=True)
        self._control = re.compile("(" + "|".join(map(re.escape, listed)) + ")") if listed else None
        self._clear()

    @classmethod
    def of(cls, backend: Any) -> WordEncoder | None:
        """The encoder of a `tokenizers.Tokenizer`, or None where words are not provably apart."""
        state = json.loads(backend.to_str())
        added = state["added_tokens"]
        if state["model"]["type"] != "BPE" or not _plainly_cut(added):
            return None
        found = _sentencepiece(state, backend) or _byte_level(state, backend)
        if found is None:
            return None
        encoder = cls({t["content"]: t["id"] for t in added}, *found)
        return encoder if encoder._agrees(backend) else None

    def takes(self, text: str) -> bool:
        """Whether `text` is one whose words are cut here as the tokenizer cuts them."""
        return self._plain.fullmatch(text) is not None

    def encode(self, texts: Sequence[str]) -> list[tuple[Int32, Int32, Int32, Int32 | None]]:
        """For each text its ids, starts, ends (T,) int32 and, where a text may be cut at the end of
        any word, the character positions (W + 1,) of the words."""
        words: list[str] = []
        counts: list[int] = []
        for text in texts:
            before = len(words)
            self._split(text, words)
            counts.append(len(words) - before)
        index = np.fromiter(map(self._index.__getitem__, words), dtype=np.int64, count=len(words))
        self._learn()
        tokens, first = self._tokens[index], self._first[index]
        lengths = self._lengths[index]
        ends_of_tokens = np.cumsum(tokens)
        place = np.arange(int(ends_of_tokens[-1]) if len(words) else 0)
        place += np.repeat(first - (ends_of_tokens - tokens), tokens)
        word_ends = np.cumsum(lengths)
        found = []
        word = token = char = 0
        ids, starts, ends = self._ids[place], self._starts[place], self._ends[place]
        at = np.repeat(word_ends - lengths, tokens)
        starts, ends = starts + at, ends + at
        for count in counts:
            last_word = word + count
            last_token = int(ends_of_tokens[last_word - 1]) if count else token
            cuts = None
            if self._apart:
                cuts = np.zeros(count + 1, dtype=np.int32)
                cuts[1:] = word_ends[word:last_word] - char
            here = slice(token, last_token)
            found.append(
                (
                    ids[here],
                    (starts[here] - char).astype(np.int32),
                    (ends[here] - char).astype(np.int32),
                    cuts,
                )
            )
            char = int(word_ends[last_word - 1]) if count else char
            word, token = last_word, last_token
        if len(self._index) > _MAX_WORDS:
            self._clear()
        return found

    def _split(self, text: str, words: list[str]) -> None:
        """Append the words of `text`; joined (markers aside), they are the text."""
        pieces = self._control.split(text) if self._control else [text]
        for number, piece in enumerate(pieces):
            if number % 2:
                words.append(piece)
            elif piece:
                words += self._split_piece(piece, number == 0)

    def _clear(self) -> None:
        self._index = _Index()
        self._ids = self._starts = self._ends = np.empty(0, dtype=np.int32)
        self._tokens = self._first = self._lengths = np.empty(0, dtype=np.int64)

    def _learn(self) -> None:
        """Tokenize the words met for the first time."""
        new, self._index.new = self._index.new, []
        if not new:
            return
        plain = [w for w in new if w not in self._controls]
        encodings = iter(
            self._bare.encode_batch(
                [w.replace(_FIRST, " ") for w in plain], add_special_tokens=False
            )
        )
        ids: list[int] = []
        starts: list[int] = []
        ends: list[int] = []
        tokens: list[int] = []
        lengths: list[int] = []
        for word in new:
            if word in self._controls:
                ids.append(self._controls[word])
                starts.append(0)
                ends.append(len(word))
                tokens.append(1)
                lengths.append(len(word))
                continue
            encoding = next(encodings)
            found = encoding.ids
            ids += found
            tokens.append(len(found))
            for start, end in encoding.offsets:
                starts.append(start)
                ends.append(end)
            lengths.append(len(word))
            if word[0] == _FIRST:
                # The mark is no character of the text.
                lengths[-1] -= 1
                for ranges in (starts, ends):
                    own = slice(len(ranges) - len(found), None)
                    ranges[own] = [max(0, at - 1) for at in ranges[own]]
        first = len(self._ids) + np.cumsum(tokens) - tokens
        self._ids = np.append(self._ids, np.array(ids, dtype=np.int32))
        self._starts = np.append(self._starts, np.array(starts, dtype=np.int32))
        self._ends = np.append(self._ends, np.array(ends, dtype=np.int32))
        self._tokens = np.append(self._tokens, np.array(tokens, dtype=np.int64))
        self._first = np.append(self._first, first)
        self._lengths = np.append(self._lengths, np.array(lengths, dtype=np.int64))

    def _agrees(self, backend: Any) -> bool:
        """Whether a few texts come out as the tokenizer itself has them."""
        some = next(iter(self._controls), "")
        texts = [t.replace("<>", some) for t in _TRIAL]
        texts = [text for text in texts if self.takes(text)]
        own = backend.encode_batch(texts, add_special_tokens=False)
        mine = self.encode(texts)
        return all(o.ids == m[0].tolist() for o, m in zip(own, mine, strict=True))


class _Index(dict[str, int]):
    """Word -> number; a word met for the first time gets the next one and is listed in `new`."""

    def __init__(self) -> None:
        super().__init__()
        self.new: list[str] = []

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        self.new.append(word)
        return number


Kind = tuple[Split, Any, re.Pattern[str], bool]


def _sentencepiece(state: dict[str, Any], backend: Any) -> Kind | None:
    """Words that start with spaces, where the vocabulary keeps to them."""
    from tokenizers import Tokenizer, normalizers

    prefix = _prefix_rule(state)
    if prefix is None or not _keeps_to_words(state["model"]):
        return None
    bare = Tokenizer(backend.model)
    bare.normalizer = normalizers.Replace(" ", _BORDER)

    def split(piece: str, starts_text: bool) -> list[str]:
        words = _WORD.findall(piece)
        # Metaspace puts no second border where one stands; Prepend always puts one.
        if prefix == "always" or (prefix == "first" and starts_text and piece[0] != " "):
            words[0] = _FIRST + words[0]
        return words

    # The border sign itself, or the mark of a first word, could stand in a text.
    return split, bare, re.compile(f"[^{_BORDER}{_FIRST}]*"), True


def _byte_level(state: dict[str, Any], backend: Any) -> Kind | None:
    """Words cut by the tokenizer's own regular expression, for texts of printable ASCII."""
    import regex
    from tokenizers import Tokenizer, pre_tokenizers

    splitter = state["pre_tokenizer"] or {}
    steps = splitter["pretokenizers"] if splitter.get("type") == "Sequence" else [splitter]
    normalizer = state["normalizer"]
    if not steps or (normalizer is not None and normalizer.get("type") != "NFC"):
        return None
    *before, last = steps
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    patterns = [_cut_pattern(step) for step in before]
    if last.get("use_regex", True):
        patterns.append(_GPT2)
    if not patterns or None in patterns or state["model"].get("dropout"):
        return None
    cutters = [regex.compile(pattern) for pattern in patterns]
    # What a pattern leaves out would be a word too, but not one found here.
    if not all(cutter.fullmatch(char) for cutter in cutters for char in _ASCII):
        return None
    bare = Tokenizer(backend.model)
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def split(piece: str, starts_text: bool) -> list[str]:
        words: list[str] = cutters[0].findall(piece)
        for cutter in cutters[1:]:
            words = [part for word in words for part in cutter.findall(word)]
        return words

    # Within printable ASCII and the common white space all engines agree on every class.
    return split, bare, re.compile(r"[\t\n\r -~]*"), False


def _cut_pattern(step: dict[str, Any]) -> str | None:
    """What a splitting pre-tokenizer cuts out, as a pattern that leaves nothing between matches."""
    if step.get("type") == "Digits":
        return r"\p{N}|\P{N}+" if step.get("individual_digits") else r"\p{N}+|\P{N}+"
    if step.get("type") != "Split" or step.get("behavior") != "Isolated" or step.get("invert"):
        return None
    pattern: str | None = (step.get("pattern") or {}).get("Regex")
    return pattern


def _prefix_rule(state: dict[str, Any]) -> str | None:
    """Which pieces get a border put before them: "first", "always" or "never"; None: unknown."""
    normalizer, splitter = state["normalizer"], state["pre_tokenizer"]
    if normalizer is None and splitter is not None:
        scheme: str | None = splitter.get("prepend_scheme")
        plain = splitter["type"] == "Metaspace" and splitter.get("split") is False
        known = splitter.get("replacement") == _BORDER and scheme in ("first", "never")
        return scheme if plain and known else None
    # Llama 2 as it was first published.
    return "always" if splitter is None and normalizer == _PREPEND_AND_REPLACE else None


def _keeps_to_words(model: dict[str, Any]) -> bool:
    if model.get("dropout") or model.get("ignore_merges"):
        return False
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return False
    vocab = model["vocab"]
    every_byte = all(f"<0x{byte:02X}>" in vocab for byte in range(256))
    if not model.get("byte_fallback") or not every_byte:
        return False
    joined = ("".join(m) if isinstance(m, list) else m.replace(" ", "", 1) for m in model["merges"])
    return not any(_JOINS_A_BORDER.search(text) for text in joined)


def _plainly_cut(added: list[dict[str, Any]]) -> bool:
    flags = ("lstrip", "rstrip", "single_word", "normalized")
    return len(added) <= _MAX_CONTROLS and not any(t[flag] for t in added for flag in flags)
