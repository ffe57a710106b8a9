"""Small tokenizers, trained in the test; those of every kind that GGUF can hold as directories."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as pre

from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer, load_tokenizer
from mlx_itune.export.gguf.tokenizer import add_tokenizer
from mlx_itune.export.gguf.tokenizer_algorithm import EXPRESSIONS
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
# As shipped; llama.cpp has another spelling of it.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(*expressions: str) -> Any:
    """What cuts by expressions one after the other, then into bytes."""
    steps = [pre.Split(Regex(expression), "isolated") for expression in expressions]
    return pre.Sequence([*steps, pre.ByteLevel(add_prefix_space=False, use_regex=False)])


# The name in GGUF -> what cuts the text.
BYTE_LEVEL: dict[str, Any] = {
    "gpt-2": pre.ByteLevel(add_prefix_space=False),
    "smollm": pre.Sequence([pre.Digits(True), pre.ByteLevel(add_prefix_space=False)]),
    "dbrx": split(LLAMA3),
    **{
        name: split(*EXPRESSIONS[name])
        for name in ("qwen2", "qwen35", "gpt-4o", "tekken", "deepseek-v3")
    },
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


def byte_level(kind: str) -> Tokenizer:
    """One of 1,200 tokens over texts of every kind."""
    return _marked(trained_bytes(BYTE_LEVEL[kind], texts(1500, seed=7), 1200))


def changed(tokenizer: Tokenizer, change: Callable[[dict[str, Any]], object]) -> Tokenizer:
    """With something else in its tokenizer.json."""
    state = json.loads(tokenizer.to_str())
    change(state)
    return Tokenizer.from_str(json.dumps(state))


def looking_up(tokenizer: Tokenizer) -> Tokenizer:
    """Words are looked up whole before they are merged."""
    return changed(tokenizer, lambda state: state["model"].update(ignore_merges=True))


def swallowing(*keep: str) -> Tokenizer:
    """As Phi 3's: added tokens, but for these, take the spaces after them along."""

    def strip(state: dict[str, Any]) -> None:
        for token in state["added_tokens"]:
            token["rstrip"] = token["content"] not in keep

    tokenizer = changed(sentencepiece("prepend"), strip)
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
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


def write_gguf(folder: Path, out: Path, name: str | None = None) -> ChatTokenizer:
    """A GGUF file of a directory's tokenizer alone, which llama.cpp loads with vocab_only."""
    tokenizer = load_tokenizer(folder)
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(str(out), "llama")
    if name is not None:
        writer.add_name(name)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(config["vocab_size"])
    add_tokenizer(writer, tokenizer, config["vocab_size"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tokenizer


def _marked(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in MARKUP])
    return tokenizer
