"""The tokenizer inside a GGUF file: every `tokenizer.*` key that llama.cpp reads.

The source is the tokenizer as it was trained with, i.e. the one transformers loads, not the files
it came from. What llama.cpp cannot tokenize the same way is refused; docs/shipping.md lists the
differences that no file can remove. Keys: github.com/ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.export.gguf.tokenizer_added import control_by_name, stripping_name
from mlx_itune.export.gguf.tokenizer_pre import approximations, pre_tokenizer_name
from mlx_itune.export.gguf.tokenizer_spm import merge_pairs, scores, space_limit, space_prefix
from mlx_itune.kit.errors import DataError, ModelError

if TYPE_CHECKING:
    import gguf

# gguf.TokenType
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_PROBE = "qzvxqzvx"


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in the order of their ids, each with its GGUF type."""

    tokens: tuple[str, ...]
    types: tuple[int, ...]


def add_tokenizer(
    writer: gguf.GGUFWriter, folder: Path, tokenizer: ChatTokenizer, config: Mapping[str, Any]
) -> None:
    """Add every `tokenizer.*` key to ``writer``: what llama.cpp needs to tokenize as trained.

    ``folder`` is named in errors; ``config`` is the model's config.json, whose ``vocab_size`` says
    how many rows the embedding has. Set `general.name` before, if at all: llama.cpp looks for some
    models' names in it. Raises ModelError where llama.cpp would tokenize otherwise.
    """
    try:
        _add(writer, tokenizer, config)
    except ModelError as error:
        raise ModelError(error.message, where=error.where or str(folder), hint=error.hint) from None


def tokenizer_limits(tokenizer: ChatTokenizer) -> tuple[str, ...]:
    """What llama.cpp will tokenize otherwise whatever the file says, one sentence each."""
    state = _state(tokenizer)
    if _kind(state) == "llama":
        return space_limit(state, probe_prompts(tokenizer))
    found = approximations(pre_tokenizer_name(state))
    if state["normalizer"]:
        found += (
            "llama.cpp does not compose characters (Unicode NFC) as this tokenizer does: "
            "give it composed text",
        )
    return found


def _add(writer: gguf.GGUFWriter, tokenizer: ChatTokenizer, config: Mapping[str, Any]) -> None:
    state = _state(tokenizer)
    kind = _kind(state)
    prompts = probe_prompts(tokenizer)
    vocabulary = read_vocabulary(state, _rows(config))
    if kind == "gpt2":
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre_tokenizer_name(state))
        writer.add_token_merges([f"{left} {right}" for left, right in merge_pairs(state)])
    else:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(scores(state, len(vocabulary.tokens)))
        writer.add_add_space_prefix(space_prefix(state, prompts))
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(list(vocabulary.types))
    _add_special(writer, tokenizer)
    writer.add_chat_template(chat_template(tokenizer))
    _name_for(writer, stripping_name(state, prompts))


def _name_for(writer: gguf.GGUFWriter, needed: str | None) -> None:
    """Have `general.name` contain what llama.cpp looks for in it, if anything."""
    held = next((kv["general.name"] for kv in writer.kv_data if "general.name" in kv), None)
    if needed is None or (held is not None and needed in str(held.value).lower()):
        return
    if held is None:
        writer.add_name(needed)
    else:
        held.value = f"{held.value} ({needed})"


def _state(tokenizer: ChatTokenizer) -> dict[str, Any]:
    """tokenizer.json as it is in use."""
    return dict(json.loads(tokenizer.hf.backend_tokenizer.to_str()))


def read_vocabulary(state: Mapping[str, Any], rows: int | None) -> Vocabulary:
    """All tokens of a tokenizer.json, filled up with unused ones to ``rows``.

    Raises ModelError where ids have no row, or two tokens have the same text.
    """
    by_id = {number: text for text, number in state["model"]["vocab"].items()}
    kinds = dict.fromkeys(by_id, _NORMAL)
    if _kind(state) == "llama":
        kinds |= {n: _BYTE for n, text in by_id.items() if _is_byte(text)}
    unknown = state["model"].get("unk_token")
    for token in state["added_tokens"]:
        number, text = token["id"], token["content"]
        by_id[number] = text
        kinds[number] = _CONTROL if token["special"] else _USER_DEFINED
        if text == unknown:
            kinds[number] = _UNKNOWN
        if token["single_word"]:
            raise ModelError(f"the token {text!r} is found as a whole word only, not in llama.cpp")
    for number in control_by_name(state):
        by_id[number], kinds[number] = f"[UNUSED{number}]", _UNUSED
    size = max(by_id) + 1 if rows is None else rows
    beyond = max(by_id)
    if beyond >= size:
        raise ModelError(
            f"the tokenizer has a token {beyond} ({by_id[beyond]!r}), the model {size} rows",
            hint="use the tokenizer that belongs to the model",
        )
    for number in range(size):
        if number not in by_id:
            by_id[number], kinds[number] = f"[PAD{number}]", _UNUSED
    tokens = tuple(by_id[number] for number in range(size))
    if any("\0" in token for token in tokens):
        raise ModelError("a token holds a NUL character, where llama.cpp ends its text")
    if len(set(tokens)) != size:
        twice = next(t for n, t in enumerate(tokens) if t in tokens[:n])
        raise ModelError(f"two tokens have the same text {twice!r}, which llama.cpp cannot load")
    return Vocabulary(tokens, tuple(kinds[number] for number in range(size)))


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
    rendered prompt that has one.
    """
    start = tokenizer.text_start
    return bool(start) and all(text.startswith(start) for text in probe_prompts(tokenizer))


def turn_end_id(tokenizer: ChatTokenizer) -> int:
    """The token that the chat template writes after a reply; the EOS token if it writes none."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _PROBE}]
    text = tokenizer.render_text(turns, add_generation_prompt=False)
    ends = [i for _, _, i in tokenizer.find_controls(text.partition(_PROBE)[2])]
    return next((i for i in ends if i in tokenizer.eos_ids), tokenizer.closing_id)


def chat_template(tokenizer: ChatTokenizer) -> str | list[dict[str, str]]:
    """The Jinja text that was trained with, made complete for llama.cpp.

    llama.cpp gives a template `bos_token` and `eos_token` only, and makes a BOS up where there is
    none; other names are set at its start.
    """
    special = {k: v for k, v in tokenizer.hf.special_tokens_map.items() if isinstance(v, str)}
    needed = {k: v for k, v in special.items() if k not in ("bos_token", "eos_token")}
    if "bos_token" not in special:
        needed["bos_token"] = ""

    def complete(text: str) -> str:
        sets = [f"{{% set {k} = {json.dumps(v)} %}}" for k, v in needed.items() if k in text]
        # A block takes the line break after it along.
        guard = "{{ '' }}" if sets and text.startswith("\n") else ""
        return "".join(sets) + guard + text

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


def _kind(state: Mapping[str, Any]) -> str:
    """GGUF's name for the tokenizer's algorithm. Raises ModelError for one it does not have."""
    model = state["model"]
    odd = [
        k for k in ("continuing_subword_prefix", "end_of_word_suffix", "dropout") if model.get(k)
    ]
    if model["type"] != "BPE" or odd:
        raise ModelError(
            f"tokenizers of type {model['type']}{' with ' + odd[0] if odd else ''} "
            "have no exact form in GGUF",
            hint="export it with --to mlx",
        )
    outer = state["pre_tokenizer"] or {}
    steps = outer.get("pretokenizers", [outer])
    if any(step.get("type") == "ByteLevel" for step in steps):
        normalizer = state["normalizer"]
        # Qwen's NFC: llama.cpp leaves text as it is (docs/shipping.md), and most text is NFC.
        if normalizer not in (None, {"type": "NFC"}):
            raise ModelError("llama.cpp does not normalize text as this tokenizer does")
        if not model["merges"]:
            raise ModelError("the tokenizer has no merges, which llama.cpp needs")
        return "gpt2"
    if not model.get("byte_fallback"):
        raise ModelError("the tokenizer is neither byte-level nor falls back to bytes")
    return "llama"


def _rows(config: Mapping[str, Any]) -> int | None:
    for part in (config, config.get("text_config") or {}):
        if isinstance(part.get("vocab_size"), int):
            return int(part["vocab_size"])
    return None


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")
