"""A GGUF file's tokenizer, made of its keys alone, against the one that was trained with.

Each key is used as llama.cpp uses it (src/llama-vocab.cpp), by the tokenizers library.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers
from tokenizers import pre_tokenizers as cutting

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
    conversations as the chat template writes them."""

    reader: str
    texts: int
    prompts: int
    tokens: int


def check_tokenizer(
    keys: Mapping[str, Any], tokenizer: ChatTokenizer, texts: Sequence[str] = ()
) -> TokenizerCheck:
    """Tokenize prompts, ``texts`` and some hard ones with a file's keys; all have to be equal. Left
    out are texts that llama.cpp is known to read otherwise (docs/shipping.md). Raises ModelError
    for one that differs, or a chat template that is not the trained one."""
    template = keys.get("tokenizer.chat_template", "")
    named = keys.get("tokenizer.chat_templates")
    if not template.endswith(tokenizer.template_text) and not named:
        raise ModelError("holds another chat template than the trained one")
    read, kind = _tokenizer(keys), keys["tokenizer.ggml.model"]
    told = {keys.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")}
    # llama.cpp takes tokens for ends of a reply by their text, too.
    lost = tokenizer.eos_ids - told - {read.token_to_id(text) for text in CONTROL_TEXTS}
    if lost:
        raise ModelError(f"does not end a reply at token {min(lost)}")
    prompts = probe_prompts(tokenizer)
    plain = [text for text in (*_TEXTS, *texts) if _is_meant_equal(text, keys, read, tokenizer)]
    compared = [*prompts, *plain]
    if tokenizer.hf.backend_tokenizer.normalizer is not None and kind == "gpt2":
        compared = [unicodedata.normalize("NFC", text) for text in compared]
    # A space before the first word alone is beyond llama.cpp: one question has to be right, what
    # follows a control token is told to the user (tokenizer_limits).
    spaced = kind == "llama" and bool(tokenizer_limits(tokenizer))
    count = otherwise = 0
    for number, text in enumerate(compared):
        wanted = tokenizer.hf.backend_tokenizer.encode(text, add_special_tokens=False).ids
        if read.encode(text, add_special_tokens=False).ids != wanted:
            if spaced and 0 < number < len(prompts):
                otherwise += 1
                continue
            raise ModelError(f"llama.cpp would read {text[:40]!r} otherwise")
        count += len(wanted)
    same, asked = len(compared) - otherwise, len(prompts) - otherwise
    return TokenizerCheck(f"tokenizers {version('tokenizers')}", same, asked, count)


def _tokenizer(keys: Mapping[str, Any]) -> Tokenizer:
    tokens: list[str] = keys["tokenizer.ggml.tokens"]
    ids = {token: number for number, token in enumerate(tokens)}
    if keys["tokenizer.ggml.model"] == "gpt2":
        name = keys["tokenizer.ggml.pre"]
        merges = [tuple(merge.split(" ")) for merge in keys["tokenizer.ggml.merges"]]
        read = Tokenizer(models.BPE(ids, merges, ignore_merges=name in WHOLE_WORDS))
        cuts = [cutting.Split(Regex(expression), "isolated") for expression in EXPRESSIONS[name]]
        to_bytes = cutting.ByteLevel(add_prefix_space=False, use_regex=False)
        read.pre_tokenizer = cutting.Sequence([*cuts, to_bytes])
    else:
        # Any two neighbours that form a token are merged, best score first.
        scores = keys["tokenizer.ggml.scores"]
        pairs = [
            (token[:at], token[at:])
            for token in sorted(tokens, key=lambda token: -scores[ids[token]])
            for at in range(1, len(token))
            if token[:at] in ids and token[at:] in ids
        ]
        read = Tokenizer(models.BPE(ids, pairs, byte_fallback=True))
        prefix = [normalizers.Prepend("▁")] * bool(keys["tokenizer.ggml.add_space_prefix"])
        read.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    kinds = zip(tokens, keys["tokenizer.ggml.token_type"], strict=True)
    added = [token for token, kind in kinds if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)]
    read.add_special_tokens([AddedToken(token, normalized=False) for token in added])
    return read


def _is_meant_equal(
    text: str, keys: Mapping[str, Any], read: Tokenizer, tokenizer: ChatTokenizer
) -> bool:
    """Whether llama.cpp is meant to read this text as the tokenizer does."""
    if keys["tokenizer.ggml.model"] == "gpt2":
        return keys["tokenizer.ggml.pre"] not in APPROXIMATE or text.isascii()
    space = "▁" if keys["tokenizer.ggml.add_space_prefix"] else ""
    alone = tokenizer.encode_ids("a") == [read.token_to_id(f"{space}a")]
    # A space in front is where Metaspace and a prefix differ.
    return alone and not text.startswith((" ", "▁"))
