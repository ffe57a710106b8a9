"""What llama.cpp needs to be told to tokenize as a tokenizer.json does, and where it cannot.

llama.cpp (src/llama-vocab.cpp) cuts by regular expressions that it knows by name, merges by rank or
by score, puts a space before every stretch of text or before none, strips spaces around added
tokens by the *model's* name, and takes tokens for control tokens by their text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlx_itune.kit.errors import ModelError
from mlx_itune.kit.json_files import data_file

State = Mapping[str, Any]

_TOLD = data_file(__file__, "llama_cpp")
CONTROL_TEXTS = frozenset(_TOLD["control_texts"].split())
EXPRESSIONS: dict[str, tuple[str, ...]] = {
    name: tuple(each) for name, each in _TOLD["expressions"].items()
}
WHOLE_WORDS, APPROXIMATE = frozenset(_TOLD["whole_words"]), frozenset(_TOLD["approximate"])
# Of a model named so, every added token strips what follows, but these.
_PHI3, _PHI3_KEEPS = "phi-3", {"<unk>", "<s>", "<|endoftext|>"}
_SPACE = "▁"
# A score far below every token that merging may form.
_NEVER = -1e9
# What `ByteLevel(use_regex=True)` of Hugging Face's tokenizers cuts by: GPT-2's own.
_DIGIT, _GPT2 = EXPRESSIONS["smollm"]


def refused(message: str) -> ModelError:
    """The error for a tokenizer that a GGUF file cannot hold."""
    return ModelError(message, hint="GGUF is not possible for it; export it with --to mlx")


def kind_of(state: State) -> str:
    """GGUF's name for the algorithm: "gpt2" (byte-level) or "llama" (SentencePiece). Raises
    ModelError for one it does not have."""
    model = state["model"]
    unlike = ("continuing_subword_prefix", "end_of_word_suffix", "dropout")
    odd = [key for key in unlike if model.get(key)]
    if model["type"] != "BPE" or odd:
        raise refused(
            f"tokenizers of type {model['type']}{' with ' + odd[0] if odd else ''} "
            "have no exact form in GGUF"
        )
    if any(step["type"] == "ByteLevel" for step in _steps(state, "pre_tokenizer")):
        # Qwen's NFC: llama.cpp leaves text as it is (docs/shipping.md), and most text is NFC.
        if state["normalizer"] not in (None, {"type": "NFC"}):
            raise refused("llama.cpp does not normalize text as this tokenizer does")
        if not model["merges"]:
            raise refused("the tokenizer has no merges, which llama.cpp needs")
        return "gpt2"
    if not model.get("byte_fallback"):
        raise refused("the tokenizer is neither byte-level nor falls back to bytes")
    return "llama"


def merge_pairs(state: State) -> list[tuple[str, str]]:
    """The merges of a BPE, in order, whichever way they are written."""
    merges = state["model"]["merges"]
    pairs = (m.split(" ") if isinstance(m, str) else m for m in merges)
    return [(left, right) for left, right in pairs]


def pre_tokenizer_name(state: State) -> str:
    """``tokenizer.ggml.pre`` for a byte-level BPE, ``state`` being its tokenizer.json. Raises
    ModelError where llama.cpp knows nothing that is provably equal."""
    steps = tuple(_expressions(state))
    known = [name for name, expressions in EXPRESSIONS.items() if expressions == steps]
    if not known:
        text = json.dumps(state["pre_tokenizer"], ensure_ascii=False)
        shown = text if len(text) <= 160 else text[:160] + "..."
        raise refused(f"llama.cpp knows no pre-tokenizer that cuts text as this one does: {shown}")
    looks_up = bool(state["model"].get("ignore_merges"))
    for name in known:
        if (name in WHOLE_WORDS) == looks_up:
            return name
    if _merges_reach_every_token(state):
        return known[0]
    raise refused(
        "llama.cpp has this tokenizer's regular expression only "
        f"{'without' if looks_up else 'with'} looking whole words up before merging, and here that "
        "makes a difference"
    )


def scores(state: State, size: int) -> list[float]:
    """``tokenizer.ggml.scores`` of ``size`` tokens of a SentencePiece BPE. llama.cpp merges any two
    neighbours that form a token, best score first, leftmost at a tie; a Hugging Face tokenizer has
    a list of merges instead. Both are the same where every way to split a token into two others is
    a merge, and merges come token by token. Raises ModelError where not."""
    vocabulary: dict[str, int] = state["model"]["vocab"]
    merges = merge_pairs(state)
    found = [_NEVER] * size
    place = 0
    for left, right in merges:
        number = vocabulary[left + right]
        if found[number] == _NEVER:
            place += 1
            found[number] = -float(place)
        elif found[number] != -float(place):
            raise _merged_otherwise(left, right, "is merged at two places of the list")
    known, added = set(merges), {token["content"] for token in state["added_tokens"]}
    made = {left + right for left, right in merges} | {t for t in vocabulary if len(t) == 1}
    for token in vocabulary:
        for at in range(1, len(token) if token not in added else 0):
            pair = token[:at], token[at:]
            if pair[0] in made and pair[1] in made and pair not in known:
                raise _merged_otherwise(*pair, "is no merge of this tokenizer")
    return found


def space_prefix(state: State, prompts: Sequence[str]) -> bool:
    """``tokenizer.ggml.add_space_prefix``: a space before each stretch of plain text, or none.
    Where a tokenizer puts it before the first stretch only, the value that tokenizes more of
    ``prompts`` the same way. Raises ModelError where neither gets the first of them right."""
    scheme = _scheme(state)
    if scheme != "first":
        return scheme == "always"

    def encoded(name: str) -> list[list[int]]:
        changed = json.loads(json.dumps(state))
        for step in _steps(changed, "pre_tokenizer"):
            if step["type"] == "Metaspace":
                step["prepend_scheme"] = name
        return _ids(changed, prompts)

    wanted = encoded("first")
    right = {
        value: [a == b for a, b in zip(encoded(name), wanted, strict=True)]
        for value, name in ((True, "always"), (False, "never"))
    }
    # The single question first, then as many conversations as possible, then plain text.
    best = max(right, key=lambda value: (right[value][:1], sum(right[value]), value))
    if prompts and not right[best][0]:
        raise refused(
            "the tokenizer puts a space before the first word of a text only, llama.cpp before "
            "every stretch of text or none, and this chat template needs both"
        )
    return best


def limits(state: State, prompts: Sequence[str]) -> tuple[str, ...]:
    """What llama.cpp will tokenize otherwise whatever the file says, one sentence each."""
    if kind_of(state) == "llama":
        if _scheme(state) != "first":
            return ()
        if space_prefix(state, prompts):
            return (
                "llama.cpp puts a space before text that follows a special token as well: a "
                "single question is read as trained, later turns of a conversation may not be",
            )
        return (
            "llama.cpp puts no space before a text that does not begin with a special token: chat "
            "prompts are as trained, other text has to bring that space",
        )
    found = []
    if pre_tokenizer_name(state) in APPROXIMATE:
        found.append(
            "llama.cpp tells upper from lower case in ASCII only, and does not count combining "
            "marks as letters: text in scripts that use them is cut otherwise"
        )
    if state["normalizer"]:
        found.append(
            "llama.cpp does not compose characters (Unicode NFC) as this tokenizer does: "
            "give it composed text"
        )
    return tuple(found)


def control_by_name(state: State) -> list[int]:
    """Ids of ordinary tokens that llama.cpp would take for control tokens, and no text yields. Qwen
    has such a `</s>`: its own text is cut before merging could form it. Under another text it is
    left alone."""
    added = {token["content"] for token in state["added_tokens"]}
    vocabulary: dict[str, int] = state["model"]["vocab"]
    names = sorted(CONTROL_TEXTS & vocabulary.keys() - added)
    found = zip(names, _ids(state, names) if names else (), strict=True)
    return [vocabulary[name] for name, ids in found if vocabulary[name] not in ids]


def stripping_name(state: State, prompts: Sequence[str]) -> str | None:
    """What `general.name` has to contain so that llama.cpp strips as the added tokens say. None
    where it need not. Raises ModelError where ``prompts``, as the chat template writes them, would
    be tokenized otherwise."""
    added = state["added_tokens"]
    if not any(token["lstrip"] or token["rstrip"] for token in added):
        return None
    known = {token["content"] for token in added} | state["model"]["vocab"].keys()
    as_phi3 = all(
        not token["lstrip"] and token["rstrip"] == (token["content"] not in _PHI3_KEEPS)
        for token in added
    )
    if as_phi3 and known >= {*_PHI3_KEEPS, "</s>"}:
        return _PHI3
    plain = [{**token, "lstrip": False, "rstrip": False} for token in added]
    if _ids(state, prompts) != _ids({**state, "added_tokens": plain}, prompts):
        raise refused(
            "special tokens of this tokenizer swallow the spaces around them, and the chat "
            "template writes some; llama.cpp would keep them"
        )
    return None


def _ids(state: State, texts: Sequence[str]) -> list[list[int]]:
    from tokenizers import Tokenizer

    encode = Tokenizer.from_str(json.dumps(state)).encode_batch_fast
    return [found.ids for found in encode(list(texts), add_special_tokens=False)]


def _steps(state: State, part: str) -> list[dict[str, Any]]:
    whole = state[part]
    if whole is None:
        return []
    key = "normalizers" if part == "normalizer" else "pretokenizers"
    return list(whole[key]) if whole["type"] == "Sequence" else [whole]


def _expressions(state: State) -> Iterator[str]:
    """The regular expressions that cut a text one after the other; "?..." for what is unknown."""
    steps = _steps(state, "pre_tokenizer")
    for number, step in enumerate(steps):
        kind = step["type"]
        if kind == "Split" and _keeps_all(step):
            expression: str = step["pattern"]["Regex"]
            for spelled, usual in _TOLD["spellings"]:
                expression = expression.replace(spelled, usual)
            yield expression
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
    removes_nothing = bool(step["invert"]) and step["pattern"]["Regex"].endswith(r"|\s+")
    return step["behavior"] == "Isolated" or (step["behavior"] == "Removed" and removes_nothing)


def _merges_reach_every_token(state: State) -> bool:
    """Whether looking a word up before merging changes nothing: merging finds the same token."""
    model = {**state["model"], "ignore_merges": False}
    added = {token["id"] for token in state["added_tokens"]}
    words = {word: number for word, number in model["vocab"].items() if number not in added}
    found = _ids({"version": "1.0", "model": model, "added_tokens": []}, [*words])
    return found == [[number] for number in words.values()]


def _scheme(state: State) -> str:
    """When a word border is put before plain text: always, first (of the whole text), never."""
    steps, splits = _steps(state, "normalizer"), _steps(state, "pre_tokenizer")
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    doubles = {"type": "Replace", "pattern": {"Regex": f"\\A{_SPACE}"}, "content": 2 * _SPACE}
    prepends = {"type": "Prepend", "prepend": _SPACE}
    # After the normalizer no plain space is left to split at.
    splits = [s for s in splits if not (s["type"] == "Split" and s["pattern"] == {"String": " "})]
    if not splits and steps in ([prepends, replaces], [replaces]):
        return "always" if prepends in steps else "never"
    if len(splits) == 1 and splits[0]["type"] == "Metaspace" and steps in ([], [replaces, doubles]):
        metaspace = splits[0]
        scheme = str(metaspace["prepend_scheme"])
        # Splitting at spaces matters where any token holds a space after its first character.
        words = state["model"]["vocab"].keys() - {t["content"] for t in state["added_tokens"]}
        apart = metaspace["split"] and any(_SPACE in word[1:] for word in words)
        if metaspace["replacement"] == _SPACE and not apart and (steps == [] or scheme != "never"):
            return scheme
    raise refused("llama.cpp cannot prepare text as this SentencePiece tokenizer does")


def _merged_otherwise(left: str, right: str, why: str) -> ModelError:
    return refused(f"llama.cpp would merge otherwise: {left!r} + {right!r} {why}")
