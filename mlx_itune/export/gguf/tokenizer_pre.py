"""Which of llama.cpp's pre-tokenizers cuts a text as a byte-level tokenizer does.

llama.cpp does not read regular expressions from a file; it knows a list of them by name
(src/llama-vocab.cpp, `llm_tokenizer_bpe`). The name is decided here by what the tokenizer does,
step by step, and by whether it looks whole words up before merging (`ignore_merges`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from mlx_itune.kit.errors import ModelError

# What `ByteLevel(use_regex=True)` of Hugging Face's tokenizers cuts by: GPT-2's own.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ENDS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
)
_CASED_ENDS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CJK = "[一-龥\u3040-ゟ゠-ヿ]+"

# Steps -> the name where words are looked up whole first, and where they are not.
_Names = tuple[str | None, str | None]
_KNOWN: dict[tuple[str, ...], _Names] = {
    (_GPT2,): (None, "gpt-2"),
    (_DIGIT, _GPT2): (None, "smollm"),
    (_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _ENDS,): ("llama-bpe", "dbrx"),
    (_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _ENDS,): (None, "qwen2"),
    (
        _CONTRACTIONS
        + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
        + _ENDS.replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"),
    ): (None, "qwen35"),
    (_CASED % ("", "") + r"|\p{N}" + _CASED_ENDS,): ("tekken", None),
    (_CASED % ((_CONTRACTIONS + "?",) * 2) + r"|\p{N}{1,3}" + _CASED_ENDS,): (None, "gpt-4o"),
    (
        r"\p{N}{1,3}",
        _CJK,
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ): (None, "deepseek-v3"),
}

# Other ways to write the same: tiktoken's possessive quantifiers, and a class with one member.
_SPELLINGS = (
    ("'(?i:[sdmt]|ll|ve|re)", _CONTRACTIONS),
    ("]?+\\p{L}", "]?\\p{L}"),
    ("]++[\\r\\n]", "]+[\\r\\n]"),
    ("|\\s*[\\r\\n]|", "|\\s*[\\r\\n]+|"),
    ("\\p{N}{1}", "\\p{N}"),
    ("\\p{N}{1,1}", "\\p{N}"),
)


def pre_tokenizer_name(state: Mapping[str, Any]) -> str:
    """``tokenizer.ggml.pre`` for a byte-level BPE, ``state`` being its tokenizer.json.

    Raises ModelError where llama.cpp knows nothing that is provably equal.
    """
    steps = tuple(_steps(state))
    if steps not in _KNOWN:
        raise ModelError(
            f"llama.cpp knows no pre-tokenizer that cuts text as this one does: {_shown(state)}",
            hint="GGUF is not possible for this tokenizer; export it with --to mlx",
        )
    whole, merged = _KNOWN[steps]
    name = whole if state["model"].get("ignore_merges") else merged
    if name is None and merges_reach_every_token(state):
        name = whole or merged
    if name is None:
        raise ModelError(
            "llama.cpp has this tokenizer's regular expression only "
            + ("without" if state["model"].get("ignore_merges") else "with")
            + " looking whole words up before merging, and here that makes a difference",
            hint="GGUF is not possible for this tokenizer; export it with --to mlx",
        )
    return name


def approximations(name: str) -> tuple[str, ...]:
    """Where llama.cpp's own version of a pre-tokenizer differs from its regular expression."""
    if name in ("tekken", "gpt-4o"):
        return (
            "llama.cpp tells upper from lower case in ASCII only, and does not count combining "
            "marks as letters: text in scripts that use them is cut otherwise",
        )
    return ()


def merges_reach_every_token(state: Mapping[str, Any]) -> bool:
    """Whether looking a word up before merging changes nothing: merging finds the same token."""
    from tokenizers import Tokenizer

    model = {**state["model"], "ignore_merges": False}
    bare = Tokenizer.from_str(json.dumps({"version": "1.0", "model": model, "added_tokens": []}))
    vocabulary = model["vocab"]
    added = {token["id"] for token in state["added_tokens"]}
    words = [word for word, number in vocabulary.items() if number not in added]
    found = bare.encode_batch_fast(words, add_special_tokens=False)
    return all(e.ids == [vocabulary[word]] for word, e in zip(words, found, strict=True))


def _steps(state: Mapping[str, Any]) -> Iterator[str]:
    """The regular expressions that cut a text one after the other; "?..." for what is unknown."""
    outer = state["pre_tokenizer"] or {}
    steps = outer.get("pretokenizers", [outer])
    for number, step in enumerate(steps):
        kind = step.get("type")
        if kind == "Split" and _keeps_all(step):
            yield _respelled(step["pattern"]["Regex"])
        elif kind == "Digits" and step["individual_digits"]:
            yield _DIGIT
        elif kind == "ByteLevel" and not step["add_prefix_space"] and number == len(steps) - 1:
            if step["use_regex"]:
                yield _GPT2
        else:
            yield f"?{kind}"


def _keeps_all(step: Mapping[str, Any]) -> bool:
    """Whether a split leaves every match, and what lies between matches, as a piece."""
    if "Regex" not in step["pattern"]:
        return False
    # With "Removed" and inverted, only matches stay; these expressions match every character.
    matches_all = step["pattern"]["Regex"].endswith(r"|\s+")
    inverted = bool(step["invert"])
    return step["behavior"] == "Isolated" or (
        step["behavior"] == "Removed" and inverted and matches_all
    )


def _respelled(expression: str) -> str:
    for spelled, usual in _SPELLINGS:
        expression = expression.replace(spelled, usual)
    return expression


def _shown(state: Mapping[str, Any]) -> str:
    text = json.dumps(state["pre_tokenizer"], ensure_ascii=False)
    return text if len(text) <= 160 else text[:160] + "..."
