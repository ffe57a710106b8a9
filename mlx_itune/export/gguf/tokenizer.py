"""The tokenizer inside a GGUF file: every `tokenizer.*` key that llama.cpp reads.

The source is the tokenizer that transformers loads. What llama.cpp cannot tokenize the same way is
refused (docs/shipping.md). Read back, a tokenizer is made of the keys alone, each used as llama.cpp
uses it (src/llama-vocab.cpp), by the tokenizers library, and compared with the trained one.
Keys: github.com/ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers
from tokenizers import pre_tokenizers as cutting

from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.export.gguf import tokenizer_algorithm as algorithm
from mlx_itune.kit.errors import DataError, ModelError

if TYPE_CHECKING:
    import gguf

# gguf.TokenType
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_PROBE = "qzvxqzvx"
_TEXTS = (
    "The patient takes metformin 500 mg twice daily, and zolpidem 5mg at night.",
    " I'm sure it's DON'T we'LL\tx  y   z\n\n\n  end \r\n",
    "12345 3.14 x1y22z333 (1,234,567.89) ½ ٣٤٥",
    "été e\u0301te\u0301 Straße ﬁ İı 世界 こんにちは 한국어 مرحبا שלום नमस्ते สวัสดี Привет",
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪 ❤️ \u200b\u00a0\u3000\ufeff 𝔘𐍈",
    "def f(x): return {'a': [1, 2]}  # <b>&amp;</b> https://x.org/?a=b&c=%20\n\t\tif (a&&b||!c){}",
    "-----=====......!!!!???? ___ *** ``` ~~~ <| |> [] {} \\ \"\"\" '''",
)


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: ChatTokenizer, rows: int) -> None:
    """Add every `tokenizer.*` key to ``writer``, which has its name; ``rows`` has the embedding.
    Raises ModelError where llama.cpp would tokenize otherwise."""
    state, prompts = _state(tokenizer), probe_prompts(tokenizer)
    kind = algorithm.kind_of(state)
    tokens, types = _vocabulary(state, kind, rows)
    writer.add_tokenizer_model(kind)
    if kind == "gpt2":
        writer.add_tokenizer_pre(algorithm.pre_tokenizer_name(state))
        writer.add_token_merges([" ".join(pair) for pair in algorithm.merge_pairs(state)])
    else:
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(algorithm.scores(state, rows))
        writer.add_add_space_prefix(algorithm.space_prefix(state, prompts))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    _add_special(writer, tokenizer)
    writer.add_chat_template(chat_template(tokenizer))
    _name_for(writer, algorithm.stripping_name(state, prompts))


def tokenizer_limits(tokenizer: ChatTokenizer) -> tuple[str, ...]:
    """What llama.cpp will tokenize otherwise whatever the file says, one sentence each."""
    return algorithm.limits(_state(tokenizer), probe_prompts(tokenizer))


def probe_prompts(tokenizer: ChatTokenizer) -> list[str]:
    """Rendered conversations of one to three questions, with and without a system turn."""
    found = []
    for system in (False, True):
        messages = [{"role": "system", "content": "Be brief."}] if system else []
        for turn in range(3):
            messages.append({"role": "user", "content": f"Question {turn}: what is it?"})
            try:
                text = tokenizer.render_text(messages, add_generation_prompt=True)
            except DataError:
                break
            found.append(text)
            messages.append({"role": "assistant", "content": f"It is {turn}."})
    return found


def adds_bos(tokenizer: ChatTokenizer) -> bool:
    """``tokenizer.ggml.add_bos_token``: as for plain text, unless the template goes without.
    Prompts are trained as their template writes them, and llama.cpp does not add a second BOS to a
    rendered prompt that has one."""
    start = tokenizer.text_start
    return bool(start) and all(text.startswith(start) for text in probe_prompts(tokenizer))


def turn_end_id(tokenizer: ChatTokenizer) -> int:
    """The token that the chat template writes after a reply; the EOS token if it writes none."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _PROBE}]
    text = tokenizer.render_text(turns, add_generation_prompt=False)
    ends = [i for _, _, i in tokenizer.control_text.spans(text.partition(_PROBE)[2])]
    return next((i for i in ends if i in tokenizer.eos_ids), tokenizer.closing_id)


def chat_template(tokenizer: ChatTokenizer) -> str | list[dict[str, str]]:
    """The Jinja text that was trained with, made complete for llama.cpp. llama.cpp gives a template
    `bos_token` and `eos_token` only, and makes a BOS up where there is none; other names are set at
    its start."""
    special = {k: v for k, v in tokenizer.hf.special_tokens_map.items() if isinstance(v, str)}
    needed = {k: v for k, v in special.items() if k not in ("bos_token", "eos_token")}
    if "bos_token" not in special:
        needed["bos_token"] = ""

    def complete(text: str) -> str:
        sets = [f"{{% set {k} = {json.dumps(v)} %}}" for k, v in needed.items() if k in text]
        # A block takes the line break after it along.
        guard = "{{ '' }}" if sets and text.startswith("\n") else ""
        return "".join(sets) + guard + tokenizer.shipped(text)

    named = tokenizer.hf.chat_template
    if tokenizer.name == "auto" and isinstance(named, Mapping):
        return [{"name": name, "template": complete(text)} for name, text in named.items()]
    return complete(tokenizer.template_text)


def _add_special(writer: gguf.GGUFWriter, tokenizer: ChatTokenizer) -> None:
    hf = tokenizer.hf
    writer.add_eos_token_id(tokenizer.closing_id)
    # Always written: llama.cpp guesses by the token's text otherwise.
    writer.add_eot_token_id(turn_end_id(tokenizer))
    for number, add in (
        (hf.bos_token_id, writer.add_bos_token_id),
        (hf.pad_token_id, writer.add_pad_token_id),
        (hf.unk_token_id, writer.add_unk_token_id),
    ):
        if number is not None:
            add(number)
    more = sorted(tokenizer.eos_ids - {tokenizer.closing_id, turn_end_id(tokenizer)})
    if more:
        writer.add_eom_token_id(more[0])
    writer.add_add_bos_token(adds_bos(tokenizer))
    writer.add_add_eos_token(False)


def _state(tokenizer: ChatTokenizer) -> dict[str, Any]:
    return dict(json.loads(tokenizer.hf.backend_tokenizer.to_str()))


def _vocabulary(state: Mapping[str, Any], kind: str, rows: int) -> tuple[list[str], list[int]]:
    """All tokens in the order of their ids, filled up with unused ones to ``rows``; their types.
    Raises ModelError where ids have no row, or two tokens have the same text."""
    by_id = {number: text for text, number in state["model"]["vocab"].items()}
    kinds = dict.fromkeys(by_id, _NORMAL)
    if kind == "llama":
        kinds |= {n: _BYTE for n, text in by_id.items() if re.fullmatch("<0x..>", text)}
    unknown = state["model"].get("unk_token")
    for token in state["added_tokens"]:
        number, text = token["id"], token["content"]
        by_id[number] = text
        kinds[number] = _CONTROL if token["special"] else _USER_DEFINED
        if text == unknown:
            kinds[number] = _UNKNOWN
        if token["single_word"]:
            raise ModelError(f"the token {text!r} is found as a whole word only, not in llama.cpp")
    for number in algorithm.control_by_name(state):
        by_id[number], kinds[number] = f"[UNUSED{number}]", _UNUSED
    last = max(by_id)
    if last >= rows:
        what = f"the tokenizer has a token {last} ({by_id[last]!r}), the model {rows} rows"
        raise ModelError(what, hint="use the tokenizer that belongs to the model")
    tokens = [by_id.get(number, f"[PAD{number}]") for number in range(rows)]
    if any("\0" in token for token in tokens):
        raise ModelError("a token holds a NUL character, where llama.cpp ends its text")
    if len(set(tokens)) != rows:
        twice = next(t for n, t in enumerate(tokens) if t in tokens[:n])
        raise ModelError(f"two tokens have the same text {twice!r}, which llama.cpp cannot load")
    return tokens, [kinds.get(number, _UNUSED) for number in range(rows)]


def _name_for(writer: gguf.GGUFWriter, needed: str | None) -> None:
    """Have `general.name` contain what llama.cpp looks for in it, if anything."""
    held = next((kv["general.name"] for kv in writer.kv_data if "general.name" in kv), None)
    if needed is None or (held is not None and needed in str(held.value).lower()):
        return
    if held is None:
        writer.add_name(needed)
    else:
        held.value = f"{held.value} ({needed})"


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
    lost = tokenizer.eos_ids - told - {read.token_to_id(text) for text in algorithm.CONTROL_TEXTS}
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
        read = Tokenizer(models.BPE(ids, merges, ignore_merges=name in algorithm.WHOLE_WORDS))
        cuts = [cutting.Split(Regex(cut), "isolated") for cut in algorithm.EXPRESSIONS[name]]
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
        return keys["tokenizer.ggml.pre"] not in algorithm.APPROXIMATE or text.isascii()
    space = "▁" if keys["tokenizer.ggml.add_space_prefix"] else ""
    alone = tokenizer.encode_ids("a") == [read.token_to_id(f"{space}a")]
    # A space in front is where Metaspace and a prefix differ.
    return alone and not text.startswith((" ", "▁"))
