"""Small tokenizers, trained in the test; those of every kind that GGUF can hold as directories."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as pre

from tests.torture import texts

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
MARKUP = ["<tool_call>", "</tool_call>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_ENDS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+END"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*END"
)
_CASED_ENDS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def split(*expressions: str, behavior: str = "isolated", invert: bool = False) -> Any:
    steps = [pre.Split(Regex(e), behavior, invert=invert) for e in expressions]
    return pre.Sequence([*steps, pre.ByteLevel(add_prefix_space=False, use_regex=False)])


LLAMA3 = _WORDS + r"\p{N}{1,3}" + _ENDS
# The name in GGUF -> what cuts the text.
BYTE_LEVEL: dict[str, Callable[[], Any]] = {
    "gpt-2": lambda: pre.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre.Sequence([pre.Digits(True), pre.ByteLevel(add_prefix_space=False)]),
    "dbrx": lambda: split(LLAMA3),
    "qwen2": lambda: split(_WORDS + r"\p{N}" + _ENDS),
    "qwen35": lambda: split(
        _WORDS.replace(r"\p{L}+", r"[\p{L}\p{M}]+")
        + r"\p{N}"
        + _ENDS.replace(r"[^\s\p{L}", r"[^\s\p{L}\p{M}")
    ),
    "gpt-4o": lambda: split(
        _CASED.replace("END", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?") + r"|\p{N}{1,3}" + _CASED_ENDS
    ),
    "tekken": lambda: split(_CASED.replace("END", "") + r"|\p{N}" + _CASED_ENDS),
    "deepseek-v3": lambda: split(
        r"\p{N}{1,3}",
        "[一-龥\u3040-ゟ゠-ヿ]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
}


def trained_bytes(splitter: Any, lines: Iterable[str], size: int) -> Tokenizer:
    """A byte-level BPE of so many tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def byte_level(splitter: Any, *, ignore_merges: bool = False) -> Tokenizer:
    """One of 1,200 tokens over texts of every kind."""
    tokenizer = _marked(trained_bytes(splitter, texts(1500, seed=7), 1200))
    if ignore_merges:
        state = json.loads(tokenizer.to_str())
        state["model"]["ignore_merges"] = True
        tokenizer = Tokenizer.from_str(json.dumps(state))
    return tokenizer


def sentencepiece(scheme: str) -> Tokenizer:
    """One of 900 pieces over texts of every kind."""
    # A SentencePiece model never holds a NUL.
    lines = (text.replace("\0", "") for text in texts(1500, seed=8))
    return _marked(trained_pieces(scheme, lines, vocab_size=900, limit_alphabet=150))


def trained_pieces(scheme: str, lines: Iterable[str], **options: Any) -> Tokenizer:
    """A SentencePiece-style BPE: "prepend" (as older files), "always", "first" or "never".

    As converted from a SentencePiece model: every pair of pieces that makes a third is a merge.
    """
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(lines, trainers.BpeTrainer(show_progress=False, **options))
    pieces = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *pieces]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    merges = [
        (piece[:at], piece[at:])
        for piece in pieces
        for at in range(1, len(piece))
        if piece[:at] in vocabulary and piece[at:] in vocabulary
    ]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    spaces = normalizers.Replace(" ", "▁")
    if scheme == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    elif scheme == "never":
        tokenizer.normalizer = spaces
    else:
        if scheme == "always":
            twice = normalizers.Replace(Regex(r"\A▁"), "▁▁")
            tokenizer.normalizer = normalizers.Sequence([spaces, twice])
        tokenizer.pre_tokenizer = pre.Metaspace("▁", prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken("<unk>", special=True, normalized=False)])
    return tokenizer


def write(tokenizer: Tokenizer, out: Path, *, template: str = CHATML, rows: int = 64) -> Path:
    """A model directory with the tokenizer and `rows` more rows than it has tokens."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "<|im_end|>" if template == CHATML else "</s>",
        "clean_up_tokenization_spaces": False,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings))
    (out / "chat_template.jinja").write_text(template)
    size = tokenizer.get_vocab_size() + rows
    (out / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": size}))
    return out


def _marked(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in MARKUP])
    return tokenizer
