"""Added tokens in llama.cpp: what it strips around them, and what it takes for one by its name.

Both are decided inside llama.cpp (src/llama-vocab.cpp, `llama_vocab::impl::load`), not by keys of
the file: stripping by the model's name, control by the token's text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mlx_itune.kit.errors import ModelError

# Texts that become control tokens, most of them ends of a reply, whatever type the file gives.
CONTROL_TEXTS = frozenset(
    "<|eot_id|> <|im_end|> <|end|> <end_of_turn> <|endoftext|> <|end_of_text|> <EOT> _<EOT> [EOT] "
    "[EOS] </s> <eos> <|eom_id|> <|return|> <|call|> <|calls|> <|flush|> <end_of_utterance> "
    "<turn|> <|tool_response> [e~[ <｜end▁of▁sentence｜> <|fim_prefix|> <fim-prefix> "
    "<fim_prefix> <PRE> "
    "▁<PRE> <｜fim▁begin｜> <|code_prefix|> <|prefix|> <|fim_suffix|> <fim-suffix> <fim_suffix> "
    "<SUF> ▁<SUF> <｜fim▁hole｜> <|code_suffix|> <|suffix|> <|fim_middle|> <fim-middle> "
    "<fim_middle> <MID> ▁<MID> <｜fim▁end｜> <|code_middle|> <|middle|> <|fim_pad|> <fim-pad> "
    "<fim_pad> <PAD> [PAD] <|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame> "
    "<|file_sep|>".split()
)
# Of a model named so, every added token strips what follows, but these.
_PHI3, _PHI3_KEEPS = "phi-3", {"<unk>", "<s>", "<|endoftext|>"}


def control_by_name(state: Mapping[str, Any]) -> list[int]:
    """Ids of ordinary tokens that llama.cpp would take for control tokens, and no text yields.

    Qwen has such a `</s>`: its own text is cut before merging could form it. Under another text it
    is left alone.
    """
    from tokenizers import Tokenizer

    added = {token["content"] for token in state["added_tokens"]}
    vocabulary: dict[str, int] = state["model"]["vocab"]
    names = sorted(CONTROL_TEXTS & vocabulary.keys() - added)
    if not names:
        return []
    encode = Tokenizer.from_str(json.dumps(state)).encode
    return [
        vocabulary[name]
        for name in names
        if vocabulary[name] not in encode(name, add_special_tokens=False).ids
    ]


def stripping_name(state: Mapping[str, Any], prompts: Sequence[str]) -> str | None:
    """What `general.name` has to contain so that llama.cpp strips as the added tokens say.

    None where it need not. Raises ModelError where ``prompts``, as the chat template writes them,
    would be tokenized otherwise.
    """
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
        raise ModelError(
            "special tokens of this tokenizer swallow the spaces around them, and the chat "
            "template writes some; llama.cpp would keep them",
            hint="export it with --to mlx",
        )
    return None


def _ids(state: Mapping[str, Any], prompts: Sequence[str]) -> list[list[int]]:
    from tokenizers import Tokenizer

    encode = Tokenizer.from_str(json.dumps(state)).encode_batch_fast
    return [e.ids for e in encode(list(prompts), add_special_tokens=False)]
