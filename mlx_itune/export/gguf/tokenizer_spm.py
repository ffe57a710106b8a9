"""SentencePiece-style BPE in GGUF: scores for llama.cpp's merging, and the space before a text.

llama.cpp merges any two neighbours that form a token, best score first, leftmost at a tie (as
SentencePiece does). A Hugging Face tokenizer has a list of merges instead. Both are the same where
every way to split a token into two others is a merge, and merges come token by token; this is
checked, not assumed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mlx_itune.kit.errors import ModelError

_SPACE = "▁"
# Far below every token that merging may form.
_NEVER = -1e9


def scores(state: Mapping[str, Any], size: int) -> list[float]:
    """``tokenizer.ggml.scores`` of ``size`` tokens, so that llama.cpp merges in the same order.

    Raises ModelError where llama.cpp would merge otherwise.
    """
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
            raise _different(left, right, "is merged at two places of the list")
    _require_every_split(state, set(merges))
    return found


def merge_pairs(state: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges of a BPE, in order, whichever way they are written."""
    pairs: list[tuple[str, str]] = []
    for merge in state["model"]["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        pairs.append((left, right))
    return pairs


def space_prefix(state: Mapping[str, Any], prompts: Sequence[str]) -> bool:
    """``tokenizer.ggml.add_space_prefix``: a space before each stretch of plain text, or none.

    Some tokenizers put it before the first stretch only, which llama.cpp cannot. For those the
    value is taken that tokenizes more of ``prompts``, as the chat template writes them, the same
    way. Raises ModelError where neither gets the first of them right.
    """
    scheme = _scheme(state)
    if scheme != "first":
        return scheme == "always"
    wanted = _encoded(state, "first", prompts)
    right = {
        value: [a == b for a, b in zip(_encoded(state, name, prompts), wanted, strict=True)]
        for value, name in ((True, "always"), (False, "never"))
    }
    # The single question first, then as many conversations as possible, then plain text.
    best = max(right, key=lambda value: (right[value][:1], sum(right[value]), value))
    if prompts and not right[best][0]:
        raise ModelError(
            "the tokenizer puts a space before the first word of a text only, llama.cpp before "
            "every stretch of text or none, and this chat template needs both",
            hint="export it with --to mlx",
        )
    return best


def space_limit(state: Mapping[str, Any], prompts: Sequence[str]) -> tuple[str, ...]:
    """What llama.cpp does otherwise about the space before a text, in a sentence."""
    if _scheme(state) != "first":
        return ()
    if space_prefix(state, prompts):
        return (
            "llama.cpp puts a space before text that follows a special token as well: a single "
            "question is read as trained, later turns of a conversation may not be",
        )
    return (
        "llama.cpp puts no space before a text that does not begin with a special token: chat "
        "prompts are as trained, other text has to bring that space",
    )


def _scheme(state: Mapping[str, Any]) -> str:
    """When a word border is put before plain text: always, first (of the whole text), never."""
    steps = _flat(state["normalizer"], "normalizers")
    splits = _flat(state["pre_tokenizer"], "pretokenizers")
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    doubles = {"type": "Replace", "pattern": {"Regex": f"\\A{_SPACE}"}, "content": 2 * _SPACE}
    prepends = {"type": "Prepend", "prepend": _SPACE}
    # After the normalizer no plain space is left to split at.
    splits = [s for s in splits if not (s["type"] == "Split" and s["pattern"] == {"String": " "})]
    if not splits and steps == [prepends, replaces]:
        return "always"
    if not splits and steps == [replaces]:
        return "never"
    if len(splits) == 1 and splits[0]["type"] == "Metaspace" and steps in ([], [replaces, doubles]):
        metaspace = splits[0]
        scheme = str(metaspace["prepend_scheme"])
        apart = metaspace["split"] and _crosses_words(state)
        if metaspace["replacement"] == _SPACE and not apart and (steps == [] or scheme != "never"):
            return scheme
    raise ModelError(
        "llama.cpp cannot prepare text as this SentencePiece tokenizer does",
        hint="export it with --to mlx",
    )


def _crosses_words(state: Mapping[str, Any]) -> bool:
    """Whether any token holds a space after its first character: splitting at spaces matters."""
    added = {token["content"] for token in state["added_tokens"]}
    return any(_SPACE in token[1:] for token in state["model"]["vocab"] if token not in added)


def _require_every_split(state: Mapping[str, Any], merges: set[tuple[str, str]]) -> None:
    """Raise ModelError where two tokens form a third without a merge that says so."""
    formed = {left + right for left, right in merges}
    made = formed | {token for token in state["model"]["vocab"] if len(token) == 1}
    added = {token["content"] for token in state["added_tokens"]}
    for token in state["model"]["vocab"]:
        if token in added:
            continue
        for at in range(1, len(token)):
            pair = token[:at], token[at:]
            if pair[0] in made and pair[1] in made and pair not in merges:
                raise _different(*pair, "is no merge of this tokenizer")


def _different(left: str, right: str, why: str) -> ModelError:
    return ModelError(
        f"llama.cpp would merge otherwise: {left!r} + {right!r} {why}",
        hint="GGUF is not possible for this tokenizer; export it with --to mlx",
    )


def _encoded(state: Mapping[str, Any], scheme: str, prompts: Sequence[str]) -> list[list[int]]:
    from tokenizers import Tokenizer

    changed = json.loads(json.dumps(state))
    for step in _flat(changed["pre_tokenizer"], "pretokenizers"):
        if step["type"] == "Metaspace":
            step["prepend_scheme"] = scheme
    encode = Tokenizer.from_str(json.dumps(changed)).encode_batch_fast
    return [e.ids for e in encode(list(prompts), add_special_tokens=False)]


def _flat(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    return list(part[key]) if part["type"] == "Sequence" else [part]
