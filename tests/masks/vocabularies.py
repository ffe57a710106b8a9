"""Tokenizers for a family: the real ones, the starter's and small ones, with the family's tokens.

`coder(base, family)` gives the tokenizer that the project sees and the oracle's own view of it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from small_tokenizers import TOKENIZERS
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from masks.family import Family

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared/data/tokenizers"
FILES = {
    "llama2": REAL / "llama2.tokenizer.model",
    "llama3": REAL / "llama3.tokenizer.model",
    "llama3_start": REAL / "llama3.tokenizer.model",
}
STARTER = ROOT / "mlx_itune/model/starter/tokenizer.json"
# Small ones go by another name where a real one has theirs.
_SMALL_NAMES = {"sentencepiece": "llama2", "small_legacy": "llama2_legacy"}

# Names of control tokens in the oracle's own texts: one character each, outside everything else.
_FIRST_NAME = 0xF1000
_FIRST_HIDDEN = 0xF2000


@cache
def base(name: str) -> Tokenizer:
    """A tokenizer without any family's tokens."""
    if name == "llama2":
        return _llama2()
    if name in ("llama3", "llama3_start"):
        return _llama3(None if name == "llama3" else 16_000)
    if name == "starter":
        return Tokenizer.from_file(str(STARTER))
    return TOKENIZERS[_SMALL_NAMES.get(name, name)]()


def _llama3(tokens: int | None) -> Tokenizer:
    """With its first tokens alone it loads in a tenth of the time: later ones build on them."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.model"
        lines = FILES["llama3"].read_text(encoding="ascii").splitlines(keepends=True)
        file.write_text("".join(lines[:tokens]), encoding="ascii")
        converted: Tokenizer = TikTokenConverter(vocab_file=str(file)).converted()
    return converted


def _token(text: str, *, special: bool = True, rstrip: bool = False) -> AddedToken:
    return AddedToken(text, special=special, normalized=False, rstrip=rstrip)


def missing(name: str) -> str | None:
    """Why a base cannot be had here, if so."""
    if name in FILES and not FILES[name].exists():
        return f"{FILES[name].name} is not here"
    return None


def _llama2() -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "tokenizer.model").write_bytes(FILES["llama2"].read_bytes())
        (path / "config.json").write_text('{"model_type": "llama"}')
        settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False}
        settings |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        (path / "tokenizer_config.json").write_text(json.dumps(settings))
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(path).backend_tokenizer
    return tokenizer


class Coder:
    """A family's tokenizer as the project gets it (`hf`) and as the oracle reads it.

    The oracle never spells control tokens: in its texts each is one private character, so content
    that spells one stays text. `specials` are the ids no content may yield.
    """

    def __init__(self, name: str, family: Family) -> None:
        self.family = family
        source = base(name)
        # What a base brings along (`<s>` of Llama 2) is a control token in every family.
        brought = {t.content: i for i, t in source.get_added_tokens_decoder().items()}
        special = tuple(dict.fromkeys((*brought, *family.special)))
        full = _copy(source)
        full.add_special_tokens([_token(t) for t in brought])
        full.add_special_tokens([_token(t, rstrip=family.rstrip) for t in family.special])
        full.add_tokens([_token(t, special=False) for t in family.markup + family.loose])
        self.hf = PreTrainedTokenizerFast(
            tokenizer_object=full,
            eos_token=family.eos,
            clean_up_tokenization_spaces=False,
            **({} if family.bos is None else {"bos_token": family.bos}),
        )
        self.full = full
        self.ids = {t: full.token_to_id(t) for t in (*special, *family.markup, *family.loose)}
        self.specials = frozenset(self.ids[t] for t in special)
        self.names = {t: chr(_FIRST_NAME + n) for n, t in enumerate(self.ids)}
        self._hidden = {t: chr(_FIRST_HIDDEN + n) for n, t in enumerate(self.ids)}
        self.id_of_name = {name: self.ids[t] for t, name in self.names.items()}
        # The names follow the base's own vocabulary.
        self._size = _copy(source).get_vocab_size()
        self._bare = self._with_names(_copy(source))
        self._loose = self._with_names(_without_prefix(_copy(source)))
        self._true_id = {self._bare.token_to_id(n): self.ids[t] for t, n in self.names.items()}

    def _with_names(self, bare: Tokenizer) -> Tokenizer:
        swallow = self.family.special if self.family.rstrip else ()
        names = [_token(name, rstrip=token in swallow) for token, name in self.names.items()]
        bare.add_special_tokens(names)
        return bare

    def hidden(self, value: Any, *, reply: bool = False) -> Any:
        """`value` (a text, or JSON of texts) with private names for the tokens it may not write.

        A reply may well write the markup a model is taught to write; nobody else may.
        """
        if isinstance(value, str):
            allowed = {*self.family.loose, *(self.family.markup if reply else ())}
            return _replaced(value, {t: n for t, n in self._hidden.items() if t not in allowed})
        if isinstance(value, Mapping):
            return {self.hidden(k): self.hidden(v) for k, v in value.items()}
        return [self.hidden(item) for item in value] if isinstance(value, list) else value

    def named(self, text: str) -> str:
        """A template's text: its own control tokens by their names, what was hidden as it was."""
        named = _replaced(text, self.names)
        return _replaced(named, {name: token for token, name in self._hidden.items()})

    def spelled(self, named: str) -> str:
        """A named text with the control tokens written out."""
        return _replaced(named, {name: token for token, name in self.names.items()})

    def ids_of(self, named: list[str]) -> list[list[int]]:
        """The ids of each named text."""
        found = self._bare.encode_batch_fast(named, add_special_tokens=False)
        return [self._true(e.ids) for e in found]

    def encode(self, named: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """(ids, character ranges) of each named text."""
        found = self._bare.encode_batch(named, add_special_tokens=False)
        return [(self._true(e.ids), e.offsets) for e in found]

    def continuation(self, named: str) -> list[int]:
        """The ids of a text that follows another: no space is put before its first word."""
        at = next((n for n, char in enumerate(named) if char in self.id_of_name), len(named))
        first, rest = named[:at], named[at:]
        ids = self._loose.encode(first, add_special_tokens=False).ids if first else []
        return [*self._true(ids), *(self.ids_of([rest])[0] if rest else [])]

    def _true(self, ids: list[int]) -> list[int]:
        known, size = self._true_id, self._size
        return [i if i < size else known[i] for i in ids]


def _replaced(text: str, names: Mapping[str, str]) -> str:
    for token in sorted(names, key=len, reverse=True):
        if token in text:
            text = text.replace(token, names[token])
    return text


def _copy(source: Tokenizer) -> Tokenizer:
    """The same model and steps, which are shared, without added tokens."""
    copy = Tokenizer(source.model)
    for step in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if getattr(source, step) is not None:
            setattr(copy, step, getattr(source, step))
    return copy


def _without_prefix(tokenizer: Tokenizer) -> Tokenizer:
    if isinstance(tokenizer.pre_tokenizer, pre_tokenizers.Metaspace):
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "never", split=False)
    if isinstance(tokenizer.normalizer, normalizers.Sequence):
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return tokenizer


@cache
def coder(name: str, family: Family) -> Coder:
    return Coder(name, family)
